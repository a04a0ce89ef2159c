"""Every argument, checked once, at the front door; the message shows the corrected call."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from distributed import Client

from at_once_dask.cluster import checked_client
from at_once_dask.errors import InputError
from at_once_dask.failure import safe_repr

P = ParamSpec("P")
R = TypeVar("R")

ON_ERROR = ("raise", "return", "stop")
_CALL = "run(inp_list, check_inp, process_inp)"

# What people look for in run(), and where it is.
_ELSEWHERE = {
    **dict.fromkeys(
        ("n_workers", "workers", "processes", "n_jobs", "num_processes", "max_workers", "n_procs"),
        "call at_once_dask.start(n_workers=4) before run()",
    ),
    "memory_limit": 'call at_once_dask.start(memory_limit="4 GiB") before run()',
    "dashboard_address": 'call at_once_dask.start(dashboard_address="127.0.0.1:8787") before run()',
    **dict.fromkeys(
        ("npartitions", "partition_size", "chunksize", "batch_size"),
        "leave it out: partitions follow the measured speed",
    ),
    "logfile": 'assign at_once_dask.logfile = "log.jsonl" before run()',
    **dict.fromkeys(("shuffle",), "write do_shuffle=True"),
    **dict.fromkeys(("seed", "random_seed"), "write do_shuffle=True, random_state=1"),
    **dict.fromkeys(
        ("retries", "timeout", "max_failures", "verify", "inspect", "report_path"),
        "leave it out: it is planned, and not in this version",
    ),
}


@dataclass(frozen=True)
class Options:
    """The arguments of ``run``, checked.

    Raises
    ------
    InputError
        From `checked`, before anything has started.
    """

    inp_list: Iterable[Any]
    check_inp: Callable[[Any], Any] | None
    process_inp: Callable[[Any], Any] | None
    do_shuffle: bool
    reduce_fn: Callable[[list[Any]], Any] | None
    combine_fn: Callable[[Any, Any], Any] | None
    on_error: str
    client: Client | None
    progress: bool
    random_state: Any
    plans: bool = False  # only look what is to be done

    @property
    def reducing(self) -> bool:
        return self.reduce_fn is not None or self.combine_fn is not None

    def checked(self) -> Options:
        """Itself, when every argument can be used."""
        _check_order(self.inp_list, self.process_inp)
        _check_list(self.inp_list)
        _check_function("check_inp", self.check_inp, may_be_none=True)
        _check_function("process_inp", self.process_inp, may_be_none=self.plans)
        if not self.reducing and inspect.isgeneratorfunction(_unwrapped(self.process_inp)):
            raise InputError(
                "process_inp is a generator function, whose body would never run in a map-only run;"
                " save the result instead of yielding it, or pass a reduce_fn, as in"
                " run(inp_list, check_inp, process_inp, reduce_fn=list)"
            )
        if isinstance(self.do_shuffle, Iterable) or self.do_shuffle not in (True, False):
            raise InputError(
                f"do_shuffle is {safe_repr(self.do_shuffle)}; it takes True or False, and reduce_fn"
                " comes behind it: run(inp_list, check_inp, process_inp, reduce_fn=sum)"
            )
        _check_function("reduce_fn", self.reduce_fn, may_be_none=True)
        _check_function("combine_fn", self.combine_fn, may_be_none=True)
        if self.reduce_fn is not None and self.combine_fn is not None:
            raise InputError(
                "reduce_fn and combine_fn were both given; pass one: reduce_fn=sum gets the list of"
                " a key's values, combine_fn=operator.add folds them pairwise"
            )
        _check_choices(self)
        if self.client is not None:
            checked_client(self.client)
        return self


def front_door(function: Callable[P, R]) -> Callable[P, R]:
    """Answer arguments that do not fit the signature with an InputError that shows what does."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(_wrong_call(function.__name__, signature, kwargs, error)) from None
        return function(*args, **kwargs)

    return checked


