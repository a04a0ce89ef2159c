"""The driver's loop, with workers that are not there."""

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
