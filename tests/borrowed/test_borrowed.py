"""Other people's clusters: they do the same work, and are left as they were found."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from dask_processes import by_value, client_of, dask_command
from distributed import Client
from helpers import meanwhile, oracle, poll_for, same, statuses

import at_once_dask
from at_once_dask.logs import log_file
from at_once_dask.worker import host_job


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    with by_value(helpers, sys.modules[__name__]):
        yield


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster with two workers of two threads each, with nannies."""
    path = tmp_path_factory.mktemp("borrowed") / "scheduler.json"
    with dask_command("scheduler", path, "--port", "0") as scheduler:
        with dask_command("worker", path, "--nworkers", "2", "--nthreads", "2"):
            yield path
            assert scheduler.poll() is None


@pytest.fixture(scope="module")
def module_client(scheduler_file: Path) -> Iterator[Client]:
    with client_of(scheduler_file, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=30)
        yield client


@pytest.fixture
def borrowed(module_client: Client) -> Client:
    """The Client of that cluster, which has both its workers."""
    module_client.wait_for_workers(2, timeout=30)
    poll_for(lambda: len(module_client.nthreads()) == 2, "there are more workers than two")
    return module_client


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[Any]]]:
    """A scheduler without workers, to be mistreated."""
    path = tmp_path_factory.mktemp("spare") / "scheduler.json"
    with dask_command("scheduler", path, "--port", "0") as scheduler:
        yield path, scheduler


def nothing(n: int) -> None:
    """Cannot be imported by the workers."""


def run_a_few(client: Client) -> at_once_dask.Report:
    report: at_once_dask.Report = at_once_dask.run(
        range(8), None, lambda n: None, client=client, progress=False
    )
    return report


# ----- the same work


def test_a_large_array_lies_once_on_a_host(borrowed: Client, folder: Path) -> None:
    """In a file that all its workers map, one that comes later too; it goes with the run."""
    array = np.ones(2**21, dtype=np.int64)
    there = set(borrowed.run(os.getpid).values())

    def seen(n: int) -> list[tuple[str, Any]]:
        if n == 50 and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(3)
        if os.getpid() not in there:
            (folder / "came").touch()
        if not (folder / "came").exists():
            time.sleep(0.1)  # so that something is left for the one that comes
        found = [("sum", int(array[:-1].sum())), ("where", helpers.mapped_from(array))]
        array[-1] += n  # what is written stays in this worker
        return [*found, ("pid", os.getpid())]

    result = at_once_dask.run(
        range(400), None, seen, reduce_fn=set, client=borrowed, progress=False, retries=1
    )
    assert result["sum"] == {2**21 - 1}
    assert result["pid"] - there
    (path,) = result["where"]
    assert path.endswith(f"at_once_dask-{result.report.run}/job")
    assert array.sum() == 2**21
    poll_for(lambda: not Path(path).parent.exists(), "the file is left")


