"""How cost grows: with the number of inputs, and with the number of workers.

Inputs: 1,000 to 10,000,000 that do nothing go through one call of `run`, on a cluster of one worker
a core. Workers: 1 to 128 of them get inputs that sleep, so that more workers than cores are no
problem; each gets the same share, and the whole would ideally take as long with 128 as with one.
(`workers.py` has more of many workers, beside other tools.)

Each cell runs in a new interpreter, on a cluster that is there and warm, and counts:

- seconds of the whole call, and CPU seconds of the driver: its own process, in which Dask's
  scheduler and the nannies live too;
- the partitions that were sent, and the driver's CPU time for each: from the first one sent until
  the last one is back, without what a run costs at its start and end;
- the most tasks that the scheduler held when it was looked at, which is whenever a partition goes
  or something comes back;
- the peak of the driver's resident memory, above what it was before the call.

To the driver's CPU time of all rows a sum is fitted: so much for a partition, and so much for an
input. From that follows how many workers one driver can feed before it needs more than half a core
itself, when a partition is a slice of work, as it is in the middle of a long run.

    python -m pip install -e '.[bench]'
    python benchmarks/growth.py

takes some minutes, prints the tables, and writes them to benchmarks/results/, as JSON, Markdown and
a picture. `--scale 0.01 --rounds 1` is a quick look, and writes only if told to by `--write`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import at_once_dask
from at_once_dask.cluster import connect
from at_once_dask.driver.dask_backend import DaskBackend
from at_once_dask.driver.flights import DEPTH
from at_once_dask.driver.partition_size import MOST, slice_seconds

ROUNDS = 3
CORES = os.cpu_count() or 1
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
MEMORY = "1 GiB"  # that each worker may have
DRIVER = 0.5  # of a core, that the driver may need
WARM_UP = 1000  # inputs
MOST_WORKERS = 5_000
LIMIT_SECONDS = 300  # for a cell
LENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)  # of inputs, in seconds, for what one driver can feed
TARGET_SIZE, TARGET_EACH = 10**6, 3e-6  # so many inputs take at most so many seconds each
RESULTS = Path(__file__).parent / "results"


# What is measured.


@dataclass(frozen=True)
class Case:
    """A row of a table: so many inputs, each asleep for some time, for so many workers."""

    table: str
    n: int
    workers: int
    sleep: float = 0.0  # seconds; 0: the input does nothing at all

    @property
    def work(self) -> Callable[[int], None]:
        return Asleep(self.sleep) if self.sleep else nothing

    @property
    def ideal(self) -> float:
        """Seconds that the inputs take when no worker ever waits."""
        return self.n * self.sleep / self.workers


TRIVIAL = "inputs that do nothing"
SHORT, LONG = "inputs of 10 ms", "inputs of 100 ms"
TABLES = (TRIVIAL, SHORT, LONG)


def nothing(inp: int) -> None:
    pass


@dataclass(frozen=True)
class Asleep:
    seconds: float

    def __call__(self, inp: int) -> None:
        time.sleep(self.seconds)


def cases(scale: float) -> list[Case]:
    def scaled(n: int) -> int:
        return max(1, round(n * scale))

    return [
        *(Case(TRIVIAL, scaled(n), CORES) for n in SIZES),
        *(Case(SHORT, scaled(200) * workers, workers, 0.01) for workers in WORKERS),
        *(Case(LONG, scaled(20) * workers, workers, 0.1) for workers in WORKERS),
    ]


# Inside a cell.


@dataclass(frozen=True)
class Figures:
    """What one cell found."""

    seconds: float
    cpu: float  # seconds of the driver
    partitions: int
    window_cpu: float  # the part of `cpu` while partitions went and came
    tasks: int  # most on the scheduler
    memory: int  # bytes that the driver grew by, at most


class Watch:
    """Looks at the driver whenever the run's loop passes by; there is no thread for it."""

    def __init__(self) -> None:
        self.partitions = 0
        self.most_tasks = 0
        self.cpu = 0.0  # from the first partition sent until the last one is back
        self._begun = 0.0

    def sending(self) -> None:
        if not self.partitions:
            self._begun = driver_cpu()
        self.partitions += 1

    def look(self) -> None:
        self.most_tasks = max(self.most_tasks, len(scheduler().tasks))

    def leaving(self) -> None:
        self.cpu = driver_cpu() - self._begun


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """A Watch on the runs of this process, at the door through which partitions go and come."""
    watch = Watch()
    send, next, leave = DaskBackend.send, DaskBackend.next, DaskBackend.__exit__

    def watched_send(backend: DaskBackend, worker: str, partition: Any) -> None:
        watch.sending()
        send(backend, worker, partition)
        watch.look()

    def watched_next(backend: DaskBackend, timeout: float) -> Any:
        event = next(backend, timeout)
        watch.look()
        return event

    def watched_leave(backend: DaskBackend, *exc_info: object) -> None:
        watch.leaving()
        leave(backend, *exc_info)

    doors = {"send": watched_send, "next": watched_next, "__exit__": watched_leave}
    with mock.patch.multiple(DaskBackend, **doors):
        yield watch


