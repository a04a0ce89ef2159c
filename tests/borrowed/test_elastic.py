"""Clusters whose workers come as they are asked for, or when somebody starts them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_processes import by_value, client_of, dask_command
from distributed import Client, LocalCluster
from helpers import meanwhile, poll_for

import at_once_dask


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    with by_value(sys.modules[__name__]):
        yield


@pytest.fixture
def scheduler_file(tmp_path: Path) -> Iterator[Path]:
    """A scheduler without workers."""
    with dask_command("scheduler", tmp_path / "scheduler.json", "--port", "0"):
        yield tmp_path / "scheduler.json"


def nap(n: int) -> dict[str, int]:
    time.sleep(0.05)
    return {"sum": n}


@pytest.mark.parametrize("minimum", [0, 1])
def test_a_cluster_that_adapts_has_all_its_workers_in_time(minimum: int) -> None:
    """And lets them go: nothing is left that asks for them."""
    most = 0

    def note(over: threading.Event) -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, len(cluster.scheduler.workers))

    with (
        LocalCluster(
            n_workers=minimum, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=minimum, maximum=3, interval="200ms", wait_count=2)
        with meanwhile(note):
            reduced = at_once_dask.run(
                range(400), None, nap, reduce_fn=sum, client=client, progress=False
            )
        assert reduced == {"sum": sum(range(400))}
        assert most == 3
        poll_for(lambda: not cluster.scheduler.tasks, "tasks are left")
        poll_for(lambda: len(cluster.scheduler.workers) == minimum, "workers stay", seconds=30)


def test_what_is_left_is_shown_to_the_scheduler_and_is_no_failure(scheduler_file: Path) -> None:
    """As tasks that nobody can run; with the list they become fewer, and they go with the run."""
    shown: list[int] = []

    def seen(dask_scheduler: Any = None) -> int:
        return sum(task.state == "no-worker" for task in dask_scheduler.tasks.values())

    def work(n: int) -> None:
        time.sleep(0.1)

    with (
        dask_command("worker", scheduler_file, "--nthreads", "1"),
        client_of(scheduler_file, set_as_default=False) as client,
        client_of(scheduler_file, set_as_default=False) as other,
    ):
        client.wait_for_workers(1, timeout=30)

        def look(over: threading.Event) -> None:
            while not over.wait(0.1):
                shown.append(other.run_on_scheduler(seen))

        with meanwhile(look):
            report = at_once_dask.run(range(40), None, work, client=client, progress=False)
        assert report.ok
        assert max(shown) <= 40  # before the first has ended, one for each
        assert any(4 <= n <= 8 for n in shown)  # of half a second each: four seconds of work
        assert shown[-1] < max(shown)
        poll_for(lambda: other.run_on_scheduler(seen) == 0, "some are left")


@pytest.fixture
def is_said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Gives what went to stderr, once it says that the run waits for a worker."""
    said: list[str] = []

    def look() -> str:
        said.append(capsys.readouterr().err)
        text = "".join(said)
        return text if "the run waits for some" in text else ""

    return look


def test_a_run_waits_for_its_first_worker_and_says_what_to_start(
    scheduler_file: Path, is_said: Callable[[], str]
) -> None:
    def start(over: threading.Event) -> None:
        poll_for(is_said, "nobody says so")
        with dask_command("worker", scheduler_file, "--nthreads", "1"):
            over.wait()

    with client_of(scheduler_file, set_as_default=False) as client:
        with meanwhile(start):
            report = at_once_dask.run(range(8), None, nap, client=client)
        address = client.scheduler.address  # type: ignore[union-attr]
    assert report.ok
    expected = (
        "the cluster has no workers, and the run waits for some; start some, as with"
        f" `dask worker {address}`; Ctrl-C ends the run"
    )
    assert f"at_once_dask: {expected}" in is_said()
    assert expected in " ".join(report.summary().split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(
    scheduler_file: Path, is_said: Callable[[], str], number: int
) -> None:
    since = 0.0

    def interrupt(over: threading.Event) -> None:
        nonlocal since
        poll_for(is_said, "nobody says so")
        since = time.monotonic()
        os.kill(os.getpid(), number)

    with (
        client_of(scheduler_file, set_as_default=False) as client,
        meanwhile(interrupt),
        pytest.raises(BaseException) as ended,  # noqa: PT011 - which one it is, is looked at
    ):
        at_once_dask.run(range(8), None, nap, client=client)
    assert time.monotonic() - since < 5
    assert ended.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    assert ended.value.report.n_left == 8  # type: ignore[attr-defined]


def test_all_workers_go_and_others_come(scheduler_file: Path, folder: Path) -> None:
    """Also where none had a nanny; the run goes on with them, and nobody is blamed."""

    def work(n: int) -> dict[str, int]:
        (folder / "working").touch()
        return nap(n)

    def replace(over: threading.Event) -> None:
        with dask_command("worker", scheduler_file, "--nthreads", "1", "--no-nanny"):
            poll_for((folder / "working").exists, "nobody works", seconds=30)
        with client_of(scheduler_file, set_as_default=False) as other:
            poll_for(lambda: not other.nthreads(), "the worker stays")
        with dask_command("worker", scheduler_file, "--nthreads", "1"):
            over.wait()

    with client_of(scheduler_file, set_as_default=False) as client:
        with meanwhile(replace):
            reduced = at_once_dask.run(
                range(60), None, work, reduce_fn=sum, client=client, progress=False
            )
    assert reduced == {"sum": sum(range(60))}
