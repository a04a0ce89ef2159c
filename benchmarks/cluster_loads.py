"""What benchmarks/clusters.py has tools do on clusters, what came of it, and the clusters."""

from __future__ import annotations

import contextlib
import ctypes
import operator
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.bag
from distributed import Client, LocalCluster, as_completed, wait

import at_once_dask

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tools"))
from dask_processes import client_of, dask_command
from machines import Attempts

STARTS_SECONDS = 60.0  # for workers
HEAD = ("scenario", "ideal", "seconds", "ratio", "blamed", "right", "again", "note")


@dataclass(frozen=True)
class Row:
    """What one scenario found; None is unknown, or not asked."""

    name: str
    ideal: float | None = None
    seconds: float | None = None
    blamed: int | None = None
    right: bool | None = None
    again: int | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        ratio = self.seconds / self.ideal if self.seconds and self.ideal else None
        return (
            self.name,
            told(self.ideal, ".1f"),
            told(self.seconds, ".2f"),
            told(ratio, ".2f"),
            told(self.blamed, "d"),
            "" if self.right is None else "yes" if self.right else "NO",
            told(self.again, "d"),
            self.note.replace("|", "\\|"),
        )


def told(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


# What runs, and what came of it.


@dataclass(frozen=True)
class Load:
    """The function of the inputs: they sleep; the `bad` ones are segfaults."""

    attempts: Attempts
    n: int
    seconds: float
    bad: Collection[int] = ()
    longest: float = 0.0  # seconds of input 0, if any

    def __call__(self, inp: int) -> dict[str, int]:
        with self.attempts.of(inp):
            if inp in self.bad:
                segfault()
            time.sleep(self.longest if inp == 0 and self.longest else self.seconds)
        return {"sum": inp + 1}

    @property
    def work(self) -> float:
        return self.n * self.seconds

    @property
    def total(self) -> int:
        return sum(inp + 1 for inp in range(self.n) if inp not in self.bad)


def segfault(*ignored: object) -> None:
    ctypes.string_at(0)


def sent(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same for Dask's own calls: of what is no closure they send the module's name only."""
    return lambda inp: function(inp)


def load_of(n: float, seconds: float, **more: Any) -> Load:
    return Load(Attempts(Path.cwd() / "attempts"), round(n), seconds, **more)


@dataclass(frozen=True)
class Found:
    """What a tool made of a load."""

    failed: set[int] | None  # None: it does not say
    total: int | None
    note: str = ""


def by_us(client: Client, load: Load) -> Found:
    error = ""
    try:
        result: Any = at_once_dask.run(
            *(range(load.n), None, load),
            reduce_fn=sum,
            client=client,
            on_error="return",
            progress=False,
        )
    except Exception as raised:
        result, error = getattr(raised, "partial", None), first_line(raised)
        if result is None:
            return Found(None, None, error)
    failures = result.report.failures
    blamed = failures[~failures["input"].isin(load.bad)]["message"]
    note = error or (f"e.g. {blamed.iloc[0]}" if len(blamed) else "")
    return Found(set(failures["input"]), result.get("sum"), note)


def by_map(client: Client, load: Load) -> Found:
    futures = client.map(sent(load), range(load.n), pure=False, retries=10)
    wait(futures)
    failed = {inp for inp, future in enumerate(futures) if future.status != "finished"}
    error = first_line(futures[min(failed)].exception()) if failed else ""
    results = client.gather(futures, errors="skip")
    return Found(failed, sum(result["sum"] for result in results), error)


def by_taking(client: Client, load: Load) -> Found:
    """Each result is taken as it comes: it cannot be lost with its machine any more."""
    futures = client.map(sent(load), range(load.n), pure=False, retries=10)
    inputs = {future.key: inp for inp, future in enumerate(futures)}
    coming = as_completed(futures)
    del futures
    failed, total, error = set(), 0, ""
    for future in coming:
        try:
            total += future.result()["sum"]
        except Exception as raised:
            failed.add(inputs[future.key])
            error = first_line(raised)
        future.release()
    return Found(failed, total, error)


def by_bag(client: Client, load: Load) -> Found:
    bag = (
        dask.bag.from_sequence(range(load.n)).map(sent(load)).map(operator.itemgetter("sum")).sum()
    )
    try:
        return Found(set(), client.compute(bag).result())
    except Exception as error:
        return Found(None, None, first_line(error))


def first_line(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:120]


Tool = Callable[[Client, Load], Found]
OF_TOOL: dict[str, Tool] = {"": by_us, "-map": by_map, "-taken": by_taking, "-bag": by_bag}
TOOLS = {
    "": "",
    "-map": ", client.map and gather",
    "-taken": ", client.map and as_completed",
    "-bag": ", dask.bag",
}


def row(name: str, load: Load, client: Client, tool: Tool = by_us, **more: Any) -> Row:
    """Have a tool do it; `ideal` is that of one worker, until somebody knows better."""
    begin = time.perf_counter()
    found = tool(client, load)
    seconds = time.perf_counter() - begin
    again = [inp for inp, n in load.attempts.begun().items() if n > 1 and inp not in load.bad]
    return Row(
        name=name,
        seconds=seconds,
        blamed=None if found.failed is None else len(found.failed - set(load.bad)),
        right=found.total == load.total and (found.failed is None or found.failed >= set(load.bad)),
        again=len(again),
        note=found.note,
        **more,
    )


def noted(found: Row, *notes: str, **more: Any) -> Row:
    return replace(found, note="; ".join(filter(None, (found.note, *notes))), **more)


@contextlib.contextmanager
def scheduler() -> Iterator[tuple[Path, Client, subprocess.Popen[Any]]]:
    path = Path.cwd() / "scheduler.json"
    with dask_command("scheduler", path, "--port", "0") as process, client_of(path) as client:
        yield path, client, process


@contextlib.contextmanager
def workers(n: int, nthreads: int = 1) -> Iterator[tuple[Path, Client]]:
    """A scheduler, and one ``dask worker`` with so many workers, which are there."""
    options = ("--nworkers", str(n), "--nthreads", str(nthreads))
    with scheduler() as (path, client, _), dask_command("worker", path, *options):
        client.wait_for_workers(n, timeout=STARTS_SECONDS)
        yield path, client


@contextlib.contextmanager
def local(n: int) -> Iterator[tuple[LocalCluster, Client]]:
    with (
        LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield cluster, client


def other(address: object) -> Client:
    """Somebody else's Client of the same cluster."""
    if isinstance(address, Path):
        return Client(scheduler_file=str(address), timeout=30, set_as_default=False)
    return Client(address, timeout=30, set_as_default=False)


@contextlib.contextmanager
def meanwhile(function: Callable[[], object]) -> Iterator[None]:
    """It runs in a thread; what it raises is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        yield
        future.result()