def scheduler() -> Any:
    """The own cluster's, which lives in this process."""
    own = connect._own
    assert own is not None
    return own._cluster.scheduler


def driver_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def own_cluster(workers: int) -> Iterator[None]:
    """A warm one, in an interpreter that sits in a temporary folder."""
    at_once_dask.logfile = str(Path.cwd() / "log.jsonl")
    # The dashboard's usual port may be taken.
    client = at_once_dask.start(workers, memory_limit=MEMORY, dashboard_address="127.0.0.1:0")
    try:
        client.wait_for_workers(workers, timeout=60)
        at_once_dask.run(range(WARM_UP), None, nothing, progress=False)
        yield
    finally:
        del client
        at_once_dask.close()


# Not ru_maxrss: that counts what the process that started this one held, and knows no new start.


def resident() -> int:
    return _status("VmRSS")


def peak() -> int:
    """The most resident memory since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def measure(case: Case) -> Figures:
    with own_cluster(case.workers), watched() as watch:
        gc.collect()
        forget_peak()
        memory, cpu, begin = resident(), driver_cpu(), time.perf_counter()
        report = at_once_dask.run(range(case.n), None, case.work, progress=False)
        seconds = time.perf_counter() - begin
        cpu = driver_cpu() - cpu
        memory = peak() - memory
    if report.n_processed != case.n or not report.ok:
        raise ValueError(f"not all of {case.n} inputs were processed: {report}")
    return Figures(seconds, cpu, watch.partitions, watch.cpu, watch.most_tasks, memory)


# The cells from outside.


def in_new_interpreter(file: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Run `file` with --cell; the last line of its output is what it found."""
    with tempfile.TemporaryDirectory(prefix="cell-") as folder:
        output = Path(folder, "output")
        with output.open("wb") as to_output:  # no pipe: what is left over would hold it open
            subprocess.run(
                [sys.executable, file, "--cell", json.dumps(told)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=to_output,
                timeout=LIMIT_SECONDS,
                check=True,
            )
        found: dict[str, Any] = json.loads(output.read_text("utf-8").splitlines()[-1])
        return found


@dataclass(frozen=True)
class Row:
    """A case, with the median of each figure over the rounds."""

    case: Case
    found: Figures
    least: float  # seconds
    most: float

    @property
    def each(self) -> float:
        """Seconds an input."""
        return self.found.seconds / self.case.n

    @property
    def efficiency(self) -> float:
        return self.case.ideal / self.found.seconds

    @property
    def cpu_each(self) -> float:
        """Seconds of the driver for a partition."""
        return self.found.window_cpu / self.found.partitions

    @property
    def cells(self) -> tuple[str, ...]:
        case, found = self.case, self.found
        by_inputs = (f"{self.each * 1e6:,.2f}", f"{found.memory / case.n:,.0f}")
        by_workers = (f"{case.ideal:.2f}", f"{self.efficiency:.3f}")
        return (
            f"{case.n:,}",
            f"{case.workers}",
            f"{found.seconds:.2f}",
            f"{self.least:.2f}-{self.most:.2f}",
            *(by_workers if case.sleep else by_inputs),
            f"{found.cpu:.2f}",
            f"{found.partitions:,}",
            f"{self.cpu_each * 1000:.1f}",
            f"{found.tasks}",
            f"{found.memory / 1e6:.1f}",
        )


def head(table: str) -> tuple[str, ...]:
    by_inputs = ("µs an input", "driver grew, bytes an input")
    by_workers = ("ideal", "efficiency")
    return (
        "inputs",
        "workers",
        "seconds",
        "min-max",
        *(by_inputs if table == TRIVIAL else by_workers),
        "driver's CPU s",
        "partitions",
        "driver's CPU ms a partition",
        "most tasks",
        "driver grew, MB",
    )


def row(case: Case, cells: Sequence[Figures]) -> Row:
    seconds = [found.seconds for found in cells]
    medians = {
        field.name: statistics.median(getattr(found, field.name) for found in cells)
        for field in fields(Figures)
    }
    for name in ("partitions", "tasks", "memory"):  # of an even number of rounds
        medians[name] = round(medians[name])
    return Row(case, Figures(**medians), min(seconds), max(seconds))


# What follows from the rows.


@dataclass(frozen=True)
class Model:
    """The driver's CPU time as a sum; in seconds."""

    partition: float
    inp: float

    def feeds(self, seconds: float) -> Feeds:
        """The most workers that the driver feeds with inputs that take so long."""
        workers = 1
        while self.share(seconds, workers + 1) <= DRIVER and workers < MOST_WORKERS:
            workers += 1
        inputs = partition_of(seconds, workers)
        return Feeds(seconds, inputs, self.partition + self.inp * inputs, workers)

    def share(self, seconds: float, workers: int) -> float:
        """Of a core, that the driver needs for so many."""
        inputs = partition_of(seconds, workers)
        return workers * (self.partition + self.inp * inputs) / (inputs * seconds)


def partition_of(seconds: float, workers: int) -> float:
    """How many inputs that take so long a partition has in the middle of a long run."""
    return min(MOST, max(1.0, slice_seconds(DEPTH * workers) / seconds))


@dataclass(frozen=True)
class Feeds:
    """For one length of inputs: what a partition of them costs, and who can have one in time."""

    seconds: float
    inputs: float
    cpu: float
    workers: int

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            duration(self.seconds),
            f"{self.inputs:,.0f}",
            f"{self.cpu * 1000:.1f}",
            f"{self.workers:,}" + ("" if self.workers < MOST_WORKERS else " and more"),
        )


