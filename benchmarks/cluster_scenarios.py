"""The scenarios of benchmarks/clusters.py: each is a function that returns a row of its table."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster_loads import (
    OF_TOOL,
    STARTS_SECONDS,
    TOOLS,
    Load,
    Row,
    by_us,
    load_of,
    local,
    meanwhile,
    noted,
    other,
    row,
    scheduler,
    segfault,
    sent,
    workers,
)
from dask_processes import client_of, dask_command
from distributed import Client, LocalCluster, wait
from helpers import poll_for
from machines import Attempts, Killer, Machine, Machines, Watch, can_be_private

PROGRAM = Path(__file__).parent / "clusters.py"
LOST_EVERY = 1.5  # seconds
WORD = "Run out-of-band function"  # in the log of a worker, for each question


class SkippedError(Exception):
    """This scenario cannot be run here, and why."""


def adaptive(scale: float, start: int, minimum: int, tool: str = "") -> Row:
    load = load_of(400 * scale, 0.1)
    what = f"adapt({minimum}, 4)" if start == minimum else f"{start} workers, adapt({minimum}, 4)"
    with local(start) as (cluster, client):
        cluster.adapt(minimum=minimum, maximum=4)
        with Watch(lambda: other(cluster.scheduler_address)) as watch:
            found = row(what + TOOLS[tool], load, client, OF_TOOL[tool], ideal=load.work / 4)
    late = [n for _, n in watch.samples[len(watch.samples) // 2 :]]
    least = min(late, default=0)
    return noted(found, f"{watch.most} workers at most, at least {least} in the second half")


@dataclass(frozen=True)
class Coming:
    """How machines come and go, and what is wrong with the inputs."""

    name: str
    number: int | None = signal.SIGKILL
    options: tuple[str, ...] = ()
    private: bool = False
    bad: tuple[int, ...] = ()

    def check(self) -> None:
        if self.private and not can_be_private():
            raise SkippedError("mount namespaces need root")


def lost(scale: float, how: Coming, tool: str = "") -> Row:
    """Three machines; one goes every 1.5 s, and a new one comes."""
    how.check()
    scale = scale if how.number else max(scale, 0.3)  # lives of 5 s must end meanwhile
    load = load_of(3_000 * scale, 0.02, bad=how.bad)
    with (
        scheduler() as (path, client, _),
        Machines(path, 3, *how.options, private=how.private) as machines,
    ):
        client.wait_for_workers(3, timeout=STARTS_SECONDS)
        with Watch(lambda: other(path)) as watch:
            if how.number is None:
                return possible(row(how.name, load, client, OF_TOOL[tool]), load, watch)
            with Killer(machines, LOST_EVERY, how.number) as killer:
                found = row(how.name + TOOLS[tool], load, client, OF_TOOL[tool])
        return noted(possible(found, load, watch), f"{killer.n} lost")


def possible(found: Row, load: Load, watch: Watch) -> Row:
    """With the ideal that the workers allowed that were there."""
    return replace(found, ideal=watch.ideal(load.work))


def lost_twice(scale: float, private: bool) -> Row:
    """The machine that has the long input is lost a second after it was begun, twice."""
    how = Coming("an input of 4 s loses its machine twice", private=private)
    how.check()
    load = load_of(300 * scale, 0.02, longest=4.0)
    with scheduler() as (path, client, _), Machines(path, 3, private=private) as machines:
        client.wait_for_workers(3, timeout=STARTS_SECONDS)
        with meanwhile(lambda: lose_holder(machines, load.attempts, 2)):
            found = row(how.name + ", own disks" * private, load, client, ideal=6.0)
    return noted(found, f"begun {load.attempts.begun()[0]} times")


def lose_holder(machines: Machines, attempts: Attempts, times: int) -> None:
    """Lose the machine that works on input 0, so often."""
    for number in range(times):
        with contextlib.suppress(AssertionError):  # it is not begun again
            poll_for(partial(attempts.pid_of, 0, number), "not begun", seconds=20)
            time.sleep(1)
            pid = attempts.pid_of(0, number)
            if pid and (machine := machines.of(pid)):
                machines.replace(machine)


def all_gone(scale: float, nanny: bool) -> Row:
    """Both machines go, and others come after a while."""
    away, load = 40 * max(scale, 0.2), load_of(200, 0.05)
    options = () if nanny else ("--no-nanny",)
    with scheduler() as (path, client, _), contextlib.ExitStack() as stack:
        before = stack.enter_context(Machines(path, 2, *options))
        client.wait_for_workers(2, timeout=STARTS_SECONDS)

        def go() -> None:
            time.sleep(2)
            for machine in before.all:
                machine.lose()
            time.sleep(away)
            stack.enter_context(Machines(path, 2, *options, prefix="later"))

        what = f"all machines go, others come after {away:g} s" + ", no nannies" * (not nanny)
        with meanwhile(go), Watch(lambda: other(path)) as watch:
            found = row(what, load, client)
        return possible(found, load, watch)


def changed(scale: float, what: str, change: Callable[[LocalCluster, Client], object]) -> Row:
    """In the middle of a run somebody changes what workers there are."""
    load = load_of(8_000 * scale, 0.005)
    with local(4) as (cluster, client), other(cluster.scheduler_address) as second:

        def go() -> None:
            poll_for(load.attempts.begun, "nothing is begun", seconds=60)
            time.sleep(load.work / 4 * 0.3)
            change(cluster, second)

        with Watch(lambda: other(cluster.scheduler_address)) as watch, meanwhile(go):
            found = row(what, load, client)
            pause = time.time() - load.attempts.last()
        return noted(possible(found, load, watch), f"{pause:.1f} s from last input to return")


def to_one(cluster: LocalCluster, client: Client) -> None:
    cluster.scale(1)


def retire_two(cluster: LocalCluster, client: Client) -> None:
    client.retire_workers(list(client.nthreads())[:2])


def restart(cluster: LocalCluster, client: Client) -> None:
    client.restart()


def questions(scale: float) -> Row:
    """15 workers are in one long input each, one has nothing to do."""
    load = load_of(15, 20 * max(scale, 0.3))
    with workers(16) as (path, client):
        log = path.parent / "worker.log"
        before = log.read_text().count(WORD)
        found = row("15 of 16 workers in long inputs", load, client, ideal=load.seconds)
        n = log.read_text().count(WORD) - before
    assert found.seconds
    return noted(found, f"{n} questions, {n / found.seconds:.1f} a second")


def many(scale: float, n: int, inputs: int) -> Row:
    load = load_of(inputs * scale, 0.05)
    with workers(n) as (_, client):
        found = row(f"{n} workers, {load.n:,} inputs of 50 ms", load, client, ideal=load.work / n)
        late = 0.99 * load.n
        ends = sorted(float(line[3]) for line in load.attempts.lines() if line[0] == "ended")
        tail = ends[-1] - ends[min(round(late), len(ends) - 1)] if ends else 0.0
    return noted(found, f"{tail:.1f} s for the last 1 %")


def held(scale: float) -> Row:
    """One of two workers has a long task of somebody else's."""
    load, seconds = load_of(40, 0.1), 12 * max(scale, 0.5)
    with workers(2) as (path, client), other(path) as theirs:
        address = next(iter(client.nthreads()))
        future = theirs.submit(time.sleep, seconds, workers=[address])
        poll_for(lambda: any(client.processing().values()), "their task is not begun")
        time.sleep(0.5)
        what = f"one of two workers held for {seconds:g} s by another's task"
        found = row(what, load, client, ideal=load.work)
        del future
    return found


