"""Workers that live, and do not seem to: faults put in on purpose, into functions of our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from helpers import poll_for, statuses

import at_once_dask
from at_once_dask.cluster import connect, dask_internals
from at_once_dask.driver import deaths, workers_seen
from at_once_dask.worker.scheduler_plugin import RunSchedulerPlugin

NEWS_SECONDS = 1.0


def short_news(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The news of a death may not take longer."""
    for module in (deaths, workers_seen):
        monkeypatch.setattr(module, "NEWS_SECONDS", seconds)


@pytest.fixture
def slow_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second one on, a meeting takes longer than the news of a death may."""
    short_news(monkeypatch, NEWS_SECONDS)
    meet: Any = RunSchedulerPlugin._meet
    met: list[str] = []

    async def slowly(self: RunSchedulerPlugin, address: str) -> None:
        if len(met) >= 2:
            await asyncio.sleep(3 * NEWS_SECONDS)
        met.append(address)
        await meet(self, address)

    monkeypatch.setattr(RunSchedulerPlugin, "_meet", slowly)


@pytest.fixture
def empty_answers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[float]:
    """When the file `blink` comes, the next answer is without any worker; when that was."""
    tell: Any = connect.Cluster.workers
    blinks: list[float] = []

    def workers(self: connect.Cluster) -> Any:
        if (folder / "blink").exists() and not blinks:
            blinks.append(time.monotonic())
            return {}
        return tell(self)

    monkeypatch.setattr(connect.Cluster, "workers", workers)
    return blinks


@pytest.fixture
def lent() -> Iterator[Client]:
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


def blinking(folder: Path, client: Client | None) -> None:
    """All workers are at an input when one look shows none; it takes longer than news may."""

    def work(n: int) -> list[tuple[str, int]]:
        if n < 2:
            (folder / f"{n} runs").touch()
            poll_for(lambda: (folder / "0 runs").exists() and (folder / "1 runs").exists(), "alone")
            (folder / "blink").touch()
            until = time.monotonic() + 5 * NEWS_SECONDS
            while time.monotonic() < until:
                time.sleep(0.05)
        with (folder / f"{n} times").open("a") as times:
            times.write("x")
        return [("sum", n)]

    result = at_once_dask.run(
        range(40), None, work, reduce_fn=sum, on_error="return", progress=False, client=client
    )
    assert statuses(result.report) == ["processed"] * 40
    assert dict(result) == {"sum": 780}
    assert [(folder / f"{n} times").read_text() for n in range(40)] == ["x"] * 40


def test_living_workers_are_not_given_up(
    cluster: Client, folder: Path, slow_to_answer: None, empty_answers: list[float]
) -> None:
    """One answer without workers, and meetings that take long: each alone did nothing."""
    before = set(cluster.nthreads())
    blinking(folder, None)
    assert empty_answers
    assert set(cluster.nthreads()) == before


@pytest.mark.thorough
def test_those_of_others_neither(
    lent: Client, folder: Path, slow_to_answer: None, empty_answers: list[float]
) -> None:
    blinking(folder, lent)
    assert empty_answers


def test_what_the_client_remembers_counts_for_nothing(cluster: Client) -> None:
    """Its own look, every two seconds, leaves it without any worker for a moment."""

    def work(n: int) -> None:
        time.sleep(0.01)

    async def forget() -> None:
        while True:
            await cluster._update_scheduler_info(n_workers=0)

    loop: Any = cluster.loop
    task = asyncio.run_coroutine_threadsafe(forget(), loop.asyncio_loop)
    try:
        report = at_once_dask.run(range(300), None, work, progress=False)
    finally:
        task.cancel()
    assert report.n_processed == 300


@pytest.mark.thorough
def test_an_own_process_that_lives_has_not_died(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the scheduler does not list it for longer than the news of a death may take."""
    short_news(monkeypatch, 0.3)
    tell: Any = dask_internals.listed
    since: list[float] = []

    async def listed(client: Client) -> Any:
        if (folder / "runs").exists() and not since:
            since.append(time.monotonic())
        if since and time.monotonic() < since[0] + 3:
            return {}
        return await tell(client)

    def work(n: int) -> None:
        (folder / "runs").touch()
        time.sleep(4 if n < 2 else 0)

    monkeypatch.setattr(connect, "listed", listed)
    report = at_once_dask.run(range(20), None, work, on_error="return", progress=False)
    assert statuses(report) == ["processed"] * 20
