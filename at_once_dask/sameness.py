"""Whether two values are the same for all that follows: also arrays, NaN, and plain objects."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from at_once_dask import pickles

_EXACT = (str, bytes, int, bool, type(None))


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
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return bool(one == other) or (math.isnan(one) and math.isnan(other))
    if type(one) is not type(other):
        return _are_equal(one, other) and not isinstance(one, (tuple, list, set, frozenset))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return _are_equal(one, other) or (type(one) not in _EXACT and _made_the_same(one, other))


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array has no single answer
        return False


def _made_the_same(one: Any, other: Any) -> bool:
    """Whether they are pickled alike: where ``==`` is not defined, or answers for each element."""
    return pickles.dumps(one) == pickles.dumps(other) or _same(
        one.__reduce_ex__(4)[1:3], other.__reduce_ex__(4)[1:3]
    )