def others_segfault(scale: float) -> Row:
    """Somebody else's tasks are segfaults, on workers of four threads that ours use, too."""
    load = load_of(2_000 * max(scale, 0.3), 0.05)
    with workers(2, 4) as (path, client), other(path) as theirs:

        def go() -> None:
            poll_for(load.attempts.begun, "nothing is begun", seconds=60)
            futures = theirs.map(sent(segfault), range(2), pure=False)
            wait(futures)

        with Watch(lambda: other(path)) as watch, meanwhile(go):
            found = row("others' tasks segfault, 4 threads", load, client)
    return replace(found, ideal=watch.ideal(load.work / 4))


@contextlib.contextmanager
def driver(path: Path, n: int, seconds: float, *bad: int) -> Iterator[tuple[Any, Attempts]]:
    """Another process that calls `run` on the same cluster, in a folder of its own."""
    folder = path.parent / "driver"
    folder.mkdir()
    attempts = Attempts(folder / "attempts")
    told = {"scheduler_file": str(path), "n": n, "seconds": seconds, "bad": bad}
    command = [sys.executable, str(PROGRAM), "--driver", json.dumps(told)]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    try:
        yield process, attempts
    finally:
        process.kill()
        process.wait()


def drive(scheduler_file: str, n: int, seconds: float, bad: Sequence[int]) -> None:
    """What that process does."""
    load = load_of(n, seconds, bad=tuple(bad))
    with client_of(Path(scheduler_file)) as client:
        print(json.dumps(sorted(by_us(client, load).failed or ())))


