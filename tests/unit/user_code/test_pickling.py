"""A class that the other side cannot import is found in a pickle, whatever data is around it."""

from __future__ import annotations

import pickle
import sys
from array import array
from typing import Any

import numpy as np
import pandas as pd
import pytest

from at_once_dask.user_code import pickling
from at_once_dask.user_code.pickling import DATA_BYTES

FRAME = 2**16  # what pickle aims at


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of the script, which the other side cannot import."""
    point = type("Point", (), {"x": 7, "__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Point", point, raising=False)
    return point


@pytest.mark.parametrize("size", [0, 100, FRAME - 1, FRAME, DATA_BYTES, 3 * DATA_BYTES])
@pytest.mark.parametrize("kind", [bytes, bytearray, str])
def test_a_class_is_found_behind_and_before_large_data(
    point: type, size: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crosses by value: the class comes back although its module is nowhere."""
    data = "d" * size if kind is str else kind(size)
    pickled = pickling.dumps([data, point, data, point(), data])
    monkeypatch.delattr(sys.modules["__main__"], "Point")
    first, found, _, instance, last = pickling.loads(pickled)
    assert first == last == data
    assert (found.x, type(instance)) == (7, found)


def test_no_frame_is_as_large_as_what_counts_as_data() -> None:
    """The largest there can be: almost a frame, and then the longest text that goes into one."""
    pieces = pickling._Pieces()
    filling = ["x" * n for n in (*[100] * 600, *range(FRAME - 40, FRAME))]
    pickle.Pickler(pieces, protocol=5).dump([(text, FRAME * "y") for text in filling])
    framed = [len(piece) for piece in pieces if b"y" * FRAME not in piece]
    assert max(framed) > FRAME
    assert max(framed) < DATA_BYTES


def test_a_class_beside_a_huge_int(point: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which lies in a frame, whatever its size: that frame is looked through, too."""
    n = 1 << 3_000_000
    assert len(pickle.dumps(n)) > DATA_BYTES
    pickled = pickling.dumps([point(), n])
    monkeypatch.delattr(sys.modules["__main__"], "Point")
    instance, found = pickling.loads(pickled)
    assert (instance.x, found == n) == (7, True)


@pytest.mark.parametrize("size", [10, DATA_BYTES])
def test_data_that_mentions_a_module_is_data(size: int) -> None:
    """Large, it is not looked through; small, it costs a second pickling, and is right too."""
    data = [b"__main__" * size]
    pickled = pickling.dumps(data)
    assert pickling.loads(pickled) == data
    assert pickled == pickle.dumps(data, protocol=5)


@pytest.mark.parametrize("size", [10, 300, 1_000])
@pytest.mark.parametrize(
    "made",
    [
        lambda n: np.arange(n * n).reshape(n, n),
        lambda n: np.asfortranarray(np.arange(n * n).reshape(n, n)),
        lambda n: np.arange(n * n).reshape(n, n)[:, ::2],
        lambda n: np.arange(n * n).reshape(n, n).T,
        lambda n: pd.DataFrame({"x": np.arange(n * n), "y": "text"}),
        lambda n: np.array([None, {1: 2}] * n, dtype=object),
        lambda n: array("d", range(n * n)),
    ],
    ids=["rows", "columns", "strided", "transposed", "frame", "objects", "array"],
)
def test_arrays(point: type, made: Any, size: int) -> None:
    """Their memory is a piece that is no bytes; beside a class of the script they cross, too."""
    value = made(size)
    alone = pickling.loads(pickling.dumps(value))
    beside, _ = pickling.loads(pickling.dumps([value, point]))
    for one in (alone, beside):
        assert type(one) is type(value)
        assert pickle.dumps(one) == pickle.dumps(pickle.loads(pickle.dumps(value)))


def test_small_values_are_what_pickle_makes_of_them() -> None:
    for value in (None, 1, "text", [1, 2], {"a": b"b"}, list(range(100_000))):
        assert pickling.dumps(value) == pickle.dumps(value, protocol=5)