@pytest.mark.thorough
def test_a_host_without_space_for_a_large_array(
    borrowed: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.ones(2**21)

    def full(run: str, parts: list[bytes], dask_worker: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_job, "put", full)
    with pytest.raises(at_once_dask.AtOnceError, match="No space left") as refused:
        at_once_dask.run(range(8), None, lambda n: array[n], client=borrowed, progress=False)
    assert str(refused.value).startswith("what the functions take along cannot be put into a file")
    assert str(refused.value).endswith("and run the same again")
    assert run_a_few(borrowed).ok


def check(n: int) -> list[Any]:
    return [n % 4 == 0, [("done", n)]]


def pairs_of(n: int) -> list[tuple[str, int]]:
    if n % 50 == 7:
        raise ValueError(f"no {n}")
    return [("all", n), (f"{n % 3}", n)]


def work(n: int) -> list[tuple[str, int]]:
    at_once_dask.log(f"at {n}")
    return pairs_of(n)


def everything(**run_kwargs: Any) -> None:
    """A map-reduce with done inputs, failures and log records, against the oracle."""
    reduced = at_once_dask.run(
        range(400),
        lambda n: check(n),
        lambda n: work(n),
        reduce_fn=list,
        on_error="return",
        progress=False,
        **run_kwargs,
    )
    report = reduced.report
    expected = oracle(range(400), lambda n: check(n)[1] if check(n)[0] else pairs_of(n), list)
    assert same(reduced, expected)
    failed = [n for n in range(400) if n % 50 == 7]
    assert list(report.failures.index) == list(report.failures["input"]) == failed
    assert statuses(report) == [
        "skipped" if n % 4 == 0 else "failed" if n in failed else "processed" for n in range(400)
    ]
    check_log(report, [n for n in range(400) if n % 4], failed)


def check_log(report: at_once_dask.Report, said: list[int], failed: list[int]) -> None:
    """Every record is there as soon as the run is over, and knows where it is from."""
    log = at_once_dask.read_log(run=report.run)
    info, errors = log[log["level"] == "INFO"], log[log["level"] == "ERROR"]
    assert sorted(info["index"]) == said
    assert list(info["msg"]) == [f"at {n}" for n in info["index"]]
    assert sorted(errors["index"]) == failed
    assert all("ValueError in process" in msg for msg in errors["msg"])
    assert list(log["input"]) == [str(n) for n in log["index"]]
    assert set(log["worker"]) <= set(report.items["worker"].cat.categories)


def state_of(client: Client) -> dict[str, Any]:
    """All of the cluster's processes that a run could leave changed."""

    def of_worker(dask_worker: Any = None) -> dict[str, Any]:
        import dask.config

        from at_once_dask.protocol import lease
        from at_once_dask.worker import plugin

        return {
            "pid": os.getpid(),
            "group": os.getpgid(0),
            "config": dask.config.config,
            "directory": os.getcwd(),
            "environment": dict(os.environ),
            "path": list(sys.path),
            "plugins": list(dask_worker.plugins),
            "runs": [*plugin._JOBS, *lease.LEASES],
        }

    def of_scheduler(dask_scheduler: Any = None) -> dict[str, Any]:
        import dask.config

        return {
            "pid": os.getpid(),
            "config": dask.config.config,
            "plugins": [*dask_scheduler.plugins, *dask_scheduler.worker_plugins],
            "tasks": len(dask_scheduler.tasks),
            "topics": [name for name in dask_scheduler._broker._topics if "at_once" in name],
        }

    return {"scheduler": client.run_on_scheduler(of_scheduler), **client.run(of_worker)}


def test_the_cluster_is_left_as_it_was(borrowed: Client) -> None:
    before = state_of(borrowed)
    everything(client=borrowed)
    assert borrowed.status == "running"
    poll_for(lambda: state_of(borrowed) == before, "traces are left", lambda: state_of(borrowed))
    assert len(before) == 3


def test_the_sessions_default_client_is_used(borrowed: Client, scheduler_file: Path) -> None:
    with client_of(scheduler_file) as client:
        everything()
        assert client.status == "running"
        assert Client.current() is client
        log = at_once_dask.read_log()
        assert set(log["worker"]) <= set(borrowed.nthreads())


def test_a_worker_that_was_just_being_replaced_is_guarded_too(
    borrowed: Client, folder: Path
) -> None:
    """Its nanny cannot be reached when the run begins; how its next worker died is told anyway."""
    there = set(borrowed.run(os.getpid).values())
    end_one(borrowed)

    def die_in_the_new_one(n: int) -> None:
        if os.getpid() in there:  # until the new one has come, and died
            poll_for((folder / "died").exists, "the worker does not come back")
        else:
            (folder / "died").touch()
            os._exit(7)

    report = at_once_dask.run(
        range(40), None, die_in_the_new_one, on_error="return", client=borrowed, progress=False
    )

    assert set(report.failures["exit"]) == {"exit 7"}
    assert report.n_processed + report.n_failed == 40


def end_one(client: Client) -> None:
    """Kill a worker, and wait until the scheduler knows."""
    address, pid = next(iter(client.run(os.getpid).items()))
    os.kill(pid, signal.SIGKILL)
    poll_for(lambda: address not in client.nthreads(), "the scheduler does not notice")


@contextlib.contextmanager
def on_another_host(client: Client) -> Iterator[None]:
    """As if the workers were: only the host's name tells the file from one of theirs."""

    def move() -> None:
        log_file._kept = log_file._host  # type: ignore[attr-defined]
        log_file._host = lambda: "another host"  # type: ignore[assignment]

    def move_back() -> None:
        log_file._host = log_file._kept  # type: ignore[attr-defined]

    client.run(move)
    yield
    client.run(move_back)


def test_log_from_another_host(borrowed: Client) -> None:
    with on_another_host(borrowed):
        everything(client=borrowed)


def test_log_to_a_file_that_the_workers_do_not_see(
    borrowed: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "unseen.jsonl").open("w") as file:
        monkeypatch.setattr(at_once_dask, "logfile", f"/proc/self/fd/{file.fileno()}")
        everything(client=borrowed)
    assert len((folder / "unseen.jsonl").read_text().splitlines()) == 308


def test_anything_can_be_logged_from_another_host(borrowed: Client) -> None:
    said = [2**70, "caf\udce9", {1: object}, b"bytes", None]
    with on_another_host(borrowed):
        report = at_once_dask.run(
            range(len(said)),
            None,
            lambda n: at_once_dask.log(said[n]),
            client=borrowed,
            progress=False,
        )
    log = at_once_dask.read_log(run=report.run).sort_values("index")
    assert list(log["msg"]) == [2**70, r"caf\udce9", {"1": repr(object)}, "b'bytes'", None]


def test_log_from_a_thread_of_the_input_on_another_host(borrowed: Client) -> None:
    def in_a_thread(n: int) -> None:
        thread = threading.Thread(target=at_once_dask.log, args=("from a thread",))
        thread.start()
        thread.join()

    with on_another_host(borrowed):
        at_once_dask.run([1], None, in_a_thread, client=borrowed, progress=False)
    assert list(at_once_dask.read_log()["msg"]) == ["from a thread"]


def test_the_scheduler_forgets_what_passed_through_it(borrowed: Client) -> None:
    with on_another_host(borrowed):
        everything(client=borrowed)
    events = borrowed.get_events()
    assert not [topic for topic in events if topic.startswith("at_once_dask-")]


def test_two_partitions_at_once_in_a_process(borrowed: Client, folder: Path) -> None:
    """Each input waits for one in the other thread of its process; records do not mix."""

    def pair(n: int) -> None:
        at_once_dask.log("begun")
        mine = folder / f"{os.getpid()} {threading.get_ident()}"
        mine.touch()
        poll_for(
            lambda: len(list(folder.glob(f"{os.getpid()} *"))) == 2, "the other thread is idle"
        )
        at_once_dask.log(f"at {n}")

    report = at_once_dask.run(range(100, 300), None, pair, client=borrowed, progress=False)
    log = at_once_dask.read_log(run=report.run)
    assert len(log) == 400
    assert len(list(folder.glob("* *"))) == 4
    for _, records in log.groupby("index"):
        inp = records["input"].iloc[0]
        assert list(records["msg"]) == ["begun", f"at {inp}"]
        assert records["input"].nunique() == records["worker"].nunique() == 1


def test_output_of_two_partitions_at_once(borrowed: Client, folder: Path) -> None:
    """Threads of one process print in turn, parts of lines too; records do not mix."""

    def talk(n: int) -> None:
        print("begun", end="")
        (folder / f"{os.getpid()} {threading.get_ident()}").touch()
        poll_for(
            lambda: len(list(folder.glob(f"{os.getpid()} *"))) == 2, "the other thread is idle"
        )
        for part in range(5):
            print("", part, end="")
        logging.getLogger("mine").error("at %s", n)

    report = at_once_dask.run(range(100, 300), None, talk, client=borrowed, progress=False)
    log = at_once_dask.read_log(run=report.run)
    assert len(log) == 400
    for _, records in log.groupby("index"):
        inp = records["input"].iloc[0]
        assert sorted(records["msg"]) == ["begun 0 1 2 3 4", f"mine: at {inp}"]
        assert records["input"].nunique() == records["worker"].nunique() == 1


def test_what_others_print_there_goes_where_it_went(
    borrowed: Client, scheduler_file: Path, folder: Path
) -> None:
    """Somebody else's tasks, in the same processes at the same time; and all of it afterwards."""

    def others(n: int) -> None:
        print("others", n, flush=True)
        print("others as well", n, file=sys.stderr, flush=True)
        logging.getLogger("others").warning("others too %s", n)

    def work(n: int) -> None:
        print("mine")
        poll_for((folder / "go").exists, "nobody lets it go on")

    def streams() -> tuple[str, str, bool]:
        above = logging.getLogger().parent
        return type(sys.stdout).__name__, type(sys.stderr).__name__, above is None

    def let_others_print() -> None:
        poll_for(lambda: log.exists() and len(log.read_text().splitlines()) == 3, "nobody works")
        try:
            borrowed.gather(borrowed.map(others, range(20), pure=False))
        finally:
            (folder / "go").touch()

    log = folder / "log.jsonl"
    before = borrowed.run(streams)
    thread = threading.Thread(target=let_others_print)
    thread.start()
    report = at_once_dask.run(range(3), None, work, client=borrowed, progress=False)
    thread.join()
    assert borrowed.run(streams) == before
    assert list(at_once_dask.read_log(run=report.run)["msg"]) == ["mine"] * 3
    elsewhere = (scheduler_file.parent / "worker.log").read_text()
    for text in ("others", "others as well", "others too"):
        assert all(f"{text} {n}\n" in elsewhere for n in range(20))


OTHER_DRIVER = """
import sys, time
from pathlib import Path
import at_once_dask
from distributed import Client, LocalCluster

def work(n):
    if n == 0:
        Path(sys_argv[2]).touch()
        while not Path(sys_argv[3]).exists():
            time.sleep(0.01)
    at_once_dask.log(n)
    return {"other": n}

sys_argv = sys.argv
with Client(scheduler_file=sys.argv[1]):
    at_once_dask.logfile = "other.jsonl"
    reduced = at_once_dask.run(range(500), None, work, reduce_fn=sum, progress=False)
print(reduced, reduced.report.run)
"""


def test_two_drivers_at_once(borrowed: Client, scheduler_file: Path, folder: Path) -> None:
    """The first input of each waits for the other's."""

    def work(n: int) -> dict[str, int]:
        if n == 0:
            (folder / "mine").touch()
            poll_for((folder / "other").exists, "the other driver does nothing")
        at_once_dask.log(-n)
        return {"mine": n}

    (folder / "other.py").write_text(OTHER_DRIVER)
    arguments = [str(path) for path in (scheduler_file, folder / "other", folder / "mine")]
    with subprocess.Popen(
        [sys.executable, "other.py", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(at_once_dask.__file__).parents[1])},
    ) as other:
        poll_for((folder / "other").exists, "the other driver does nothing")
        mine = at_once_dask.run(
            range(500), None, work, reduce_fn=sum, client=borrowed, progress=False
        )
        printed, _ = other.communicate(timeout=30)
    assert mine == {"mine": sum(range(500))}
    result, others_run = printed.rsplit(maxsplit=1)
    assert (result, other.returncode) == (repr({"other": sum(range(500))}), 0)
    runs = {"log.jsonl": (mine.report.run, -1), "other.jsonl": (others_run, 1)}
    for logfile, (run, sign) in runs.items():
        log = at_once_dask.read_log(logfile)
        assert set(log["run"]) == {run}
        assert sorted(sign * log["msg"]) == list(range(500))


