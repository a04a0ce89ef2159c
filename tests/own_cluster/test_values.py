"""Values on their way to the reduction: where they lie, and that none gets lost or mixed up."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deaths
import pytest
from distributed import Client
from helpers import oracle, same

import at_once_dask
from at_once_dask.cluster import connect
from at_once_dask.protocol.progress_file import ProgressFile
from at_once_dask.protocol.return_values import Pairs
from at_once_dask.protocol.task import Group, Piece, Place
from at_once_dask.reduction.groups import Groups
from at_once_dask.reduction.map_side import FILED_BYTES, Lists, alone
from at_once_dask.user_code import pickling
from at_once_dask.worker.partition_run import _no_more_than

run: Any = at_once_dask.run

MEGABYTE = 2**20


def large(n: int) -> list[tuple[str, bytes]]:
    """Two values of a megabyte, each unlike all others."""
    return [
        (f"{n % 3}", n.to_bytes(8, "big") * 2**17),
        ("all", (-n - 1).to_bytes(8, signed=True) * 2**17),
    ]


def digest(values: list[bytes]) -> list[int]:
    """What tells the values and their order."""
    assert all(value == value[:8] * 2**17 for value in values)
    return [int.from_bytes(value[:8], "big") for value in values]


def values_folder() -> list[Path]:
    """The files with values that there are."""
    assert connect._own is not None
    return list(Path(connect._own.scratch).glob("values-*/*"))


def expected(inputs: Any) -> dict[str, list[int]]:
    return oracle(inputs, large, digest)


@pytest.fixture(autouse=True)
def _no_shelf_left(cluster: Client) -> Iterator[None]:
    yield
    assert connect._own is not None
    assert not list(Path(connect._own.scratch).glob("values-*"))


def test_large_values_lie_in_files_that_workers_read(cluster: Client, folder: Path) -> None:
    assert connect._own is not None
    scratch = connect._own.scratch

    def reduce(values: list[bytes]) -> list[int]:
        (folder / f"seen {len(list(Path(scratch).glob('values-*/*')))}").touch()
        return digest(values)

    assert same(
        dict(run(range(30), None, large, reduce_fn=reduce, progress=False)), expected(range(30))
    )
    assert not (folder / "seen 0").exists()


def test_where_no_file_can_be_made_values_cross(cluster: Client) -> None:
    assert connect._own is not None
    scratch = connect._own.scratch

    def take_away(n: int) -> list[tuple[str, bytes]]:
        for found in Path(scratch).glob("values-*"):
            shutil.rmtree(found, ignore_errors=True)
        return large(n)

    result = run(range(30), None, take_away, reduce_fn=digest, progress=False)
    assert same(dict(result), expected(range(30)))


def test_large_values_and_deaths(cluster: Client) -> None:
    def work(n: int) -> list[tuple[str, bytes]]:
        if n in (3, 17, 29):
            deaths.sigkill()
        return large(n)

    result = run(range(30), None, work, reduce_fn=digest, on_error="return", progress=False)
    assert result.report.failures.index.tolist() == [3, 17, 29]
    assert same(dict(result), expected(sorted(set(range(30)) - {3, 17, 29})))


def test_a_large_value_that_cannot_be_pickled(cluster: Client) -> None:
    def work(n: int) -> list[tuple[str, Any]]:
        return [*large(n), ("all", threading.Lock())] if n == 11 else large(n)

    result = run(range(30), None, work, reduce_fn=digest, on_error="return", progress=False)
    assert result.report.failures[["stage", "error"]].to_numpy().tolist() == [
        ["collect", "TypeError"]
    ]
    assert result.report.failures.index.tolist() == [11]
    assert same(dict(result), expected(sorted(set(range(30)) - {11})))


def test_large_totals_of_a_combiner_one_of_which_cannot_be_pickled(cluster: Client) -> None:
    def work(n: int) -> list[tuple[int, bytes]]:
        return [(key, bytes([n]) * MEGABYTE) for key in range(4)]

    def combine(a: Any, b: Any) -> Any:
        return (lambda: None).__code__.co_consts if a is None else max(a, b)

    def unpicklable(a: Any, b: Any) -> Any:
        return threading.Lock() if a[:0] == b"" and len(a) == MEGABYTE + 1 else max(a, b)

    good = run(range(20), None, work, combine_fn=combine, progress=False)
    assert dict(good) == {key: bytes([19]) * MEGABYTE for key in range(4)}

    def one_longer(n: int) -> list[tuple[int, bytes]]:
        return [(key, bytes([n]) * (MEGABYTE + (key == 2))) for key in range(4)]

    bad = run(
        range(20), None, one_longer, combine_fn=unpicklable, on_error="return", progress=False
    )
    assert dict(bad) == {key: bytes([19]) * MEGABYTE for key in (0, 1, 3)}
    assert bad.report.failures["key"].tolist() == [2]
    assert bad.report.n_failed == 0


# ----- without a cluster


def piece(*pairs: tuple[Any, Any], values_file: str | None = None) -> Piece:
    gathered = Lists()
    keys, values = zip(*pairs, strict=True)
    gathered.add(ProgressFile(0, 1), 0, Pairs(list(keys), list(values)))
    return gathered.close(values_file)


def read(groups: Groups) -> list[tuple[Any, list[Any]]]:
    import pickle

    return [
        (
            group.key,
            [
                value
                for blob in group.blobs
                for value in (blob.load() if isinstance(blob, Place) else pickle.loads(blob))
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


def test_a_shelf_holds_what_is_too_much(tmp_path: Path) -> None:
    values = [(n, bytes([n]) * (FILED_BYTES // 2)) for n in range(5)]
    path = str(tmp_path / "shelf")
    shelved = piece(*values, values_file=path)
    assert shelved.data == path
    assert shelved.n_bytes == os.path.getsize(path)
    groups = Groups()
    groups.add(0, shelved)
    groups.add(1, piece((0, b"more")))
    assert read(groups) == [
        (0, [values[0][1], b"more"]),
        *[(n, [value]) for n, value in values[1:]],
    ]


def test_small_values_are_not_shelved(tmp_path: Path) -> None:
    """There may be many of them, but each is too small to be worth a look into a file."""
    path = str(tmp_path / "shelf")
    small = piece(*[(n, bytes(100)) for n in range(FILED_BYTES // 50)], values_file=path)
    assert isinstance(small.data, bytes)
    assert not os.path.exists(path)


def test_a_shelf_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = str(tmp_path / "shelf")
    with pytest.raises(TypeError):
        piece(*[(n, bytes(FILED_BYTES)) for n in range(3)], (3, threading.Lock()), values_file=path)
    assert not os.path.exists(path)