def _wrong_call(
    name: str, signature: inspect.Signature, given: Mapping[str, Any], error: TypeError
) -> str:
    known = list(signature.parameters)
    for word in given:
        if word in known:
            continue
        if word in _ELSEWHERE:
            return f"{name}() has no argument {word!r}; {_ELSEWHERE[word]}"
        close = difflib.get_close_matches(word, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{name}() has no argument {word!r}; {hint}it takes {', '.join(known)}"
    return f"{name}(): {error}; write {_shown(name, signature)}"


def _shown(name: str, signature: inspect.Signature) -> str:
    """The call with its required arguments."""
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    return f"{name}({', '.join(required)})"


def _check_order(inp_list: Any, process_inp: Any) -> None:
    if callable(inp_list) and not isinstance(inp_list, Iterable):
        raise InputError(
            f"inp_list is the function {_name(inp_list)}; the list comes first: {_CALL}"
        )
    if isinstance(process_inp, Iterable) and not callable(process_inp):
        raise InputError(f"process_inp is {safe_repr(process_inp)}; the list comes first: {_CALL}")


def _check_list(inp_list: Any) -> None:
    example = None
    pandas = sys.modules.get("pandas")
    if isinstance(inp_list, (str, bytes, bytearray)):
        example = f"run([{safe_repr(inp_list, 40)}], check_inp, process_inp)"
    elif isinstance(inp_list, os.PathLike):
        example = 'run(sorted(path.glob("*")), check_inp, process_inp)'
    elif isinstance(inp_list, Mapping):
        example = "run(list(d.items()), check_inp, process_inp)"
    elif pandas is not None and isinstance(inp_list, pandas.DataFrame):
        example = 'run(df.to_dict("records"), check_inp, process_inp)'
    elif not isinstance(inp_list, Iterable) and not hasattr(inp_list, "__getitem__"):
        example = "run([...], check_inp, process_inp)"
    if example is not None:
        raise InputError(
            f"inp_list is a {type(inp_list).__name__}; it takes a list or another iterable of"
            f" inputs: {example}"
        )


def _check_function(name: str, function: Any, may_be_none: bool = False) -> None:
    if function is None and may_be_none:
        return
    if not callable(function):
        what = "a function" + (" or None" if may_be_none else "")
        raise InputError(f"{name} is {safe_repr(function)}; it takes {what}: {_example(name)}")
    called = getattr(_unwrapped(function), "__call__", None)  # noqa: B004  its own, if any
    for candidate in (_unwrapped(function), called):
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise InputError(
                f"{name} is the async function {_name(function)}, which nobody would await; pass a"
                f" plain one: {name}=lambda inp: asyncio.run({_name(function)}(inp))"
            )


def _example(name: str) -> str:
    return {
        "check_inp": f"{_CALL} with `def check_inp(inp): return [is_done, value]`",
        "process_inp": f"{_CALL} with `def process_inp(inp): ...`",
        "reduce_fn": "run(inp_list, check_inp, process_inp, reduce_fn=sum)",
        "combine_fn": "run(inp_list, check_inp, process_inp, combine_fn=operator.add)",
    }[name]


def _check_choices(options: Options) -> None:
    if not isinstance(options.on_error, str) or options.on_error not in ON_ERROR:
        raise InputError(
            f"on_error is {safe_repr(options.on_error)}; it takes 'raise', 'return' or 'stop',"
            ' as in run(inp_list, check_inp, process_inp, on_error="return")'
        )
    if not isinstance(options.progress, bool):
        raise InputError(
            f"progress is {safe_repr(options.progress)}; it takes True or False, as in"
            " run(inp_list, check_inp, process_inp, progress=False)"
        )
    if options.random_state is None:
        return
    if not options.do_shuffle:
        raise InputError(
            "random_state does nothing without do_shuffle; write"
            f" run(..., do_shuffle=True, random_state={safe_repr(options.random_state)})"
        )
    if not isinstance(options.random_state, (int, float, str, bytes, bytearray)):
        raise InputError(
            f"random_state is {safe_repr(options.random_state)}; it takes what random.Random takes:"
            " run(..., do_shuffle=True, random_state=1)"
        )


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _name(function: Any) -> str:
    name = getattr(_unwrapped(function), "__name__", None)
    return name if isinstance(name, str) else safe_repr(function)