def test_functions_that_the_workers_cannot_import(
    borrowed: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "only_here.py").write_text("def nothing(n): pass")
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module("only_here")
    with pytest.raises(at_once_dask.AtOnceError, match=r"only_here.*can be imported"):
        at_once_dask.run(range(8), None, module.nothing, client=borrowed, progress=False)
    assert run_a_few(borrowed).ok


def test_those_that_were_registered_to_go_by_value_do(borrowed: Client) -> None:
    assert at_once_dask.run(range(8), None, nothing, client=borrowed, progress=False).ok


# ----- when it goes wrong


def waiting(folder: Path) -> Callable[[int], None]:
    """A `process_inp` whose input 0 runs until there is a file `go`."""

    def wait(n: int) -> None:
        if n == 0:
            (folder / "pid").write_text(str(os.getpid()))
            (folder / "pid").rename(folder / "running")
            poll_for((folder / "go").exists, "nobody ends this")

    return wait


def stopped(client: Client, folder: Path) -> at_once_dask.Report:
    """The report of a run in which one input fails while another one runs."""
    wait = waiting(folder)

    def work(n: int) -> None:
        wait(n)
        poll_for((folder / "running").exists, "input 0 does not run")
        raise ValueError("stop")

    with pytest.raises(at_once_dask.RunStopped) as stopped:
        at_once_dask.run(range(2), None, work, on_error="stop", client=client, progress=False)
    return stopped.value.report


