"""Keys by number, and values that are numbers: as arrays, which are sorted and cross at once.

On a worker as in the driver. A map-reduce of words spends all its time between the two.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

ITEM_BYTES = 8  # of each array here
_CODES: dict[Any, str] = {int: "q", float: "d"}


class KeyNumbers(dict[Any, int]):
    """Gives each key that it has not seen the next number; `order` has the keys by number."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[Any] = []

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self.order)
        self.order.append(key)
        return number


def of_values(values: list[Any]) -> array[Any] | None:
    """The values, where all are ``int`` of 64 bits, or all ``float``, and nothing else."""
    kinds = set(map(type, values))
    code = _CODES.get(kinds.pop()) if len(kinds) == 1 else None
    if code is None:
        return None
    try:
        return array(code, values)
    except OverflowError:
        return None


def grouping(numbers: Any, n: int) -> Any:
    """The order of places that brings equal `numbers`, all below `n`, together, and keeps theirs.

    Sixteen bits are sorted by radix: ten times as fast.
    """
    few = n <= 2**16
    return np.argsort(numbers.astype(np.uint16) if few else numbers, kind="stable")


def taken(values: Any, places: Any) -> bytes:
    """The values at these places."""
    raw: bytes = np.asarray(values)[places].tobytes()
    return raw
