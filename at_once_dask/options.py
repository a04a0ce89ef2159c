"""Every argument, checked once, at the front door; the message shows the corrected call."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_args

from at_once_dask import files
from at_once_dask.errors import InputError, cut_short
from at_once_dask.user_code import arity
from at_once_dask.user_code.text import safe_repr

if TYPE_CHECKING:
    from distributed import Client

P = ParamSpec("P")
R = TypeVar("R")

N_REQUIRED, N_BY_PLACE = 3, 5  # of the arguments of ``run``
OnError = Literal["raise", "return", "stop"]

# What people look for in run(), and where it is.
_ELSEWHERE = {
    **dict.fromkeys(
        ("n_workers", "workers", "processes", "n_jobs", "num_processes", "max_workers", "n_procs"),
        "call at_once_dask.start(n_workers=4) first, then {call}",
    ),
    "memory_limit": 'call at_once_dask.start(memory_limit="4 GiB") first, then {call}',
    "dashboard_address": (
        'call at_once_dask.start(dashboard_address="127.0.0.1:8787") first, then {call}'
    ),
    **dict.fromkeys(
        ("npartitions", "partition_size", "chunksize", "batch_size"),
        "leave it out, partitions follow the measured speed: {call}",
    ),
    "logfile": 'assign at_once_dask.logfile = "log.jsonl" first, then {call}',
    "shuffle": "write run(inp_list, check_inp, process_inp, do_shuffle=True)",
    **dict.fromkeys(
        ("seed", "random_seed"),
        "write run(inp_list, check_inp, process_inp, do_shuffle=True, random_state=1)",
    ),
    "capture_output": "assign at_once_dask.capture_output = False first, then {call}",
    **dict.fromkeys(
        ("time_limit", "timeout_seconds", "max_seconds"),
        "write run(inp_list, check_inp, process_inp, timeout=60)",
    ),
    **dict.fromkeys(
        ("n_retries", "max_retries"), "write run(inp_list, check_inp, process_inp, retries=2)"
    ),
}


@dataclass(frozen=True)
class Options:
    """The arguments of ``run``, each by itself checked by `front_door`.

    Raises
    ------
    InputError
        From `checked`, before anything has started.
    """

    inp_list: Iterable[Any]
    check_inp: Callable[[Any], Any] | None = None
    process_inp: Callable[[Any], Any] | None = None
    do_shuffle: bool = False
    reduce_fn: Callable[[list[Any]], Any] | None = None
    combine_fn: Callable[[Any, Any], Any] | None = None
    on_error: OnError = "raise"
    max_failures: float | None = None
    retries: int = 0
    timeout: float | None = None
    verify: bool = False
    inspect: bool = False
    report_path: str | os.PathLike[str] | None = None
    client: Client | None = None
    progress: bool = True
    random_state: float | str | bytes | bytearray | None = None

    @classmethod
    def signature(cls) -> Signature:
        """The signature of ``run``: three must be given, five may be given by place."""
        kinds = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
        parameters = [
            Parameter(
                field.name,
                kinds[place >= N_BY_PLACE],
                default=Parameter.empty if place < N_REQUIRED else field.default,
                annotation=field.type,
            )
            for place, field in enumerate(fields(cls))
        ]
        return Signature(parameters)

    @property
    def reducing(self) -> bool:
        return self.reduce_fn is not None or self.combine_fn is not None

    @property
    def settings(self) -> dict[str, str]:
        """The arguments that were given, as text; of the list only what it is."""
        given = {name: getattr(self, name) for name in _DESCRIBED}
        return {
            "inp_list": _kind_of_list(self.inp_list),
            **{name: _described(value) for name, value in given.items() if value is not None},
        }

    def checked(self) -> Options:
        """The same with plain numbers, when the arguments fit together."""
        if self.reduce_fn is not None and self.combine_fn is not None:
            raise InputError(
                "reduce_fn and combine_fn were both given; pass one of them: with"
                " run(inp_list, check_inp, process_inp, reduce_fn=sum) it gets the list of a key's"
                " values, with combine_fn=operator.add in its place they are folded pairwise"
            )
        if not self.reducing and _is(inspect.isgeneratorfunction, self.process_inp):
            raise InputError(
                f"process_inp is {_shown(self.process_inp)}, a generator: in a map-only run its"
                " body would never run; save the result instead of yielding it, or reduce what it"
                " yields: run(inp_list, check_inp, process_inp, reduce_fn=list)"
            )
        if self.random_state is not None and not self.do_shuffle:
            given = f"random_state={safe_repr(self.random_state)}"
            raise InputError(
                f"{given} does nothing without do_shuffle; write"
                f" run(inp_list, check_inp, process_inp, do_shuffle=True, {given})"
            )
        if self.verify and self.check_inp is None:
            raise InputError(
                "verify=True asks check_inp whether an input is done after process_inp, and"
                " check_inp is None; write run(inp_list, check_inp, process_inp, verify=True) with"
                " `def check_inp(inp): return [is_done, value]`, or leave verify out"
            )
        if self.on_error == "stop" and self.max_failures is not None:
            raise InputError(
                "on_error='stop' stops at the first failed input, so max_failures does nothing;"
                " leave one of them out:"
                f" run(inp_list, check_inp, process_inp, max_failures={self.max_failures})"
            )
        return replace(self, **{name: _plain(getattr(self, name)) for name in _NUMBERS})


_DESCRIBED = [field.name for field in fields(Options)][1:]
_NUMBERS = ("max_failures", "retries", "timeout")


def _plain(number: Any) -> Any:
    """A number of NumPy's, or a fraction, as Python's own: its type tells a count from a share."""
    if number is None:
        return None
    return int(number) if isinstance(number, numbers.Integral) else float(number)


@dataclass(frozen=True)
class _Call:
    """How a public function is called."""

    name: str
    signature: inspect.Signature

    def written(self, **corrected: str) -> str:
        """With the required arguments; these stand in the place of one, or are added by name."""
        required = [p.name for p in self.signature.parameters.values() if p.default is p.empty]
        placed = [corrected.pop(name, name) for name in required]
        return f"{self.name}({', '.join(placed + [f'{k}={v}' for k, v in corrected.items()])})"

    def accepted(self) -> str:
        """With all arguments and their defaults."""
        bare = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        return f"{self.name}{inspect.Signature(bare)}"


def front_door(
    signature: inspect.Signature | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Answer arguments that a function cannot use with an InputError that shows what it can.

    `signature` says what it takes, where the function itself does not.
    """

    def behind_door(function: Callable[P, R]) -> Callable[P, R]:
        takes = inspect.signature(function) if signature is None else signature
        call = _Call(function.__name__, takes)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            _check(call, args, kwargs)
            return function(*args, **kwargs)

        door = cut_short(checked)
        door.__signature__ = takes  # type: ignore[attr-defined]
        return door

    return behind_door