@contextlib.contextmanager
def killing(folder: Path, pid: int | None = None) -> Iterator[None]:
    """Whenever input 0 runs, SIGKILL its worker, or the process `pid`.

    It runs a second time, alone, when another thread of its worker was busy just then.
    """
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            poll_for(lambda: over.is_set() or (folder / "running").exists(), "input 0 does not run")
            if not over.is_set():
                suspect = int((folder / "running").read_text())
                (folder / "running").unlink()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid or suspect, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.thorough
def test_stop_ends_a_running_input_and_its_worker_comes_back(
    borrowed: Client, folder: Path
) -> None:
    before = borrowed.nthreads()
    report = stopped(borrowed, folder)
    assert report.seconds < 5
    assert (report.n_failed, report.n_left) == (1, 1)
    poll_for(lambda: len(borrowed.nthreads()) == 2, "the worker does not come back")
    assert len(before.keys() & borrowed.nthreads().keys()) == 1
    assert run_a_few(borrowed).ok


def test_a_worker_killed_from_outside(borrowed: Client, folder: Path) -> None:
    """The input that it was working on is named; nobody can know that it is innocent."""
    with killing(folder), pytest.raises(at_once_dask.RunFailed, match="SIGKILL") as run:
        at_once_dask.run(range(20), None, waiting(folder), client=borrowed, progress=False)
    report = run.value.report
    assert report.seconds < 8
    assert (report.n_inputs, report.n_failed, report.n_left) == (20, 1, 0)
    borrowed.wait_for_workers(2, timeout=30)
    assert run_a_few(borrowed).ok