def two_drivers(scale: float) -> Row:
    """An input of the other driver is a segfault."""
    load = load_of(2_000 * max(scale, 0.3), 0.05)
    with workers(2, 4) as (path, client), driver(path, load.n, 0.05, 5) as (process, attempts):
        poll_for(attempts.begun, "the other driver does nothing", seconds=60)
        with Watch(lambda: other(path)) as watch:
            found = row("two drivers, the other's input segfaults", load, client)
        process.wait(300)
        theirs = (path.parent / "driver" / "output").read_text().splitlines()[-1]
    # The other one takes half.
    ideal = watch.ideal(load.work / 2)
    return noted(found, f"the other blames {theirs}, where [5] is right", ideal=ideal)


def call(scale: float) -> Row:
    """What `run` costs when there is hardly anything to do."""
    load, seconds = load_of(1, 0.0), []
    with workers(2) as (_, client):
        for _ in range(11):
            one = row("a call: one input that does nothing", load, client)
            seconds.append(one.seconds or 0.0)
    best, median = min(seconds[1:]), statistics.median(seconds[1:])
    return noted(replace(one, seconds=median, again=None), f"median of 10; best {best:.3f} s")


def other_python(scale: float, minor: int) -> Row:
    """Workers of another Python than the driver's."""
    with scheduler() as (path, client, _):
        machine = Machine(path, "other", python=other_pythons(minor))
        try:
            client.wait_for_workers(1, timeout=STARTS_SECONDS)
            found = row(f"workers of Python 3.{minor}", load_of(4, 0.01), client)
        finally:
            machine.lose()
    return replace(found, right=None)


def other_pythons(minor: int) -> str:
    """One of this version that has Dask, and what else the library needs."""
    if minor == sys.version_info.minor:
        raise SkippedError("it is the driver's")
    named = os.environ.get("OTHER_PYTHONS", "").split(os.pathsep)
    for python in filter(None, [*named, shutil.which(f"python3.{minor}")]):
        test = f"import sys, distributed, pandas; assert sys.version_info[:2] == (3, {minor})"
        if subprocess.run([python, "-c", test], capture_output=True).returncode == 0:
            return python
    raise SkippedError(f"no Python 3.{minor} with distributed is here")


def killed_driver(scale: float) -> Row:
    """What is left a minute after kill -9, also on a worker that has come since."""
    seconds = 60 * max(scale, 0.2)
    with workers(2) as (path, client):
        before = traces(client)
        with driver(path, 10_000, 0.05) as (process, attempts):
            poll_for(lambda: len(attempts.begun()) > 100, "it does nothing", seconds=60)
            process.kill()
            process.wait()
            killed = time.time()
            time.sleep(seconds)
        with dask_command("worker", path, "--nthreads", "1"):
            client.wait_for_workers(3, timeout=STARTS_SECONDS)
            left = sorted(traces(client) - before)
        went_on = max(0.0, attempts.last() - killed)
    note = f"{len(left)} things left after {seconds:g} s: {', '.join(left) or 'none'}"
    return Row("kill -9 of the driver", seconds=went_on, note=f"seconds: inputs went on; {note}")


def traces(client: Client) -> set[str]:
    """What a run may leave, by its name, on scheduler, nannies and workers."""
    found = set(client.run_on_scheduler(on_scheduler))
    for nanny in (False, True):
        for names in client.run(on_server, nanny=nanny).values():
            found |= {f"{'nanny' if nanny else 'worker'}: {name}" for name in names}
    return found