def _check(call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        bound = call.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(_misfit(call, args, kwargs, error)) from None
    for name, given in bound.arguments.items():
        if name in _CHECKS:
            _CHECKS[name](call, name, given)


def _misfit(call: _Call, args: tuple[Any, ...], given: Mapping[str, Any], error: TypeError) -> str:
    """Why the arguments do not fit the signature, and which do."""
    known = call.signature.parameters
    unknown = next((word for word in given if word not in known), None)
    if unknown is None:
        if args and len(args) < 3 and "check_inp" in known and "missing" in str(error):
            return f"{call.name}(): {error}; {_without_check(call, args[1:], given)}"
        return f"{call.name}(): {error}; it takes {call.accepted()}"
    text = f"{call.name}() has no argument {unknown!r}; "
    if unknown in _ELSEWHERE:
        advice = _ELSEWHERE[unknown]
        if call.name == "start":  # that is where it is
            advice = advice.removesuffix(" first, then {call}")
        return text + advice.format(call=call.written())
    close = difflib.get_close_matches(unknown, known, 1)
    hint = f"did you mean {close[0]!r}? It" if close else "it"
    return f"{text}{hint} takes {call.accepted()}"


def _without_check(call: _Call, given: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """The call of who gives a list and one function, as everywhere else."""
    if "check_inp" in named:
        return f"write {call.written()}"
    what = {"process_inp": _called(given[0], "process_inp")} if given else {}
    return (
        f"write {call.written(check_inp='None', **what)} when nothing can be done already, else"
        f" {call.written(**what)} with `def check_inp(inp): return [is_done, value]`"
    )


def _check_list(call: _Call, name: str, given: Any) -> None:
    if callable(given) and not _is_iterable(given):
        raise InputError(
            f"{name} is {_shown(given)}; the list comes first: {call.written()}; a function that"
            f" makes the list is called: {call.written(inp_list='make_list()')}"
        )
    takes = "it takes a list or another iterable of inputs"
    example = _list_instead_of(given)
    if example is not None:
        what = f"of type {type(given).__name__}"
        raise InputError(f"{name} is {what}; {takes}: {call.written(inp_list=example)}")
    if not _is_iterable(given):
        raise InputError(f"{name} is {safe_repr(given)}; {takes}: {call.written(inp_list='[...]')}")


def _list_instead_of(given: Any) -> str | None:
    """The call to write for a thing that can be iterated, but hardly to give what is meant."""
    if isinstance(given, (str, bytes, bytearray)):
        return f"[{safe_repr(given, 40)}]"
    if isinstance(given, os.PathLike):
        return 'sorted(path.glob("*"))'
    if isinstance(given, Mapping):
        return "list(d.items())"
    if hasattr(type(given), "__dask_graph__"):
        return "collection.compute()"
    if any(base.__name__ == "DataFrame" for base in type(given).__mro__):  # any library's
        return 'df.to_dict("records")'
    return None


def _is_iterable(given: Any) -> bool:
    """Whether ``iter`` takes it; not tried, for that may already begin something."""
    has_method = isinstance(given, Iterable) or hasattr(type(given), "__getitem__")
    return has_method and getattr(given, "ndim", 1) != 0  # NumPy's scalars have it for nothing


def _check_function(call: _Call, name: str, given: Any) -> None:
    if not callable(given):
        is_needed = name == "process_inp" or call.name == "report.reduce"
        what = "a function" if is_needed else "a function or None"
        raise InputError(f"{name} is {safe_repr(given)}; it takes {what}: {_example(call, name)}")
    if _is(inspect.iscoroutinefunction, given) or _is(inspect.isasyncgenfunction, given):
        args = {"reduce_fn": "values", "combine_fn": "a, b"}.get(name, "inp")
        wrapped = f"lambda {args}: asyncio.run({name}({args}))"
        raise InputError(
            f"{name} is {_shown(given)}, which is async, and nobody would await it; wrap it:"
            f" {call.written(**{name: wrapped})}"
        )


def _check_function_or_none(call: _Call, name: str, given: Any) -> None:
    if given is None:
        return
    _check_function(call, name, given)
    if _is(inspect.isgeneratorfunction, given):
        raise InputError(
            f"{name} is {_shown(given)}, a generator; it must return its result instead of"
            f" yielding it: {_example(call, name)}"
        )
    _check_arguments(call, name, given)


def _check_process(call: _Call, name: str, given: Any) -> None:
    _check_function(call, name, given)
    _check_arguments(call, name, given)


def _check_arguments(call: _Call, name: str, given: Any) -> None:
    """Whether it can be called with as many as it will get."""
    takes = arity.of(given)
    if takes is None or takes.fits(2 if name == "combine_fn" else 1):
        return
    instead = {"reduce_fn": _reduce_instead, "combine_fn": _combine_instead}
    advice = instead.get(name, _function_instead)(call, name, takes, _called(given, name))
    raise InputError(f"{name} is {_shown(given)}, which takes {takes}; {advice}")


def _function_instead(call: _Call, name: str, takes: arity.Takes, called: str) -> str:
    gets = "it gets one argument, the input"
    several = len(takes.required) > 1
    if not several and not takes.named:
        return f"{gets}: {_example(call, name)}"
    more = "".join(f", {word}=..." for word in takes.named)
    wrapped = call.written(**{name: f"lambda inp: {called}({'*inp' if several else 'inp'}{more})"})
    return f"{gets}; {'where the inputs are tuples, ' if several else ''}write {wrapped}"


def _reduce_instead(call: _Call, name: str, takes: arity.Takes, called: str) -> str:
    gets = "it gets one argument, the list of all values of a key"
    if len(takes.required) != 2 or takes.named:
        return f"{gets}: {_example(call, name)}"
    first, second = takes.required
    if "key" in first or ("values" in second and "values" not in first):
        return f"{gets}, and not the key: {call.written(reduce_fn='lambda values: ...')}"
    return f"{gets}; to fold them pairwise, write {call.written(combine_fn=called)}"


def _combine_instead(call: _Call, name: str, takes: arity.Takes, called: str) -> str:
    gets = "it gets two arguments, values of a key, and returns one"
    if not takes.fits(1):
        return f"{gets}: {_example(call, name)}"
    return f"{gets}; what takes the list of all values is {call.written(reduce_fn=called)}"


def _example(call: _Call, name: str) -> str:
    return {
        "check_inp": f"{call.written()} with `def check_inp(inp): return [is_done, value]`",
        "process_inp": f"{call.written()} with `def process_inp(inp): ...`",
        "reduce_fn": call.written(reduce_fn="sum"),
        "combine_fn": call.written(combine_fn="operator.add"),
    }[name]


def checked_reduce_fn(given: Any) -> Callable[[list[Any]], Any]:
    """`given`, when ``report.reduce`` can use it."""
    call = _Call("report.reduce", inspect.signature(lambda reduce_fn: None))
    _check_function(call, "reduce_fn", given)
    _check_function_or_none(call, "reduce_fn", given)
    checked: Callable[[list[Any]], Any] = given
    return checked


def _check_flag(call: _Call, name: str, given: Any) -> None:
    if name == "do_shuffle" and callable(given):
        raise InputError(
            f"do_shuffle is {_shown(given)}; it takes True or False, and reduce_fn comes behind"
            f" it: {call.written(reduce_fn='sum')}"
        )
    of_numpy = type(given).__name__ in ("bool", "bool_")
    if not (isinstance(given, int) or of_numpy) or given not in (True, False):
        other = str(not call.signature.parameters[name].default)
        raise InputError(
            f"{name} is {safe_repr(given)}; it takes True or False: {call.written(**{name: other})}"
        )


def _check_on_error(call: _Call, name: str, given: Any) -> None:
    if not isinstance(given, str) or given not in get_args(OnError):
        raise InputError(
            f"{name} is {safe_repr(given)}; it takes 'raise', 'return' or 'stop':"
            f" {call.written(on_error=repr('return'))}"
        )


def _is_number(given: Any, kind: type = numbers.Real) -> bool:
    return isinstance(given, kind) and not isinstance(given, bool)


def _check_max_failures(call: _Call, name: str, given: Any) -> None:
    whole = _is_number(given, numbers.Integral) and given >= 0
    share = _is_number(given) and not _is_number(given, numbers.Integral) and 0 < given < 1
    if given is not None and not whole and not share:
        raise InputError(
            f"{name} is {safe_repr(given)}; it takes how many inputs may fail, or the share of them"
            f" that may as a float between 0 and 1: {call.written(max_failures='100')} or"
            f" {call.written(max_failures='0.05')}"
        )


def _check_retries(call: _Call, name: str, given: Any) -> None:
    if not _is_number(given, numbers.Integral) or given < 0:
        raise InputError(
            f"{name} is {safe_repr(given)}; it takes how many further attempts an input gets, a"
            f" whole number from 0: {call.written(retries='2')}"
        )


def _check_timeout(call: _Call, name: str, given: Any) -> None:
    fine = _is_number(given) and 0 < given < float("inf")
    if given is not None and not fine:
        raise InputError(
            f"{name} is {safe_repr(given)}; it takes the seconds that one input may take, more than"
            f" 0, or None for no limit: {call.written(timeout='60')}"
        )


def checked_client(client: Any) -> Client:
    """`client`, when its cluster can be used."""
    hint = (
        "write run(inp_list, check_inp, process_inp, client=distributed.Client(address)), or pass"
        " no client for a cluster of our own"
    )
    from distributed import Client

    if not isinstance(client, Client):
        raise InputError(f"client is {safe_repr(client)}; {hint}")
    if client.asynchronous:
        raise InputError(f"client is asynchronous; {hint}")
    if client.status != "running":
        raise InputError(f"client is {client.status}; {hint}")
    scheduler = client.scheduler
    is_here = scheduler is not None and str(scheduler.address).startswith("inproc://")
    if is_here and any(worker.startswith("inproc://") for worker in client.nthreads()):
        raise InputError(
            f"client is of a cluster whose workers are threads of this process; {hint}"
        )
    return client


def _check_client(call: _Call, name: str, given: Any) -> None:
    if given is not None:
        checked_client(given)


def _check_report_path(call: _Call, name: str, given: Any) -> None:
    reason = None if given is None else files.why_not(given)
    if reason is not None:
        example = repr(files.possible("report.html", files.why_not))
        raise InputError(
            f"{name} is {safe_repr(given)}, {reason}; it takes the path of the HTML file to write,"
            f" in a folder that exists: {call.written(report_path=example)}"
        )


def _check_random_state(call: _Call, name: str, given: Any) -> None:
    if not isinstance(given, (type(None), int, float, str, bytes, bytearray)):
        raise InputError(
            f"{name} is {safe_repr(given)}; it takes an int, float, str or bytes, as random.Random"
            f" does: {call.written(do_shuffle='True', random_state='1')}"
        )


_CHECKS: dict[str, Callable[[_Call, str, Any], None]] = {
    "inp_list": _check_list,
    "check_inp": _check_function_or_none,
    "process_inp": _check_process,
    "do_shuffle": _check_flag,
    "reduce_fn": _check_function_or_none,
    "combine_fn": _check_function_or_none,
    "on_error": _check_on_error,
    "max_failures": _check_max_failures,
    "retries": _check_retries,
    "timeout": _check_timeout,
    "verify": _check_flag,
    "inspect": _check_flag,
    "report_path": _check_report_path,
    "client": _check_client,
    "progress": _check_flag,
    "random_state": _check_random_state,
}


def function_name(function: Any) -> str:
    """The name that people use: of a partial the function's, of an object its type's."""
    function = _unwrapped(function)
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def length(inp_list: Any) -> int | None:
    """How many inputs there are; None where that is not known.

    A class may have a ``__len__`` that raises, as that of ``tqdm(generator)``.
    """
    try:
        return len(inp_list)
    except Exception:
        return None


def _kind_of_list(inp_list: Any) -> str:
    """Its type and length; its repr might take long."""
    n = length(inp_list)
    return type(inp_list).__name__ + ("" if n is None else f" of {n:,}")


def _described(value: Any) -> str:
    return function_name(value) if callable(value) else safe_repr(value)


def _shown(function: Any) -> str:
    return f"the function {function_name(function)}"


def _called(function: Any, name: str) -> str:
    """How it is called in an example; by the argument's name, where it has none of its own."""
    own = getattr(function, "__name__", None)
    return own if isinstance(own, str) and own.isidentifier() else name


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether `function` is of this kind, or an object that is called like one."""
    function = _unwrapped(function)
    return kind(function) or kind(type(function).__call__)


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


LEAST_MEMORY = 50 * 2**20  # bytes; an idle worker holds more


@dataclass(frozen=True)
class ClusterSettings:
    """The arguments of ``start``."""

    n_workers: int | None = None
    memory_limit: str | int | float | None = "auto"
    dashboard_address: str = "127.0.0.1:8787"

    def __str__(self) -> str:
        """As arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self).items())

    def checked(self) -> ClusterSettings:
        """With the number of workers; InputError for what cannot be used."""
        from dask.system import CPU_COUNT

        n_workers: Any = CPU_COUNT if self.n_workers is None else self.n_workers
        if not isinstance(n_workers, int) or isinstance(n_workers, bool) or n_workers < 1:
            raise InputError(
                f"n_workers is {safe_repr(n_workers)}; it takes a whole number from 1, as in"
                " start(n_workers=4), or None for one a core"
            )
        _check_memory_limit(self.memory_limit)
        _check_dashboard_address(self.dashboard_address)
        return replace(self, n_workers=n_workers)


