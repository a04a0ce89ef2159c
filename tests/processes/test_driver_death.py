"""``kill -9`` of the driver: nothing is left of its run but what was done, and that is whole."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import oracle, poll_for
from scripts import SOON, Script, pause, seeded, started, told
from traces import is_alive

from at_once_dask.cluster import driver_watchdog

# The input hangs in the way that is named on the command line, with processes of its own.
HANGING = """
import ctypes, multiprocessing, os, subprocess, sys, time
import at_once_dask

how, children, before = sys.argv[1:]
started = []

def start(**options):
    started.append(subprocess.Popen(["sleep", "600"], **options))
    with open("children", "a") as file:
        print(started[-1].pid, file=file)

def process_inp(inp):
    if children == "children":
        start()
        start(start_new_session=True)
    if children == "bare":
        start(env={"PATH": os.defpath})
    open(f"{inp} hangs", "w").close()
    if how == "C":
        ctypes.PyDLL(None).sleep(600)
    time.sleep(600)

if before == "forkserver":
    context = multiprocessing.get_context("forkserver")
    with context.Pool(1) as pool:
        assert pool.map(abs, [-1]) == [1]
at_once_dask.start(2, dashboard_address="127.0.0.1:0")
at_once_dask.run(range(2), None, process_inp, progress=False)
"""


@contextlib.contextmanager
def hanging(
    folder: Path, how: str, children: str = "none", before: str = "nothing"
) -> Iterator[Script]:
    """A script whose two workers hang."""
    with started(HANGING, folder, how, children, before) as script:
        try:
            script.wait_for_file("0 hangs", "1 hangs")
            yield script
        finally:
            for child in children_of(script):
                if is_alive(child):
                    psutil.Process(child).kill()


def children_of(script: Script) -> list[int]:
    """The processes that the inputs started."""
    file = script.folder / "children"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def commands(script: Script, name: str) -> int:
    """How many of its processes have `name` in their command line."""
    return sum(name in command for command in told(script.alive()))


def kill(script: Script) -> None:
    """SIGKILL for the driver; all that is its own is gone soon after."""
    since = time.monotonic()
    script.send(signal.SIGKILL)
    assert script.process.wait(SOON) == -signal.SIGKILL
    script.check_all_gone(since)
    children = children_of(script)
    poll_for(lambda: not any(map(is_alive, children)), "what inputs started is left")
    poll_for(lambda: not list(script.temporary.glob("pymp-*")), "a folder is left")
    assert time.monotonic() - since < SOON


@pytest.mark.parametrize(
    ("how", "children"),
    [("Python", "bare"), pytest.param("Python", "none", marks=pytest.mark.slow)],
)
def test_while_inputs_hang(folder: Path, how: str, children: str) -> None:
    """With processes of their own, these without our marks."""
    with hanging(folder, how, children) as script:
        check_all_there(script, {"none": 0, "bare": 2}[children])
        kill(script)


def check_all_there(script: Script, n_children: int) -> None:
    assert commands(script, "driver_watchdog.py") == 1
    assert commands(script, "multiprocessing.forkserver") == 3  # it, and two workers
    assert len(children_of(script)) == n_children
    assert all(map(is_alive, children_of(script)))
    assert len(script.clusters()) == 1


@pytest.mark.thorough
def test_with_all_of_its_group(folder: Path) -> None:
    """As when a terminal's or a job's processes are killed together."""
    with hanging(folder, "C", "children") as script:
        since = time.monotonic()
        os.killpg(script.process.pid, signal.SIGKILL)
        script.process.wait(SOON)
        script.check_all_gone(since)


def test_the_worker_was_faster(folder: Path) -> None:
    """It noticed the end itself and is gone; its child has nothing of ours but its group."""
    leader = subprocess.run(
        ["sh", "-c", "sleep 600 >/dev/null & echo $$ $!"],
        env={"PATH": os.defpath},
        stdout=subprocess.PIPE,
        start_new_session=True,
        check=True,
        text=True,
    )
    worker, child = map(int, leader.stdout.split())
    (folder / "groups" / "a nanny's").mkdir(parents=True)
    (folder / "groups" / "a nanny's" / str(worker)).touch()
    (folder / "groups" / "another-file").touch()
    assert not is_alive(worker)
    assert is_alive(child)

    assert driver_watchdog.end_marked("AT_ONCE_DASK_DRIVER=nobody", str(folder))
    poll_for(lambda: not is_alive(child), "the child is left")


@pytest.mark.thorough
def test_while_inputs_hang_in_c(folder: Path) -> None:
    """The GIL held. And in their worker's own folder anything may lie, under any name."""
    others = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        with hanging(folder, "C", "children") as script:
            check_all_there(script, 4)
            (cluster,) = script.clusters()
            workers = list(cluster.glob("dask-scratch-space/worker-*/"))
            assert len(workers) == 2
            for worker in workers:
                for name in ("group-theory.py", f"group-{others.pid}", str(others.pid)):
                    (worker / name).touch()
            kill(script)
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


def test_an_error_in_one_round_ends_no_more_than_that_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: Iterator[Exception | bool]
    rounds = iter([ValueError("odd"), True, OSError("busy"), False])

    def end_marked(mark: str, folder: str) -> bool:
        came = next(rounds)
        if isinstance(came, Exception):
            raise came
        return came

    monkeypatch.setattr(driver_watchdog, "end_marked", end_marked)
    (folder / "scratch").mkdir()
    gone = subprocess.run(["sh", "-c", "echo $$"], stdout=subprocess.PIPE, check=True)
    driver_watchdog.main(int(gone.stdout), "A=b", str(folder / "scratch"))
    assert list(rounds) == []
    assert not (folder / "scratch").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["C", pytest.param("Python", marks=pytest.mark.slow)])
