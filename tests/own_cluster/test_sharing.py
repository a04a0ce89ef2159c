"""Large things that the functions hold: once on this host, and private all the same."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import mapped_from

import at_once_dask
from at_once_dask.protocol import host_files

run: Any = at_once_dask.run
N = 2**21  # numbers: 16 MiB


def shared_files() -> list[str]:
    """Those that this process holds."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the one that lists them
            continue
    return [name for name in found if "memfd:at_once_dask" in name]


class Holder:
    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def look(self, inp: int) -> list[tuple[str, Any]]:
        return seen(self.array, inp)


def seen(array: np.ndarray[Any, Any], inp: int) -> list[tuple[str, Any]]:
    """What is there, and where; each input writes its own number into it afterwards."""
    found = [("sum", int(array[100:].sum())), ("where", mapped_from(array))]
    array[:100] += inp
    return found


@pytest.mark.parametrize("held", ["closure", "partial", "method"])
def test_an_array_is_there_once_and_what_is_written_stays_private(
    cluster: Client, held: str
) -> None:
    array = np.ones(N, dtype=np.int64)
    functions = {
        "closure": lambda inp: seen(array, inp),
        "partial": partial(seen, array),
        "method": Holder(array).look,
    }
    for _ in range(2):
        found = run(range(10), None, functions[held], reduce_fn=set, progress=False)
        assert found["sum"] == {N - 100}
        (where,) = found["where"]
        assert "memfd:at_once_dask" in where
    assert array.sum() == N
    assert shared_files() == []


def test_small_ones_and_those_in_pieces_cross_as_ever(cluster: Client) -> None:
    small, pieces = np.ones(1_000), np.ones((2_000, 2_000))[:, ::2]

    def look(inp: int) -> list[tuple[str, float]]:
        return [("small", float(small.sum())), ("pieces", float(pieces.sum()))]

    found = run(range(4), None, look, reduce_fn=set, progress=False)
    assert dict(found) == {"small": {1_000.0}, "pieces": {2_000_000.0}}


def test_what_cannot_be_written_to_stays_so(cluster: Client) -> None:
    array = np.ones(N)
    array.flags.writeable = False

    def look(inp: int) -> dict[str, bool]:
        return {"writeable": bool(array.flags.writeable)}

    assert run(range(4), None, look, reduce_fn=set, progress=False)["writeable"] == {False}


def test_where_there_is_no_space_each_worker_gets_a_copy_and_the_log_says_so(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host_files, "SharedFile", full)
    array = np.ones(N, dtype=np.int64)
    found = run(range(4), None, partial(seen, array), reduce_fn=set, progress=False)
    assert found["sum"] == {N - 100}
    warnings = at_once_dask.read_log().query("level == 'WARNING'")["msg"].tolist()
    assert len(warnings) == 1
    assert "each worker gets a copy of the 16." in warnings[0]


def test_it_counts_in_no_workers_memory(folder: Path) -> None:
    """A worker that may have less than the array is not ended for what all hold together."""
    at_once_dask.close()
    at_once_dask.start(2, memory_limit="350 MiB", dashboard_address="127.0.0.1:0")
    array = np.ones(50 * 2**20)  # 400 MiB
    try:
        found = run(
            range(4), None, lambda inp: {"sum": float(array.sum())}, reduce_fn=set, progress=False
        )
    finally:
        at_once_dask.close()
    assert found["sum"] == {float(50 * 2**20)}


def test_large_inputs_leave_no_file_however_their_worker_ends(cluster: Client) -> None:
    inputs = [bytes([n]) * 2**20 for n in range(30)]

    def process(inp: bytes) -> dict[str, int]:
        if inp[0] == 17:
            os._exit(3)
        return {"sum": inp[0] + len(inp)}

    found = run(inputs, None, process, reduce_fn=sum, on_error="return", progress=False)
    assert found["sum"] == sum(n + 2**20 for n in range(30) if n != 17)
    assert found.report.failures["kind"].tolist() == ["crash"]
    assert shared_files() == []