@pytest.fixture
def client_of_spare(spare: tuple[Path, subprocess.Popen[Any]]) -> Iterator[Client]:
    with client_of(spare[0], set_as_default=False) as client:
        yield client


@pytest.mark.thorough
def test_a_worker_without_a_nanny(
    client_of_spare: Client, spare: tuple[Path, subprocess.Popen[Any]], folder: Path
) -> None:
    """It is left alone when a run stops; when it dies, others go on, and nobody is blamed for it.

    It may have been lost with its machine. An input that ends three is blamed.
    """
    with dask_command("worker", spare[0], "--no-nanny", "--nthreads", "2") as worker:
        client_of_spare.wait_for_workers(1, timeout=30)
        check_no_time_limit(client_of_spare, folder)
        report = stopped(client_of_spare, folder)
        assert report.seconds < 5
        assert (report.n_failed, report.n_left) == (1, 1)
        assert list(client_of_spare.run(os.getpid).values()) == [worker.pid]
        (folder / "go").touch()
        assert run_a_few(client_of_spare).ok

        (folder / "running").unlink()
        (folder / "go").unlink()
        with contextlib.ExitStack() as more, killing(folder):
            for _ in range(3):
                more.enter_context(dask_command("worker", spare[0], "--no-nanny"))
            client_of_spare.wait_for_workers(4, timeout=30)
            with pytest.raises(at_once_dask.RunFailed) as run:
                at_once_dask.run(
                    range(1_000), None, waiting(folder), client=client_of_spare, progress=False
                )
        report = run.value.report
        assert (report.n_failed, report.n_left) == (1, 0)
        (failure,) = report.failures.to_dict("records")
        assert (failure["input"], failure["kind"]) == (0, "crash")
        assert failure["message"] == (
            "its worker died; nobody saw how, for it had no nanny: that would have told whether it"
            " was lost with its machine"
        )


