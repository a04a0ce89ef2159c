"""The activity of workers, and the input that runs longest, read from real progress files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from clock import Clock

from at_once_dask.driver.flights import InFlight
from at_once_dask.driver.inputs import Chunk
from at_once_dask.live.activity import activities
from at_once_dask.live.progress_bar import Slowest
from at_once_dask.protocol.events import Running
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.status import PROCESS


class Named:
    """An input whose `repr` is the user's code."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_named = 0

    def __repr__(self) -> str:
        self.n_named += 1
        return self.name


class AtWork:
    """Workers that are at one input a partition, each for so long."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._flights: list[InFlight] = []

    def begin(self, worker: str, id: str, inp: Any, seconds: float) -> None:
        position = len(self._flights)
        with self._monkeypatch.context() as patch:
            at = time.monotonic() - seconds
            patch.setattr(time, "monotonic", lambda: at)
            file = self.progress_folder(worker).create(id, position, 1)
            assert file.begin(position)
            file.note(PROCESS)
        chunk = Chunk(position, [inp])
        self._flights.append(InFlight(id, chunk, worker, "", 0.0, chunk.stop))

    def workers(self) -> list[str]:
        return ["one", "two", "three"]

    waits = 0.0

    def in_flight(self) -> list[InFlight]:
        return self._flights

    def progress_folder(self, worker: str) -> ProgressFolder:
        return ProgressFolder(str(self._folder), "run", worker)


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AtWork:
    """A worker with three threads, and one with a single one; the third has nothing."""
    at_work = AtWork(tmp_path, monkeypatch)
    at_work.begin("one", "a", Named("short"), 1)
    at_work.begin("one", "b", Named("longest"), 300)
    at_work.begin("one", "c", Named("long"), 200)
    at_work.begin("two", "d", Named("other"), 100)
    return at_work


def test_a_worker_with_threads_shows_what_runs_longest(at_work: AtWork) -> None:
    found = {seen.worker: seen.current for seen in activities(at_work)}
    assert {w: current and current.inp.name for w, current in found.items()} == {
        "one": "longest",
        "two": "other",
        "three": None,
    }


def test_only_the_slowest_is_named_and_once(at_work: AtWork) -> None:
    clock = Clock(0.0)
    slowest = Slowest(clock)
    slowest.look(at_work)
    assert slowest.text(80) == ""  # it is too soon for a look
    for _ in range(5):
        clock.now += 1.5
        slowest.look(at_work)
        assert slowest.text(80).startswith(", slowest: longest in process for 5:0")
    named = {flight.chunk.inputs[0].name: flight.chunk.inputs[0] for flight in at_work.in_flight()}
    assert {name: inp.n_named for name, inp in named.items()} == {
        "short": 0,
        "longest": 1,
        "long": 0,
        "other": 0,
    }


def test_what_workers_of_other_hosts_report_counts_too(at_work: AtWork) -> None:
    clock = Clock(0.0)
    slowest = Slowest(clock)
    clock.now += 1.5
    slowest.look(at_work)
    slowest.note(Running("far", 400.0, "check", "'far away'"))
    assert slowest.text(80) == ", slowest: 'far away' in check for 6:40"
    clock.now += 5
    assert slowest.text(80) == ""  # nothing was seen for some time
