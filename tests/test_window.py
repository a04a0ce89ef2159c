"""The driver's loop: what it sends, also to workers that are not there."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import statuses

import at_once_dask
from at_once_dask import engine
from at_once_dask.cluster import Worker
from at_once_dask.crew import InlineCrew
from at_once_dask.flow import Partition


class Losing(InlineCrew):
    """The first worker takes what is sent to it, and is gone; nobody ever tells of it."""

    def __init__(self, this: Any) -> None:
        super().__init__(this.job, this.book)
        self.lost: list[Partition] = []

    def workers(self) -> dict[str, Worker]:
        if len(self.lost) == 2:
            return super().workers()
        return {"gone": Worker(1, paused=False, scratch="", nanny=None)}

    def send(self, worker: str, partition: Partition) -> None:
        if worker == "gone":
            self.lost.append(partition)
        else:
            super().send(worker, partition)


def test_all_partitions_of_a_lost_worker_are_settled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_crew", Losing)
    report = at_once_dask.run(range(40), None, lambda n: None, progress=False)
    assert statuses(report) == ["processed"] * 40


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Partition]:
    """What goes to this process, which stands for two workers."""
    partitions: list[Partition] = []

    class Noting(InlineCrew):
        def send(self, worker: str, partition: Partition) -> None:
            partitions.append(partition)
            super().send(worker, partition)

    monkeypatch.setattr(engine, "_crew", lambda this: Noting(this.job, this.book, threads=2))
    return partitions


def nothing(inp: Any) -> None:
    """The smallest `process_inp`."""


def test_what_all_inputs_share_does_not_count_for_each(sent: list[Partition]) -> None:
    shared = bytes(9 * 2**20)
    report = at_once_dask.run([(shared, n) for n in range(2_000)], None, nothing, progress=False)
    assert report.n_processed == 2_000
    assert len(sent) < 40


@pytest.mark.parametrize("large_first", [True, False])
def test_large_inputs_are_not_pickled_all_together(
    sent: list[Partition], large_first: bool
) -> None:
    inputs = [b"small"] * 200 + [bytes([n]) * 2**20 for n in range(60)]
    report = at_once_dask.run(
        sorted(inputs, key=len, reverse=large_first), None, nothing, progress=False
    )
    assert report.n_processed == 260
    assert max(sum(map(len, partition.packs)) for partition in sent) < 10 * 2**20


def test_failures_that_are_allowed_cost_no_partition_each(sent: list[Partition]) -> None:
    def work(n: int) -> None:
        if n % 2:
            raise ValueError(n)

    report = at_once_dask.run(
        range(4_000), None, work, max_failures=10_000, on_error="return", progress=False
    )
    assert (report.n_failed, report.n_processed) == (2_000, 2_000)
    assert len(sent) < 40