def test_with_a_fork_server_of_its_own(folder: Path, how: str) -> None:
    """The program had used one before: it, and the workers, are not marked as ours."""
    with hanging(folder, how, "children", before="forkserver") as script:
        assert commands(script, "multiprocessing.forkserver") == 3
        kill(script)


# ----- while the cluster comes and goes

DYING = """
import os, signal, sys
import at_once_dask
from at_once_dask.cluster import driver_watchdog, own

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def watch_and_die(*arguments, watch=driver_watchdog.watch):
    watch(*arguments)
    die()

def dismiss_and_die(dog, dismiss=own._dismiss):
    dismiss(dog)
    die()

moment = sys.argv[1]
if moment == "before the watchdog":
    driver_watchdog.watch = die
if moment == "behind the watchdog":
    driver_watchdog.watch = watch_and_die
own._dismiss = dismiss_and_die
at_once_dask.start(2, dashboard_address="127.0.0.1:0")
at_once_dask.close()
"""


@pytest.mark.parametrize(
    "moment", ["before the watchdog", "behind the watchdog", "when the watchdog is gone"]
)
def test_while_the_cluster_starts_or_closes(folder: Path, moment: str) -> None:
    """Its folder comes after the watchdog, and goes before it."""
    with started(DYING, folder, moment) as script:
        assert script.process.wait(30) == -signal.SIGKILL
        script.check_all_gone(time.monotonic())


def test_one_that_has_ended_and_nobody_asks_for() -> None:
    """Its parent never learns that it is gone: it is no process that could be ended."""
    mark = {"AT_ONCE_DASK_TEST": "a child that ended"}
    child = subprocess.Popen(["true"], env=mark, start_new_session=True)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert child.pid not in dict(driver_watchdog._processes())
    finally:
        child.wait()


# ----- at any moment

RESUMED = """
import json, sys, time
from pathlib import Path
import at_once_dask

def check_inp(n):
    try:
        return [True, json.loads((folder / f"{n}.json").read_text())["value"]]
    except FileNotFoundError:
        return [False, None]

def process_inp(n):
    time.sleep(0.005 + n % 6 / 1000)
    with at_once_dask.atomic_write(folder / f"{n}.json") as file:
        json.dump({"padding": "x" * 20_000, "value": {"sum": n, f"rest {n % 7}": n * n}}, file)

def start():
    at_once_dask.start(2, dashboard_address="127.0.0.1:0")

if sys.argv[1] == "run":
    start()
print("ready", flush=True)
folder = Path(sys.stdin.readline().strip())
start()
result = at_once_dask.run(range(300), check_inp, process_inp, reduce_fn=sum, progress=False)
assert result.report.n_skipped + result.report.n_processed == 300
print(json.dumps(result), flush=True)
"""
AHEAD = 3  # scripts that are started before their turn


def pairs_of(n: int) -> list[tuple[str, int]]:
    return [("sum", n), (f"rest {n % 7}", n * n)]


TOTAL = oracle(range(300), pairs_of, sum)


class Folders:
    """Where the outputs go: to the same folder, until a run has come to its end."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._made = 0
        self.renew()

    def renew(self) -> None:
        self._made += 1
        self.now = self._parent / f"out-{self._made}"
        self.now.mkdir()


@pytest.mark.thorough
@pytest.mark.parametrize("n_kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_at_any_moment(folder: Path, n_kills: int) -> None:
    """Killed and started again each time: no wrong total, no torn output."""
    rng = seeded()
    outputs = Folders(folder)
    kills = ended = 0
    with contextlib.ExitStack() as ends:
        upcoming: deque[Script] = deque()  # these prepare themselves meanwhile
        while kills < n_kills:
            while len(upcoming) < AHEAD:
                upcoming.append(ends.enter_context(prepared(folder, rng)))
            script = upcoming.popleft()
            kill_at_a_moment(script, outputs.now, rng)
            kills += script.process.returncode == -signal.SIGKILL
            check_outputs(outputs.now)
            if came_to_its_end(script):
                ended += 1
                outputs.renew()
        print(ended, "runs came to their end")
        finish(upcoming.popleft(), outputs.now)


def prepared(folder: Path, rng: random.Random) -> contextlib.AbstractContextManager[Script]:
    """A script that waits, before its run or before the start of its cluster, for a folder."""
    return started(RESUMED, folder, rng.choice(["start", "run", "run", "run"]))


def begin(script: Script, outputs: Path) -> None:
    script.wait_for(lambda: script.out == ["ready"], "it is ready")
    assert script.process.stdin is not None
    script.process.stdin.write(f"{outputs}\n")
    script.process.stdin.flush()


def kill_at_a_moment(script: Script, outputs: Path, rng: random.Random) -> None:
    begin(script, outputs)
    pause(rng.uniform(0, 1.5))
    since = time.monotonic()
    script.send(signal.SIGKILL)
    script.process.wait(SOON)
    script.check_all_gone(since)
    assert script.process.returncode in (0, -signal.SIGKILL), script.err


def came_to_its_end(script: Script) -> bool:
    """Whether it has told its total, which must be right."""
    totals = [json.loads(line) for line in script.out if line.startswith("{")]
    assert totals in ([], [TOTAL])
    return bool(totals)


def check_outputs(folder: Path) -> None:
    """Each that is there is whole."""
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text())["value"] == dict(pairs_of(int(path.stem)))


def finish(script: Script, outputs: Path) -> None:
    """The last one is let come to its end."""
    begin(script, outputs)
    script.process.wait(60)
    script.check_all_gone(time.monotonic())
    assert script.process.returncode == 0, script.err
    assert came_to_its_end(script)
    check_outputs(outputs)
    assert len(list(outputs.glob("*.json"))) == 300
