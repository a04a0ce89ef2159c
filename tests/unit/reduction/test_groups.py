"""Values by key, in the order of the list; those that are large lie in a file."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from at_once_dask.protocol.function_results import Pairs
from at_once_dask.protocol.progress_file import ProgressFile
from at_once_dask.protocol.task import Group, Piece, Place
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
        (
            group.key,
            [
                value
                for blob in group.blobs
                for value in (blob.load() if isinstance(blob, Place) else pickling.loads(blob))
            ],
        )
        for group in groups
    ]


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
