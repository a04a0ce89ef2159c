"""Return values of the functions: read, checked, compared; errors show the corrected line."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Awaitable, Iterable, Mapping
from functools import lru_cache, partial
from numbers import Number
from types import GeneratorType
from typing import Any, NamedTuple

from toolz import compose, first, groupby, pluck, valmap

from at_once_dask.user_code import pickling
from at_once_dask.user_code.text import safe_repr


class Pairs(NamedTuple):
    """The pairs that one input gives, as two lists: tuples would cost the most."""

    keys: list[Any]
    values: list[Any]


PAIR_HINT = "return [is_done, value], for example `return [path.exists(), None]`"
VALUE_HINT = (
    "in a map-reduce run return [is_done, value], for example `return [path.exists(),"
    " json.loads(path.read_text()) if path.exists() else None]`"
)
FLAG_HINT = "is_done is True or False, as in `return [path.exists(), None]`"
PAIRS_HINT = (
    "in a map-reduce run return a mapping or (key, value) pairs, for example "
    "`return {key: value}` or `return [(key, value)]`"
)


class InvalidReturn(Exception):
    """A function returned what it may not return; the text says what to return instead."""


class DifferentValue(InvalidReturn):
    """`check_inp` gives another value than `process_inp` did.

    A further attempt would find the input done, and take that value.
    """


def read_answer(answer: Any, reducing: bool = True) -> tuple[bool, Any]:
    """The answer of `check_inp`, or an InvalidReturn that says what to return.

    >>> read_answer([1, "value"])
    (True, 'value')
    """
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        refuse_awaitable(answer, "check_inp")
        if not reducing and _is_bool(answer):
            return bool(answer), None
        hint = VALUE_HINT if reducing else PAIR_HINT
        raise InvalidReturn(
            f"check_inp returned {safe_repr(answer)}; {_not_called(answer) or hint}"
        )
    is_done, value = answer
    if is_done is True or is_done is False:
        return is_done, value
    if is_done is None or _is_bool(is_done) or (_is_whole(is_done) and is_done in (0, 1)):
        return bool(is_done), value
    raise InvalidReturn(
        f"check_inp returned {safe_repr(is_done)} as is_done; {_not_called(is_done) or FLAG_HINT}"
    )


def _not_called(answer: Any) -> str:
    """The line to write where a method is named and not called; empty for all else."""
    if not callable(answer):
        return ""
    name = getattr(answer, "__name__", "is_done")
    owner = type(getattr(answer, "__self__", None)).__name__.lower()
    called = f"{'path' if 'path' in owner else 'it'}.{name}()"
    return f"that is a function that was not called; write `return [{called}, None]`"


def _is_bool(value: Any) -> bool:
    """Whether it is a bool, or NumPy's."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral)


def read_pairs(result: Any, who: str) -> Pairs:
    """The pairs of a mapping or an iterable of pairs, checked whole before any of them counts.

    >>> read_pairs({"a": 1}, "process_inp")
    Pairs(keys=['a'], values=[1])
    """
    refuse_awaitable(result, who)
    if isinstance(result, dict) and type(result).items is dict.items:
        pairs = Pairs(list(dict.keys(result)), list(dict.values(result)))
    elif isinstance(result, Mapping):
        pairs = _unzipped(result.items(), who)
    elif isinstance(result, Iterable) and not isinstance(result, (str, bytes)):
        pairs = _unzipped(result, who)
    else:
        raise InvalidReturn(f"{who} returned {safe_repr(result)}; {PAIRS_HINT}")
    if not pickling.are_plain(pairs.keys):
        for key in pairs.keys:
            _check_key(key, who)
    return pairs


def refuse_lazy(result: Any) -> None:
    """Refuse what looks like work but has not run."""
    refuse_awaitable(result, "process_inp")
    if inspect.isgenerator(result):
        result.close()
        raise InvalidReturn(
            "process_inp returned a generator, whose body never ran; it must do its work and save"
            " it itself: call the function with the `yield` inside a loop, or use plain `return`"
        )


