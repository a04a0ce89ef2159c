"""The driver's loop: what it sends, also to workers that are not there."""

from __future__ import annotations

from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

import pytest
from helpers import statuses

import at_once_dask
from at_once_dask import call
from at_once_dask.cluster.own import Worker
from at_once_dask.driver import dispatcher
from at_once_dask.driver.backend import Broken, Died, Event
from at_once_dask.driver.blame import Death
from at_once_dask.driver.dask_backend import InlineBackend
from at_once_dask.protocol.task import Partition


class Losing(InlineBackend):
    """The first worker takes what is sent to it, and is gone; nobody ever tells of it."""

    def __init__(self, this: Any) -> None:
        super().__init__(this.job, this.run_log)
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
    monkeypatch.setattr(call, "_crew", Losing)
    report = at_once_dask.run(range(40), None, lambda n: None, progress=False)
    assert statuses(report) == ["processed"] * 40


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is waited for comes after hundredths of a second."""
    monkeypatch.setattr(dispatcher, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher, "BLINK_SECONDS", 0.2)
    monkeypatch.setattr(dispatcher, "NEWS_SECONDS", 0.2)
    monkeypatch.setattr(dispatcher, "SLOW_SECONDS", 2.0)


class Looks(InlineBackend):
    """Each look at the workers shows what `look` makes of the one there is."""

    def __init__(self, this: Any) -> None:
        super().__init__(this.job, this.run_log)
        self.looks = 0

    def workers(self) -> dict[str, Worker]:
        self.looks += 1
        there = super().workers()
        return {address: worker for address, w in there.items() if (worker := self.look(w))}

    def look(self, worker: Worker) -> Worker | None:
        return worker

    def inquest(self, worker: str) -> Death:
        raise AssertionError(f"{worker} lives, and is buried")


def run_in(
    backend: type[InlineBackend], monkeypatch: pytest.MonkeyPatch, n: int = 40
) -> at_once_dask.Report:
    monkeypatch.setattr(call, "_crew", backend)
    return at_once_dask.run(range(n), None, nothing, on_error="return", progress=False)


def test_looks_that_show_nobody_end_nothing(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """Neither at the beginning nor while partitions are out."""

    class Blinking(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return worker if self.looks % 6 == 5 else None

        def next(self, timeout: float) -> Event | None:
            return super().next(timeout) if self.looks % 6 == 4 or self.looks > 40 else None

    report = run_in(Blinking, monkeypatch)
    assert statuses(report) == ["processed"] * 40


def test_a_worker_that_answers_late_is_not_buried(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """It lives, and is met again for longer than news of a death may take."""

    class Late(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, nanny="its nanny", ready=not 2 < self.looks < 60)

        def next(self, timeout: float) -> Event | None:
            return super().next(timeout) if self.looks > 60 else None

    report = run_in(Late, monkeypatch)
    assert statuses(report) == ["processed"] * 40


def test_workers_that_never_answer_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    class Deaf(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, ready=False)

    with pytest.raises(at_once_dask.RunStopped, match="no worker is left that begins") as run:
        run_in(Deaf, monkeypatch)
    assert run.value.report.n_left == 40


def test_a_run_with_all_handled_is_not_stopped(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """The last input is done, and from then on no worker is ever seen."""

    class Leaving(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return worker if self.looks == 1 else None

        def next(self, timeout: float) -> Event | None:
            event = super().next(timeout)
            monkeypatch.setattr(dispatcher, "BLINK_SECONDS", 0.0 if not self._waiting else 60.0)
            return event

    report = run_in(Leaving, monkeypatch, n=1)
    assert statuses(report) == ["processed"]


@pytest.mark.parametrize("how", [{"on_error": "stop"}, {"max_failures": 0}])
def test_a_failure_of_the_last_input_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    def fail(inp: int) -> None:
        raise ValueError(inp)

    monkeypatch.setattr(call, "_crew", Looks)
    with pytest.raises(at_once_dask.RunFailed) as failed:
        at_once_dask.run([1], None, fail, progress=False, **how)
    assert not isinstance(failed.value, at_once_dask.RunStopped)
    assert (failed.value.report.n_failed, failed.value.report.n_left) == (1, 0)


def test_what_a_living_worker_loses_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Dask says three times that a partition will not come back, and its worker is there."""

    class Forgetting(Looks):
        losses = 0

        def next(self, timeout: float) -> Event | None:
            if self._waiting and self.losses < 3:
                self.losses += 1
                return Broken(self._waiting.popleft().id, CancelledError())
            return super().next(timeout)

    report = run_in(Forgetting, monkeypatch, n=1)
    assert statuses(report) == ["processed"]


def test_but_not_without_end(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    class Forgetful(Looks):
        def next(self, timeout: float) -> Event | None:
            if not self._waiting:
                return None
            return Broken(self._waiting.popleft().id, CancelledError())

    report = run_in(Forgetful, monkeypatch, n=1)
    assert report.failures["message"].tolist() == ["its worker died; nobody saw how"]


def test_another_process_at_the_same_address_is_not_the_same_worker(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    class Replaced(Looks):
        buried = 0

        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, directory="first" if self.looks == 1 else "second")

        def next(self, timeout: float) -> Event | None:
            if self.looks > 1 and not self.buried:
                self._waiting.clear()  # what was sent to the first
            return super().next(timeout) if self.looks > 1 else None

        def inquest(self, worker: str) -> Death:
            self.buried += 1
            return Death(worker, progress={})

    report = run_in(Replaced, monkeypatch)
    assert statuses(report) == ["processed"] * 40


def test_deaths_that_nobody_saw_do_not_add_up(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """Workers that are gone with their machines before they began anything say nothing of it."""

    class Dying(Looks):
        deaths = 0

        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, directory=f"of process {self.deaths}")

        def next(self, timeout: float) -> Event | None:
            if self._waiting and self.deaths < 3 * dispatcher.BARREN_DEATHS:
                self.deaths += 1
                self._waiting.clear()
                return Died(Death("inline", progress={}))
            return super().next(timeout)

    report = run_in(Dying, monkeypatch)
    assert statuses(report) == ["processed"] * 40


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Partition]:
    """What goes to this process, which stands for two workers."""
    partitions: list[Partition] = []

    class Noting(InlineBackend):
        def send(self, worker: str, partition: Partition) -> None:
            partitions.append(partition)
            super().send(worker, partition)

    monkeypatch.setattr(call, "_crew", lambda this: Noting(this.job, this.run_log, threads=2))
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
