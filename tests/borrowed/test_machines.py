"""Machines that leave in the middle of a run: nothing is lost, and nobody is blamed for it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import machines
import pytest
from dask_processes import by_value, client_of, dask_command
from distributed import Client, KilledWorker
from helpers import meanwhile, poll_for
from machines import Attempts, Killer, Machines, can_be_private

import at_once_dask


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    with by_value(helpers, machines, sys.modules[__name__]):
        yield


@pytest.fixture
def scheduler_file(tmp_path: Path) -> Iterator[Path]:
    """A scheduler without workers."""
    with dask_command("scheduler", tmp_path / "scheduler.json", "--port", "0"):
        yield tmp_path / "scheduler.json"


@pytest.fixture
def client(scheduler_file: Path) -> Iterator[Client]:
    with client_of(scheduler_file, set_as_default=False) as client:
        yield client


@pytest.fixture
def attempts(folder: Path) -> Attempts:
    return Attempts(folder / "attempts")


needs_mounts = pytest.mark.skipif(not can_be_private(), reason="mount namespaces need root")


def summed(n: int, client: Client, work: Callable[[int], Any], **options: Any) -> Any:
    """The sum of `n` inputs."""
    return at_once_dask.run(
        range(n), None, work, reduce_fn=sum, on_error="return", client=client, progress=False,
        **options,
    )  # fmt: skip


def napping(attempts: Attempts, fatal: int | None = None) -> Callable[[int], dict[str, int]]:
    """Each input takes 20 ms; one may end its worker."""

    def nap(n: int) -> dict[str, int]:
        with attempts.of(n):
            if n == fatal:
                ctypes.string_at(0)
            time.sleep(0.02)
        return {"sum": n}

    return nap


# ----- one after another


KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any], int]] = {
    "lost": ((), {}, signal.SIGKILL),
    "lost, with disks of their own": ((), {"private": True}, signal.SIGKILL),
    "told to go": ((), {}, signal.SIGTERM),
    "lost, without nannies": (("--no-nanny",), {}, signal.SIGKILL),
    "told to go, without nannies": (("--no-nanny",), {"private": True}, signal.SIGTERM),
}


@pytest.mark.thorough
@needs_mounts
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fatal", [None, 777])
def test_one_machine_after_another_goes_and_no_innocent_is_blamed(
    scheduler_file: Path, client: Client, attempts: Attempts, kind: str, fatal: int | None
) -> None:
    options, more, number = KINDS[kind]
    with Machines(scheduler_file, 3, *options, **more) as three:
        client.wait_for_workers(3, timeout=60)
        with Killer(three, 1.5, number) as killer:
            result = summed(1_500, client, napping(attempts, fatal))
    failed = [] if fatal is None else [fatal]
    assert result.report.failures["input"].tolist() == failed
    assert set(result.report.failures["kind"]) <= {"crash"}
    assert result == {"sum": sum(range(1_500)) - sum(failed)}
    assert killer.n >= 5
    note = f" worker{'s' if killer.n > 1 else ''} left; "
    assert note in result.report.summary() or "nannies" in kind
    begun = attempts.begun()
    assert len(begun) == 1_500
    assert sum(begun.values()) < 1_500 + 80 * killer.n


@pytest.mark.thorough
def test_workers_that_live_for_a_few_seconds_each(
    scheduler_file: Path, client: Client, attempts: Attempts
) -> None:
    """They are told to go, and start anew by themselves."""
    with Machines(scheduler_file, 2, "--lifetime", "3s", "--lifetime-restart"):
        client.wait_for_workers(2, timeout=60)
        result = summed(800, client, napping(attempts))
    assert result.report.ok
    assert result == {"sum": sum(range(800))}
    assert max(attempts.begun().values()) <= 3


# ----- one


def goes(
    scheduler_file: Path, client: Client, attempts: Attempts, go: Callable[[Machines], None]
) -> Any:
    """Three machines; when 50 inputs have begun, `go` is called."""
    with Machines(scheduler_file, 3) as three:
        client.wait_for_workers(3, timeout=60)

        def watch(over: threading.Event) -> None:
            poll_for(lambda: len(attempts.begun()) >= 50, "nothing happens", seconds=30)
            go(three)

        with meanwhile(watch):
            return summed(600, client, napping(attempts))


def test_a_machine_is_lost(scheduler_file: Path, client: Client, attempts: Attempts) -> None:
    result = goes(scheduler_file, client, attempts, lambda three: three.all[0].lose())
    assert result == {"sum": sum(range(600))}
    assert "1 worker left; " in result.report.summary()
    assert result.report.seconds < 600 * 0.02 / 2 + 4
    assert max(attempts.begun().values()) == 2


def test_a_worker_is_retired(scheduler_file: Path, client: Client, attempts: Attempts) -> None:
    """No traceback, no pause; the end does not wait for it."""

    def retire(three: Machines) -> None:
        with client_of(scheduler_file, set_as_default=False) as other:
            other.retire_workers(sorted(other.nthreads())[:2], close_workers=True)

    result = goes(scheduler_file, client, attempts, retire)
    assert result == {"sum": sum(range(600))}
    assert time.time() - attempts.last() < 1.5
    assert "2 workers left; " in result.report.summary()
    assert "Traceback" not in (scheduler_file.parent / "scheduler.log").read_text()


def test_a_worker_that_is_to_take_no_more_and_stays(
    scheduler_file: Path, client: Client, attempts: Attempts
) -> None:
    """It gives back what it has not started; the end does not wait for it."""

    def retire(three: Machines) -> None:
        with client_of(scheduler_file, set_as_default=False) as other:
            first = sorted(other.nthreads())[:1]
            other.retire_workers(first, close_workers=False, remove=False)

    result = goes(scheduler_file, client, attempts, retire)
    assert result == {"sum": sum(range(600))}
    assert time.time() - attempts.last() < 1.5
    assert max(attempts.begun().values()) == 1


def test_all_workers_are_started_anew(
    scheduler_file: Path, client: Client, attempts: Attempts
) -> None:
    def restart(three: Machines) -> None:
        with client_of(scheduler_file, set_as_default=False) as other:
            other.restart()

    result = goes(scheduler_file, client, attempts, restart)
    assert result == {"sum": sum(range(600))}


@pytest.mark.thorough
@pytest.mark.parametrize("n_lost", [2, 5])
def test_one_input_loses_its_machine_time_and_again(
    scheduler_file: Path, client: Client, attempts: Attempts, n_lost: int
) -> None:
    """After the fifth time it has failed, with a kind of its own."""

    def work(n: int) -> dict[str, int]:
        with attempts.of(n):
            time.sleep(1 if n == 5 else 0.02)
        return {"sum": n}

    def lose(over: threading.Event) -> None:
        for number in range(n_lost):
            poll_for(lambda: attempts.pid_of(5, number), "it does not begin", seconds=60)  # noqa: B023
            machine = three.of(attempts.pid_of(5, number) or 0)
            assert machine is not None
            three.replace(machine)

    with Machines(scheduler_file, 2) as three:
        client.wait_for_workers(2, timeout=60)
        with meanwhile(lose):
            result = summed(200, client, work)
    assert attempts.begun()[5] == min(5, n_lost + 1)
    if n_lost == 2:
        assert result.report.ok
        return
    (failure,) = result.report.failures.to_dict("records")
    assert (failure["input"], failure["kind"], failure["error"]) == (5, "lost", "WorkerLost")
    assert failure["message"] == (
        "5 times in a row its worker was told to go, or was lost with its machine, while it ran"
    )


# ----- what others do there


def test_the_task_of_somebody_else_ends_the_worker(
    scheduler_file: Path, client: Client, attempts: Attempts
) -> None:
    """In a worker with four threads; ours run again, and are innocent."""

    def die(number: int) -> None:
        poll_for(lambda: len(attempts.begun()) >= 20, "nothing happens", seconds=30)
        os.kill(os.getpid(), signal.SIGKILL)

    with dask_command("worker", scheduler_file, "--nthreads", "4", "--nworkers", "2"):
        client.wait_for_workers(2, timeout=60)
        with client_of(scheduler_file, set_as_default=False) as other:
            theirs = other.submit(die, 1, pure=False)  # Dask tries it four times
            result = summed(400, client, napping(attempts))
            with pytest.raises(KilledWorker):
                theirs.result(timeout=30)
    assert result.report.ok
    assert result == {"sum": sum(range(400))}


def test_what_waits_behind_the_task_of_somebody_else_goes_elsewhere(
    scheduler_file: Path, client: Client, folder: Path
) -> None:
    def hold(address: str) -> None:
        (folder / "held").touch()
        poll_for((folder / "over").exists, "the run does not end", seconds=60)

    with dask_command("worker", scheduler_file, "--nthreads", "1", "--nworkers", "2"):
        client.wait_for_workers(2, timeout=60)
        with client_of(scheduler_file, set_as_default=False) as other:
            held, free = sorted(other.nthreads())
            theirs = other.submit(hold, held, workers=[held], pure=False)
            poll_for((folder / "held").exists, "nobody holds it")
            report = at_once_dask.run(
                range(60), None, lambda n: time.sleep(0.05), client=client, progress=False
            )
            (folder / "over").touch()
            theirs.result(timeout=30)
    assert report.ok
    assert report.seconds < 60 * 0.05 + 5
    assert set(report.items["worker"]) == {free}
