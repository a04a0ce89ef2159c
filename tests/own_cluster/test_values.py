"""Values on their way to the reduction: where they lie, and that none gets lost or mixed up."""

from __future__ import annotations

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