FEEDS_HEAD = (
    "an input takes a worker",
    "inputs a partition",
    "driver's CPU ms for it",
    "one driver is enough for about so many workers",
)


def fit(rows: Sequence[Row]) -> Model:
    """By least squares of the relative errors: else the longest run alone would count."""
    cpu = np.array([row.found.window_cpu for row in rows])
    of_what = np.array([(row.found.partitions, row.case.n) for row in rows]) / cpu[:, None]
    partition, inp = np.linalg.lstsq(of_what, np.ones(len(rows)))[0].tolist()
    return Model(max(partition, 0.0), max(inp, 0.0))


def feeds(rows: Sequence[Row]) -> list[Feeds]:
    """For inputs that do nothing, which take a worker some time all the same, and for others."""
    largest = of_table(rows, TRIVIAL)[-1]
    model = fit(rows)
    return [model.feeds(seconds) for seconds in (largest.each * largest.case.workers, *LENGTHS)]


# How it is shown.


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(scale: float, **more: Any) -> dict[str, Any]:
    names = ("at_once_dask", "dask", "distributed")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "cores": CORES,
        "scale": scale,
        **more,
    }


def made(facts: Mapping[str, Any], command: str) -> str:
    told = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    scale = "" if facts["scale"] == 1 else f" Sizes are multiplied by {facts['scale']:g}."
    return f"Made on {facts['date']} by `{command}` with {told}, on {facts['cores']} cores.{scale}"


def of_table(rows: Sequence[Row], table: str) -> list[Row]:
    return [row for row in rows if row.case.table == table]


def conclusions(rows: Sequence[Row]) -> list[str]:
    model, most = fit(rows), max(row.found.tasks / row.case.workers for row in rows)
    nothings, *_, longest = feeds(rows)
    return [
        *on_target(rows),
        f"The scheduler held at most {most:g} tasks a worker, however long the list.",
        (
            f"A partition costs the driver {duration(model.partition)} of CPU time, and each input"
            f" {duration(model.inp)} more."
        ),
        (
            f"One driver stops being enough at about {nothings.workers:,.0f} workers when inputs do"
            f" nothing, and at about {longest.workers:,.0f} when they take"
            f" {duration(longest.seconds)} or more."
        ),
    ]


def on_target(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.case.n:,} inputs take {row.each * 1e6:.2f} µs each; the target of"
        f" {TARGET_EACH * 1e6:g} µs is {'reached' if row.each <= TARGET_EACH else 'MISSED'}."
        for row in of_table(rows, TRIVIAL)
        if row.case.n == TARGET_SIZE
    ]


def tables(rows: Sequence[Row]) -> str:
    return "\n\n".join(
        f"## {table[0].upper()}{table[1:]}\n\n"
        + as_table(head(table), (row.cells for row in of_table(rows, table)))
        for table in TABLES
    )


def as_json(facts: Mapping[str, Any], rows: Sequence[Row], cells: Any) -> str:
    found = {
        **facts,
        "driver_cpu_seconds": asdict(fit(rows)),
        "one_driver_feeds": [asdict(found) for found in feeds(rows)],
        "rows": [
            asdict(row) | {"each": row.each, "efficiency": row.efficiency, "cpu_each": row.cpu_each}
            for row in rows
        ],
        "cells": [{"case": asdict(case), "found": asdict(found)} for case, found in cells],
    }
    return json.dumps(found, indent=2) + "\n"