def on_scheduler(dask_scheduler: Any) -> list[str]:
    kinds = ("plugins", "worker_plugins", "nanny_plugins", "tasks")
    names = [
        f"scheduler's {kind}: {name}" for kind in kinds for name in getattr(dask_scheduler, kind)
    ]
    topics = [name for name in dask_scheduler._broker._topics if "at_once" in str(name)]
    return [*map(str, names), *(f"topic: {name}" for name in topics)]


def on_server(dask_worker: Any) -> list[str]:
    folder = Path(dask_worker.local_directory)
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    functions = [
        kind for kind in kinds if (kind.__module__, kind.__name__) == ("cluster_loads", "Load")
    ]
    return [
        *(["a function"] if functions else []),
        *(f"plugin {name}" for name in dask_worker.plugins),
        f"stdout is {type(sys.stdout).__module__}.{type(sys.stdout).__name__}",
        *(f"file {path.name}" for path in folder.parent.glob("*at_once*")),
    ]


def stopped_scheduler(scale: float) -> Row:
    """SIGTERM to the driver while the scheduler does not answer."""
    with scheduler() as (path, client, process), dask_command("worker", path, "--nthreads", "1"):
        client.wait_for_workers(1, timeout=STARTS_SECONDS)
        with driver(path, 10_000, 0.05) as (drives, attempts):
            poll_for(lambda: len(attempts.begun()) > 20, "it does nothing", seconds=60)
            os.killpg(process.pid, signal.SIGSTOP)
            try:
                begin = time.perf_counter()
                drives.terminate()
                code = drives.wait(120)
                seconds = time.perf_counter() - begin
            finally:
                os.killpg(process.pid, signal.SIGCONT)
    return Row("SIGTERM while the scheduler is stopped", seconds=seconds, note=f"exit code {code}")


KILL = Coming("a machine lost every 1.5 s (SIGKILL)")
TERM, NO_NANNY = signal.SIGTERM, ("--no-nanny",)
LIFETIME = ("--lifetime", "5s", "--lifetime-restart")
COMING = {
    "lost-private": Coming("a machine lost every 1.5 s (SIGKILL), own disks", private=True),
    "lost-term": Coming("a machine told to go every 1.5 s (SIGTERM to all its processes)", TERM),
    "lost-lifetime": Coming("machines with --lifetime 5s --lifetime-restart", None, LIFETIME),
    "lost-no-nanny": Coming("a machine lost every 1.5 s (SIGKILL), no nannies", options=NO_NANNY),
    "lost-no-nanny-term": Coming(
        "a machine told to go every 1.5 s (SIGTERM), no nannies", TERM, NO_NANNY
    ),
    "lost-segfault": Coming(
        "a machine lost every 1.5 s (SIGKILL), own disks, one input segfaults",
        private=True,
        bad=(150,),
    ),
}
ADAPTIVE = {"adapt-0": (0, 0), "adapt-1": (1, 1), "adapt-4-1": (4, 1)}
Scenario = Callable[[float], Row]
SCENARIOS: dict[str, Scenario] = {
    **{
        name + tool: partial(adaptive, start=start, minimum=minimum, tool=tool)
        for name, (start, minimum) in ADAPTIVE.items()
        for tool in ("", "-map")
    },
    **{f"lost{tool}": partial(lost, how=KILL, tool=tool) for tool in OF_TOOL},
    **{name: partial(lost, how=how) for name, how in COMING.items()},
    "twice": partial(lost_twice, private=False),
    "twice-private": partial(lost_twice, private=True),
    "all-gone": partial(all_gone, nanny=True),
    "all-gone-no-nanny": partial(all_gone, nanny=False),
    "scale": partial(changed, what="scale(1) in the middle", change=to_one),
    "retire": partial(changed, what="retire_workers(2 of 4)", change=retire_two),
    "restart": partial(changed, what="client.restart()", change=restart),
    "questions": questions,
    "many-16": partial(many, n=16, inputs=8_000),
    "many-64": partial(many, n=64, inputs=20_000),
    "held": held,
    "others": others_segfault,
    "drivers": two_drivers,
    "call": call,
    **{f"python3.{minor}": partial(other_python, minor=minor) for minor in (12, 13)},
    "killed": killed_driver,
    "stopped": stopped_scheduler,
}
LONG = {"many-64"}