@lru_cache(maxsize=16)  # few: it keeps the types, and with them their modules
def _is_never_lazy(kind: type) -> bool:
    """Whether no object of this type can be awaited, drawn from or computed: asked once a type."""
    return not (issubclass(kind, (Awaitable, GeneratorType)) or hasattr(kind, "__dask_graph__"))


def refuse_awaitable(result: Any, who: str) -> None:
    try:
        if _is_never_lazy(type(result)):  # type: ignore[arg-type]
            return
    except TypeError:  # its type cannot be hashed: neither this nor `isinstance` can tell
        return
    if hasattr(type(result), "__dask_graph__"):  # some of them can be awaited too
        raise InvalidReturn(
            f"{who} returned a {type(result).__name__} of Dask, which nobody computes; call its"
            ' compute(scheduler="sync") in there'
        )
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns later that it was never awaited
        raise InvalidReturn(
            f"{who} returned an awaitable, which nobody awaits; use asyncio.run(...) in it"
        )


def _unzipped(result: Iterable[Any], who: str) -> Pairs:
    pairs = Pairs([], [])
    for pair in result:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InvalidReturn(
                f"{who} returned an iterable with {safe_repr(pair)} in it; {PAIRS_HINT}"
            )
        key, value = pair
        pairs.keys.append(key)
        pairs.values.append(value)
    return pairs


def _check_key(key: Any, who: str) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise InvalidReturn(
            f"{who} returned the key {safe_repr(key)}, which is not hashable; use a tuple or a str"
        ) from error
    if not pickling.survives(key):
        raise InvalidReturn(
            f"{who} returned the key {safe_repr(key)}, which is not equal to itself (or not to its"
            " copy in another process), so its values could not be brought together; use a number,"
            " str, tuple, enum or frozen dataclass"
        )


_PLAIN = (str, bytes, Number, type(None), dict, list, tuple, set, frozenset)


def same_pairs(one: Iterable[tuple[Any, Any]], other: Iterable[tuple[Any, Any]]) -> bool:
    """Whether both give the same values for the same keys; the order of the keys does not matter.

    >>> same_pairs([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]), same_pairs([(1, 2)], [("1", 2)])
    (True, False)
    """
    return same(_grouped(one), _grouped(other))


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = valmap(compose(list, partial(pluck, 1)), groupby(first, pairs))
    return groups


def same(one: Any, other: Any) -> bool:
    """Whether nothing tells them apart; where nobody can say, they count as the same.

    >>> same((1, 2), [1, 2]), same([float("nan")], [float("nan")]), same(1, 1.0)
    (False, True, True)
    """
    try:
        return _same(one, other)
    except Exception:  # too deep, or an `==` that raises: no reason to cry wolf
        return True


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Number) and isinstance(other, Number):
        return bool(one == other) or (one != one and other != other)  # NaN
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if any(isinstance(one, kind) and isinstance(other, kind) for kind in (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is type(other):
        return _are_alike(one, other)
    if isinstance(one, _PLAIN) or isinstance(other, _PLAIN):
        return bool(one == other)
    return True  # nobody can say


def _are_alike(one: Any, other: Any) -> bool:
    """Compare two of one type by its ``==``, if it has one; frames and arrays have other words."""
    if hasattr(one, "equals"):
        return bool(one.equals(other))
    if hasattr(one, "__array__"):
        return bool(_arrays_are_equal(one, other))
    if vars(object)["__eq__"] is type(one).__eq__:
        return True  # nobody can say
    return bool(one == other)


def _arrays_are_equal(one: Any, other: Any) -> bool:
    import numpy as np

    try:
        return np.array_equal(one, other, equal_nan=True)
    except TypeError:  # of objects
        return np.array_equal(one, other)