def _check_memory_limit(memory_limit: Any) -> None:
    if memory_limit is None or memory_limit == "auto":
        return
    n_bytes = 0.0
    if isinstance(memory_limit, (int, float)) and not isinstance(memory_limit, bool):
        n_bytes = memory_limit
        if isinstance(memory_limit, float) and 0 < memory_limit <= 1:
            return  # a share of what there is
    elif isinstance(memory_limit, str):
        from dask.utils import parse_bytes

        with contextlib.suppress(ValueError):
            n_bytes = parse_bytes(memory_limit)
    if 0 < n_bytes < LEAST_MEMORY:
        meant = f"{n_bytes:g} GiB" if n_bytes < 1_000 else "4 GiB"
        raise InputError(
            f"memory_limit is {safe_repr(memory_limit)}, which is {n_bytes:,.12g} bytes for each"
            f" worker, and none can live with less than {LEAST_MEMORY // 2**20} MiB; did you mean"
            f' start(memory_limit="{meant}")?'
        )
    if not n_bytes > 0:
        raise InputError(
            f"memory_limit is {safe_repr(memory_limit)}; it takes bytes or text for each worker, as"
            ' in start(memory_limit="4 GiB"), "auto", or None for no limit'
        )


def _check_dashboard_address(address: Any) -> None:
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not colon or ":" in host or not port.isdigit() or int(port) > 65535:
        raise InputError(
            f"dashboard_address is {safe_repr(address)}; it takes host:port, as in"
            ' start(dashboard_address="127.0.0.1:8787")'
        )
    if host not in ("127.0.0.1", "localhost"):
        warnings.warn(
            f"the dashboard will listen on {address}: it has no login, and everybody who reaches it"
            ' sees your inputs; use dashboard_address="127.0.0.1:8787" and a tunnel instead',
            stacklevel=7,  # the caller of `start`, behind its front door
        )