def as_markdown(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    return f"""# How cost grows

{made(facts, "python benchmarks/growth.py")}
The cluster is there and warm; medians of {facts["rounds"]} rounds, each in a new interpreter.

![Time against inputs, efficiency against workers](growth.png)

{bullets(conclusions(rows))}

{tables(rows)}

## How many workers one driver can feed

{as_table(FEEDS_HEAD, (found.cells for found in feeds(rows)))}

By the sum that fits the driver's CPU time of all rows above: so many that it needs half a core.
Of inputs that do nothing the first line takes the time of the longest run, over its workers.

- **driver**: the process that calls `run`; Dask's scheduler and the nannies live in it, too.
- **driver's CPU ms a partition**: from the first one sent until the last one is back.
- **most tasks**: that the scheduler held at once, whenever it was looked at.
- **driver grew**: the peak of its resident memory, above what it was before the call. Of few inputs
  this is what any run needs.
- **ideal**: the time when no worker ever waits; **efficiency** is its share of the seconds taken.
"""


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def draw(path: Path, rows: Sequence[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    draw_inputs(left, of_table(rows, TRIVIAL))
    draw_workers(right, rows)
    for axis, place in ((left, "upper left"), (right, "lower left")):
        axis.grid(alpha=0.3)
        axis.legend(loc=place, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_inputs(axis: Any, rows: Sequence[Row]) -> None:
    sizes = [row.case.n for row in rows]
    line = [TARGET_EACH * n for n in sizes]
    axis.loglog(sizes, line, "--", color="#8fa3b0", label=f"{TARGET_EACH * 1e6:g} µs an input")
    axis.loglog(sizes, [row.found.seconds for row in rows], "o-", color="#d1495b", label="run()")
    axis.set_title(f"Inputs that do nothing, {CORES} workers, warm", loc="left", fontsize=11)
    axis.set_xlabel("inputs")
    axis.set_ylabel("seconds")


def draw_workers(axis: Any, rows: Sequence[Row]) -> None:
    for table, color in ((SHORT, "#d1495b"), (LONG, "#2e6f95")):
        mine = of_table(rows, table)
        workers, share = zip(*((row.case.workers, row.efficiency) for row in mine), strict=True)
        each = mine[0].case.n // mine[0].case.workers
        axis.plot(workers, share, "o-", color=color, label=f"{table}, {each} a worker")
    axis.set_xscale("log", base=2)
    axis.set_xticks(WORKERS, [str(n) for n in WORKERS])
    axis.set_ylim(0, 1.05)
    axis.set_title("Inputs that sleep: ideal time over time taken", loc="left", fontsize=11)
    axis.set_xlabel(f"workers (on {CORES} cores)")
    axis.set_ylabel("efficiency")


# The whole.


def run_cells(rounds: int, scale: float) -> list[tuple[Case, Figures]]:
    """Round after round, so that what disturbs the machine for a while disturbs all cases alike."""
    cells = []
    for number in range(1, rounds + 1):
        for case in cases(scale):
            found = Figures(**in_new_interpreter(__file__, asdict(case)))
            cells.append((case, found))
            print(
                f"round {number}, {case.table}, {case.n:,} for {case.workers} workers:"
                f" {found.seconds:.2f} s, {found.partitions} partitions",
                file=sys.stderr,
            )
    return cells


def benchmark(rounds: int, scale: float, write: bool) -> None:
    cells = run_cells(rounds, scale)
    rows = [
        row(case, [found for measured, found in cells if measured == case]) for case in cases(scale)
    ]
    print(f"{tables(rows)}\n")
    print(as_table(FEEDS_HEAD, (found.cells for found in feeds(rows))))
    print(f"\n{bullets(conclusions(rows))}")
    if write:
        facts = about(scale, rounds=rounds)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "growth.json").write_text(as_json(facts, rows, cells), "utf-8")
        (RESULTS / "growth.md").write_text(as_markdown(facts, rows), "utf-8")
        draw(RESULTS / "growth.png", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all sizes")
    parser.add_argument("--write", action="store_true", help="write results of other sizes, too")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # how it starts itself
    given = parser.parse_args()
    if given.cell is not None:
        print(json.dumps(asdict(measure(Case(**json.loads(given.cell))))), flush=True)
        return
    write = given.write or given.scale == 1
    if write and importlib.util.find_spec("matplotlib") is None:
        sys.exit("the picture needs matplotlib: python -m pip install -e '.[bench]'")
    benchmark(given.rounds, given.scale, write)


if __name__ == "__main__":
    main()
