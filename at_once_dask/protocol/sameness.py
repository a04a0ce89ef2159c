"""Whether two values are the same for all that follows: also arrays, NaN, and plain objects."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number
from typing import Any

_PLAIN = (str, bytes, Number, type(None), dict, list, tuple, set, frozenset)


def same_pairs(one: Iterable[tuple[Any, Any]], other: Iterable[tuple[Any, Any]]) -> bool:
    """Whether both give the same values for the same keys; the order of the keys does not matter.

    >>> same_pairs([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]), same_pairs([(1, 2)], [("1", 2)])
    (True, False)
    """
    return same(_grouped(one), _grouped(other))


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
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
    """Of one type, whose ``==`` says so, if it has one; frames and arrays have other words."""
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