def test_a_worker_without_a_nanny_that_comes_while_a_time_limit_holds(
    client_of_spare: Client,
    spare: tuple[Path, subprocess.Popen[Any]],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It gets nothing, which is said once; those that can be watched do the work."""
    seen: list[str] = []

    def wait(n: int) -> None:
        poll_for((folder / "go").exists, "nobody ends this", seconds=30)

    def join(ended: threading.Event) -> None:
        with dask_command("worker", spare[0], "--no-nanny", "--nthreads", "1"):
            poll_for(lambda: len(client_of_spare.nthreads()) == 2, "it does not come", seconds=30)
            poll_for(lambda: "goes on without" in said(), "nobody says so", said, seconds=30)
            (folder / "go").touch()
            ended.wait()

    def said() -> str:
        seen.append(capsys.readouterr().err)
        return "".join(seen)

    with dask_command("worker", spare[0], "--nthreads", "1"):
        client_of_spare.wait_for_workers(1, timeout=30)
        (watched,) = client_of_spare.nthreads()
        with meanwhile(join):
            report = at_once_dask.run(range(8), None, wait, timeout=60, client=client_of_spare)
    assert report.ok
    assert set(report.items["worker"]) == {watched}
    note = "the run goes on without a worker: timeout=60 needs a nanny, which ends a worker that"
    assert " ".join(report.summary().split()).count(note) == 1
    assert said().count(note) == 1


def check_no_time_limit(client: Client, folder: Path) -> None:
    """Nobody could hold it to one: that is said before anything runs, and nothing is left of it."""
    (worker,) = client.nthreads()
    with pytest.raises(at_once_dask.InputError) as refused:
        at_once_dask.run(
            range(8),
            None,
            lambda n: (folder / "begun").touch(),
            timeout=60,
            client=client,
            progress=False,
        )
    assert str(refused.value) == (
        "timeout=60 needs a nanny, which ends a worker that takes longer, and the worker"
        f" {worker} has none; start it without --no-nanny, or leave timeout out:"
        " run(inp_list, check_inp, process_inp, client=client)"
    )
    assert not (folder / "begun").exists()
    assert run_a_few(client).ok


@pytest.mark.thorough
@pytest.mark.parametrize("silent", [pytest.param("worker", marks=pytest.mark.slow), "scheduler"])
def test_a_signal_ends_a_run_in_a_cluster_that_does_not_answer(
    client_of_spare: Client, spare: tuple[Path, subprocess.Popen[Any]], folder: Path, silent: str
) -> None:
    """Nothing that waits for an answer keeps the driver, or takes the place of its end."""
    path, scheduler = spare
    with dask_command("worker", path, "--nthreads", "1") as worker:
        client_of_spare.wait_for_workers(1, timeout=30)
        since: list[float] = []

        def cut() -> None:
            poll_for((folder / "running").exists, "input 0 does not run")
            for process in (worker, scheduler)[: 1 if silent == "worker" else 2]:
                os.killpg(process.pid, signal.SIGSTOP)
            since.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=cut)
        thread.start()
        try:
            with pytest.raises(SystemExit) as ended:
                at_once_dask.run(
                    range(4), None, waiting(folder), client=client_of_spare, progress=False
                )
            seconds = time.monotonic() - since[0]
        finally:
            os.killpg(scheduler.pid, signal.SIGCONT)
            thread.join()
        assert ended.value.code == 143
        assert ended.value.report.n_left == 4  # type: ignore[attr-defined]
        assert seconds < 5


@pytest.mark.thorough
def test_a_scheduler_that_dies(
    client_of_spare: Client, spare: tuple[Path, subprocess.Popen[Any]], folder: Path
) -> None:
    path, scheduler = spare
    with dask_command("worker", path, "--nthreads", "1"):
        client_of_spare.wait_for_workers(1, timeout=30)
        with (
            killing(folder, scheduler.pid),
            pytest.raises(at_once_dask.AtOnceError, match="connection to the Dask") as run,
        ):
            at_once_dask.run(
                [0],
                None,
                waiting(folder),
                client=client_of_spare,
                progress=False,
                report_path="report.html",
            )
        assert run.value.report.n_left == 1  # type: ignore[attr-defined]
        page = (folder / "report.html").read_text("utf-8")
        assert "Broken off: AtOnceError: the connection to the Dask scheduler is lost;" in page
        with pytest.raises(at_once_dask.InputError, match=r"client=distributed\.Client"):
            run_a_few(client_of_spare)


def test_a_client_that_is_closed_meanwhile(
    borrowed: Client, scheduler_file: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(scheduler_file, set_as_default=False) as client:

        def inputs() -> Iterator[int]:
            yield from range(20)
            poll_for((folder / "running").exists, "input 0 does not run")
            client.close()
            yield 20

        with pytest.raises(at_once_dask.AtOnceError, match="connection to the Dask"):
            at_once_dask.run(inputs(), None, waiting(folder), client=client, progress=False)
        (folder / "go").touch()
    assert "Traceback" not in caplog.text


# ----- what cannot be borrowed


def test_an_asynchronous_client(borrowed: Client, scheduler_file: Path) -> None:
    async def try_it() -> None:
        async with Client(
            scheduler_file=str(scheduler_file), asynchronous=True, set_as_default=False
        ) as client:
            run_a_few(client)

    with pytest.raises(at_once_dask.InputError, match="client is asynchronous; write run"):
        asyncio.run(try_it())


@pytest.mark.parametrize("default", [False, True])
def test_a_cluster_of_threads(default: bool) -> None:
    with Client(
        processes=False, n_workers=1, dashboard_address="127.0.0.1:0", set_as_default=default
    ) as client:
        with pytest.raises(at_once_dask.InputError, match=r"threads of this process; write run"):
            at_once_dask.run(
                range(8), None, abs, client=None if default else client, progress=False
            )


@pytest.mark.parametrize("client", ["tcp://127.0.0.1:8786", 3])
def test_what_is_no_client(client: Any) -> None:
    with pytest.raises(at_once_dask.InputError, match=r"client=distributed\.Client\(address"):
        run_a_few(client)


def test_a_closed_client(borrowed: Client, scheduler_file: Path) -> None:
    with client_of(scheduler_file, set_as_default=False) as client:
        pass
    with pytest.raises(at_once_dask.InputError, match="client is closed; write run"):
        run_a_few(client)
