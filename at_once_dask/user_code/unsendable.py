"""Functions that cannot be sent: the variable to blame, by its name, and what to pass instead."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle.cloudpickle

from at_once_dask.errors import InputError
from at_once_dask.user_code import main_module
from at_once_dask.user_code.text import first_line

DEPTH = 8  # of helpers that use helpers


def pickled(functions: Mapping[str, Any]) -> main_module.Pickled:
    """As `main_module.pickled`; a function that cannot be pickled is bad input."""
    try:
        return main_module.pickled(tuple(functions.values()))
    except Exception as error:
        raise InputError(_explained(functions, error)) from error


def heaviest(functions: Mapping[str, Any]) -> str:
    """The function and the variable that make them large, by their names."""
    sizes = [(0, "", "")]
    for given, function in functions.items():
        for name, used in _uses(function):
            with contextlib.suppress(Exception):  # as a part of something else it can be pickled
                sizes.append((main_module.size(used), given, name))
    _, function, name = max(sizes)
    return f"{function} takes `{name}` along" if name else "the functions take much along"


def _explained(functions: Mapping[str, Any], error: Exception) -> str:
    """Which function it is, and which of the variables that it uses."""
    for given, function in functions.items():
        reason = _reason(function)
        if reason is not None:
            path = [given, *_path(function, DEPTH, set())]
            break
    else:
        path, reason = ["what the functions share"], error
    uses = ", which uses ".join(f"`{name}`" for name in path[1:])
    what = f"{path[0]} uses {uses}, which cannot be" if uses else f"{path[0]} cannot be"
    return (
        f"{what} sent to the workers: {type(reason).__name__}: {first_line(str(reason))};"
        f" {_advice(path)}, and call run(inp_list, check_inp, process_inp) again"
    )


def _advice(path: list[str]) -> str:
    if "get_ipython" in path:
        return (
            "`!` and `%` work in the notebook's own process only: use subprocess.run([...]) in the"
            " function"
        )
    if len(path) == 1:
        return "create files, locks and connections inside the function, not outside of it"
    name = path[-1]
    return (
        f"make `{name}` inside the function (a file, lock or connection: once a worker with"
        f" `@functools.cache def get_{name.rpartition('.')[2]}(): ...`)"
    )


def _reason(value: Any) -> Exception | None:
    """Why it cannot be pickled; None when it can."""
    try:
        main_module.size(value)
    except Exception as error:
        return error
    return None


def _path(value: Any, depth: int, seen: set[int]) -> list[str]:
    """The names that lead from a function to what cannot be pickled."""
    if depth:
        seen.add(id(value))
        for name, used in _uses(value):
            if id(used) not in seen and _reason(used) is not None:
                return [name, *_path(used, depth - 1, seen)]
    return []


def _uses(value: Any) -> Iterator[tuple[str, Any]]:
    """The variables that go along with a function or another callable, by name."""
    if isinstance(value, functools.partial):
        names = getattr(getattr(value.func, "__code__", None), "co_varnames", ())
        yield from [("func", value.func), *_named(names, value.args), *value.keywords.items()]
    elif isinstance(value, MethodType):
        yield from ((f"self.{name}", part) for name, part in _attributes(value.__self__).items())
        yield from [(type(value.__self__).__name__, value.__self__), ("func", value.__func__)]
    elif isinstance(value, FunctionType):
        yield from _variables(value)
    elif isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):
        yield wrapped.__name__, wrapped
    elif isinstance(value, type) and value.__module__ == "__main__":
        yield from ((f"{value.__name__}.{name}", part) for name, part in vars(value).items())
    elif not isinstance(value, (ModuleType, type)) and hasattr(value, "__call__"):  # noqa: B004
        yield from ((f"self.{name}", part) for name, part in _attributes(value).items())
        yield type(value).__name__, type(value)


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    names = cloudpickle.cloudpickle._extract_code_globals(function.__code__)
    known = function.__globals__
    yield from ((name, known[name]) for name in names if name in known)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield name, cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    code, defaults = function.__code__, function.__defaults__ or ()
    first = code.co_argcount - len(defaults)
    yield from _named(code.co_varnames[first:], defaults)
    yield from (function.__kwdefaults__ or {}).items()


def _named(names: tuple[str, ...], values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for n, value in enumerate(values):
        yield names[n] if n < len(names) else f"argument {n + 1}", value


def _attributes(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})
