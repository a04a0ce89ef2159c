"""Values by key, in the order of the list; those that are large lie in a file."""

from __future__ import annotations

import os
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest

from at_once_dask.protocol.function_results import Pairs
from at_once_dask.protocol.progress_file import ProgressFile
from at_once_dask.protocol.task import Group, Numbers, Piece, Place
from at_once_dask.reduction.groups import Groups
from at_once_dask.reduction.map_side import FILED_BYTES, Lists, alone
from at_once_dask.user_code import pickling
from at_once_dask.worker.partition_run import _no_more_than


def piece(*pairs: tuple[Any, Any], values_file: str | None = None) -> Piece:
    gathered = Lists()
    keys, values = zip(*pairs, strict=True)
    gathered.add(ProgressFile(0, 1), 0, Pairs(list(keys), list(values)))
    return gathered.close(values_file)


def read(groups: Groups) -> list[tuple[Any, list[Any]]]:
    return [
        (group.key, [value for blob in group.blobs for value in opened(blob)]) for group in groups
    ]


def opened(blob: bytes | Place | Numbers) -> list[Any]:
    if isinstance(blob, Place):
        return list(blob.load())
    return array(*blob).tolist() if isinstance(blob, tuple) else list(pickling.loads(blob))


@pytest.mark.parametrize("spill_bytes", [0, 30, 10**9])
def test_groups_in_the_order_of_the_list_however_pieces_arrive(spill_bytes: int) -> None:
    groups = Groups(spill_bytes)
    groups.add(20, piece((True, "d"), ("x", "e")))
    groups.add(0, piece((1, "a"), ("y", "b"), (1, "c")))
    groups.add(30, piece(("y", "f"), (1.0, "g")))

    found = read(groups)

    assert found == [(1, ["a", "c", "d", "g"]), ("y", ["b", "f"]), ("x", ["e"])]
    assert [type(key) for key, _ in found] == [int, str, str]
    assert len(groups) == 3
    groups.close()


def test_the_first_of_equal_keys_of_a_piece_that_comes_late() -> None:
    late = pickling.loads(alone(Pairs([1, True, 1.0], ["a", "b", "c"]), combining=True))
    groups = Groups()
    groups.add(9, piece((True, "d")))
    groups.add(0, late)
    assert [type(group.key) for group in groups] == [int]


def test_keys_are_folded_together_up_to_so_many_bytes() -> None:
    groups = [Group(n, [bytes(size)]) for n, size in enumerate([3, 4, 100, 1])]
    assert [len(_no_more_than(most, groups)) for most in (1, 3, 7, 106, 107, 999)] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]


def test_groups_of_nothing() -> None:
    assert len(Groups()) == 0
    assert list(Groups()) == []


def test_a_file_holds_what_is_too_much(tmp_path: Path) -> None:
    values = [(n, bytes([n]) * (FILED_BYTES // 2)) for n in range(5)]
    path = str(tmp_path / "values")
    filed = piece(*values, values_file=path)
    assert filed.data == path
    assert filed.n_bytes == os.path.getsize(path)
    groups = Groups()
    groups.add(0, filed)
    groups.add(1, piece((0, b"more")))
    assert read(groups) == [
        (0, [values[0][1], b"more"]),
        *[(n, [value]) for n, value in values[1:]],
    ]


def test_small_values_are_put_into_no_file(tmp_path: Path) -> None:
    """There may be many of them, but each is too small to be worth a look into a file."""
    path = str(tmp_path / "values")
    small = piece(*[(n, bytes(100)) for n in range(FILED_BYTES // 50)], values_file=path)
    assert isinstance(small.data, bytes)
    assert not os.path.exists(path)


def test_a_file_that_fails_is_not_left(tmp_path: Path) -> None:
    path = str(tmp_path / "values")
    with pytest.raises(TypeError):
        piece(*[(n, bytes(FILED_BYTES)) for n in range(3)], (3, threading.Lock()), values_file=path)
    assert not os.path.exists(path)


# ----- numbers


@pytest.mark.parametrize("n_keys", [2**16, 2**16 + 1])
def test_arrays_of_many_pieces_are_sorted_as_one(n_keys: int) -> None:
    """Pieces come in any order, and one in which nothing was given changes nothing."""
    groups = Groups()
    groups.add(n_keys, Lists().close())
    for start in (n_keys // 2, 2 * n_keys, 0):
        pairs = [(key, start + key) for key in range(start, start + n_keys // 2 + 1)]
        groups.add(start, piece(*pairs, (0, start)))
    blobs = [len(group.blobs) for group in groups]
    assert set(blobs) == {1}
    expected: dict[int, list[int]] = {}
    for start in (0, n_keys // 2, 2 * n_keys):
        for key in (*range(start, start + n_keys // 2 + 1), 0):
            expected.setdefault(key, []).append(start if key == 0 else start + key)
    assert read(groups) == list(expected.items())


@pytest.mark.parametrize("spill_bytes", [0, 30, 10**9])
@pytest.mark.parametrize(
    "values",
    [
        [1, -2, 3, 2**63 - 1, -(2**63), 0],
        [0.5, -0.0, float("inf"), 1e-310, 2.0, -3.5],
        [1, 2, 2**63, 4, 5, 6],  # too large for an array
        [1, 2.0, 3, 4, 5, 6],  # of two kinds
        [True, False, True, True, False, True],  # no int, for all that
        [1, True, 2, 3, 4, 5],
    ],
    ids=["int", "float", "large", "mixed", "bool", "int and bool"],
)
def test_numbers_come_back_as_they_were(spill_bytes: int, values: list[Any]) -> None:
    """Whatever a piece makes of them; also beside pieces of another kind."""
    a, b, c, d, e, f = values
    groups = Groups(spill_bytes)
    groups.add(10, piece(("y", e), ("x", f), ("x", None)))
    groups.add(0, piece(("x", a), ("y", b), ("x", c), ("z", d)))
    groups.add(20, piece(("z", a), ("y", b)))
    expected = [("x", [a, c, f, None]), ("y", [b, e, b]), ("z", [d, a])]
    for _ in range(2):  # they may be wanted again
        found = read(groups)
        assert repr(found) == repr(expected)  # -0.0 is not 0.0, nor True 1
    groups.close()


def test_only_plain_numbers_are_an_array() -> None:
    class Count(int):
        pass

    kinds: dict[str, list[Any]] = {
        "q": [1, 2],
        "d": [1.0, 2.0],
        "": [Count(1), 2],
        "bool": [True, 1],
        "none": [None, 1],
        "large": [2**70, 1],
    }
    found = {name: piece(*zip("ab", values, strict=True)).code for name, values in kinds.items()}
    assert found == {"q": "q", "d": "d", **dict.fromkeys(("", "bool", "none", "large"), "")}
    assert piece(("a", 1), ("b", 2), ("a", 3)).n_bytes == 24


def test_very_many_numbers_of_few_keys_lie_in_a_file(tmp_path: Path) -> None:
    """They need not pass through the driver."""
    n = FILED_BYTES // 2
    filed = piece(*((k % 2, k) for k in range(n)), values_file=str(tmp_path / "values"))
    assert filed.data == str(tmp_path / "values")
    groups = Groups()
    groups.add(0, filed)
    assert read(groups) == [(0, list(range(0, n, 2))), (1, list(range(1, n, 2)))]
