"""How fast is it, beside other tools on the same work?

Each cell, of a scenario with a tool, runs in a new interpreter: it imports what it needs, makes the
inputs, starts the tool's workers, has them do a few inputs, and only then times the work, until its
results are in hand. They are checked: a wrong one is an error, not a number. The rounds of a
scenario go over all its tools in turn, so that what disturbs the machine disturbs them all alike;
the median counts.

    python -m pip install -e '.[bench]'
    python benchmarks/speed.py

takes half an hour or so, prints the table and writes it to benchmarks/results/, as JSON,
Markdown and a picture. `--scenario trivial --peer at_once_dask --rounds 1 --scale 0.01` measures a
part of it, and writes only if told to by `--write`. The exit code is 1 when a cell has failed; a
target that is missed is told, no more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import heapq
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from crashes import MARK, kill_all
from peers import PEERS, WORKERS, Outcome, versions
from scenarios import OURS, SCENARIOS, Scenario, Target, warm_up

ROUNDS = 5
PART = " †"
LIMIT_SECONDS = 180  # for a cell, its start and end included
SETTLED_SECONDS = 1.0  # from then on a driver's memory is watched
SAMPLE_SECONDS = 0.05
RESULTS = Path(__file__).parent / "results"


# Inside a cell.


@dataclass(frozen=True)
class Measured:
    """What one cell found."""

    seconds: float
    greedy: float | None = None  # seconds
    memory: int | None = None  # bytes that the driver grew by


def warm(scenario: Scenario, peer: str, n: int) -> Measured:
    """The work alone: imports, inputs, and workers that have done something are there before."""
    assert scenario.work is not None
    work = scenario.work(n)
    with PEERS[peer].open() as use:
        use(warm_up(reducing=work.gather is not None))
        gc.collect()
        begin = time.perf_counter()
        outcome = use(work)
        seconds = time.perf_counter() - begin
        outcome.check(work)
        return Measured(outcome.seconds or seconds, greedy_of(outcome) if scenario.greedy else None)


def greedy_of(outcome: Outcome) -> float:
    """The makespan if each free worker took the next input at once, by durations as measured."""
    free = [0.0] * WORKERS
    for duration in outcome.durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def with_memory(scenario: Scenario, peer: str, n: int) -> Measured:
    assert scenario.work is not None
    work = scenario.work(n)
    with PEERS[peer].open() as use:
        use(warm_up(reducing=False))
        gc.collect()
        with memory_watched() as samples:
            begin = time.perf_counter()
            outcome = use(work)
            seconds = time.perf_counter() - begin
        outcome.check(work)
    return Measured(seconds, memory=max(samples) - samples[0] if samples else None)


@contextlib.contextmanager
def memory_watched() -> Iterator[list[int]]:
    """The resident memory of this process, after a second and then again and again."""
    samples: list[int] = []
    ended = threading.Event()
    process = psutil.Process()

    def watch() -> None:
        wait = SETTLED_SECONDS
        while not ended.wait(wait):
            samples.append(process.memory_info().rss)
            wait = SAMPLE_SECONDS

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


COLD = {
    "at_once_dask": """
import at_once_dask
at_once_dask.run([1], None, lambda inp: None, progress=False)
""",
    "client-submit": f"""
from distributed import Client
client = Client(n_workers={WORKERS}, threads_per_worker=1)
client.submit(lambda inp: None, 1).result()
""",
}


def cold(scenario: Scenario, peer: str, n: int) -> Measured:
    """From the start of an interpreter until its statement has ended; what comes after is not."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", f"{COLD[peer]}print('done', flush=True)"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        seconds = time.perf_counter() - begin
        if told != "done\n":
            raise ValueError(f"it told {told!r}")
    return Measured(seconds)


WAYS: Mapping[str, Callable[[Scenario, str, int], Measured]] = {
    "warm": warm,
    "memory": with_memory,
    "cold": cold,
}


def inside(told: str) -> None:
    """What the interpreter of a cell does; the last line of its output is what it found."""
    name, peer, n = json.loads(told)
    scenario = SCENARIOS[name]
    print(json.dumps(asdict(WAYS[scenario.way](scenario, peer, n))), flush=True)


# The cells from outside.


@dataclass(frozen=True)
class Cell:
    """One round of a scenario with a tool: what it found, or what became of it."""

    scenario: str
    peer: str
    n: int
    round: int
    measured: Measured | None = None
    problem: str = ""


def run_cell(name: str, peer: str, n: int, number: int) -> Cell:
    """Run a cell in an interpreter of its own; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        command = [sys.executable, __file__, "--cell", json.dumps([name, peer, n])]
        code = exit_code(command, folder, output, errors)
        if code is None:
            return Cell(name, peer, n, number, problem=f"longer than {LIMIT_SECONDS} s")
        if code != 0:
            print(errors.read_text("utf-8", "replace"), file=sys.stderr)
            return Cell(name, peer, n, number, problem="error")
        found = json.loads(output.read_text("utf-8").splitlines()[-1])
    return Cell(name, peer, n, number, Measured(**found))


def exit_code(command: Sequence[str], folder: str, output: Path, errors: Path) -> int | None:
    """None when it did not end before the limit."""
    mark = uuid.uuid4().hex
    # Not to pipes: these would be held open by processes left over.
    with output.open("wb") as to_output, errors.open("wb") as to_errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            # What a killed cell leaves of temporary files goes with its folder.
            env={**os.environ, "TMPDIR": folder, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=to_output,
            stderr=to_errors,
            start_new_session=True,
        )
        try:
            return process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_all(process.pid, mark)
            process.wait()


def run_scenario(name: str, peers: Iterable[str], rounds: int, scale: float) -> Iterator[Cell]:
    """Round after round, so that what disturbs one tool disturbs all of them."""
    scenario = SCENARIOS[name]
    given_up: set[str] = set()
    for number in range(1, rounds + 1):
        for peer in peers:
            n = scenario.inputs(peer, scale)
            if peer in given_up:
                continue
            if not PEERS[peer].installed:
                cell = Cell(name, peer, n, number, problem="not installed")
            else:
                cell = run_cell(name, peer, n, number)
            if cell.measured is None:
                given_up.add(peer)
            tell(cell)
            yield cell


def tell(cell: Cell) -> None:
    found = cell.problem if cell.measured is None else duration(cell.measured.seconds)
    print(f"{cell.scenario}, round {cell.round}, {PEERS[cell.peer].name}: {found}", file=sys.stderr)


# What is made of the cells.


@dataclass(frozen=True)
class Row:
    """A scenario with a tool, in medians of the rounds; all times in seconds."""

    scenario: str
    peer: str
    n: int
    part: bool  # of the inputs that at_once_dask had
    problem: str = ""
    seconds: float = 0.0
    least: float = 0.0
    most: float = 0.0
    each: float = 0.0
    times_ours: float | None = None
    over_greedy: float | None = None
    memory_each: float | None = None  # bytes an input

    @property
    def cells(self) -> tuple[str, ...]:
        name = PEERS[self.peer].name
        head = (self.scenario, name, f"{self.n:,}{PART if self.part else ''}")
        if self.problem:
            return *head, self.problem, *("-",) * (len(HEAD) - len(head) - 1)
        return (
            *head,
            f"{self.seconds:.3f}",
            f"{self.least:.3f}-{self.most:.3f}",
            f"{self.each * 1e6:,.2f}" if self.each < 1e-4 else f"{self.each * 1e6:,.0f}",
            number_or_dash(self.times_ours),
            number_or_dash(self.over_greedy),
            "-" if self.memory_each is None else f"{self.memory_each * self.n / 1e6:.0f}",
        )


HEAD = (
    "scenario",
    "tool",
    "inputs",
    "seconds",
    "min-max",
    "µs an input",
    "times at_once_dask",
    "times greedy",
    "driver grew by MB",
)


def number_or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}" if number >= 10 else f"{number:.2f}"


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    keys = dict.fromkeys((cell.scenario, cell.peer) for cell in cells)
    grouped = [[cell for cell in cells if (cell.scenario, cell.peer) == key] for key in keys]
    ours = {row.scenario: row.each for row in map(row, grouped) if is_ours(row)}
    return [row(group, ours.get(group[0].scenario)) for group in grouped]


def is_ours(row: Row) -> bool:
    return row.peer == OURS and not row.problem


def row(cells: Sequence[Cell], ours: float | None = None) -> Row:
    first = cells[0]
    part = SCENARIOS[first.scenario].shares[first.peer] != 1
    problem = next((cell.problem for cell in cells if cell.problem), "")
    if problem:
        return Row(first.scenario, first.peer, first.n, part, problem)
    found = [cell.measured for cell in cells if cell.measured is not None]
    seconds = [measured.seconds for measured in found]
    each = statistics.median(seconds) / first.n
    memory = median(measured.memory for measured in found)
    return Row(
        first.scenario,
        first.peer,
        first.n,
        part,
        seconds=statistics.median(seconds),
        least=min(seconds),
        most=max(seconds),
        each=each,
        times_ours=None if ours is None else each / ours,
        over_greedy=median(
            measured.seconds / measured.greedy for measured in found if measured.greedy
        ),
        memory_each=None if memory is None else memory / first.n,
    )


def median(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None


@dataclass(frozen=True)
class Verdict:
    """A target, and what was measured; None: it cannot be told."""

    scenario: str
    target: str
    most: float
    measured: float | None

    @property
    def reached(self) -> bool | None:
        return None if self.measured is None else self.measured <= self.most

    @property
    def cells(self) -> tuple[str, ...]:
        word = {True: "reached", False: "MISSED", None: "-"}[self.reached]
        measured = "-" if self.measured is None else f"{self.measured:.3g}"
        return self.scenario, self.target, f"{self.most:.3g}", measured, word


VERDICT_HEAD = ("scenario", "target", "limit", "measured", "")


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    return [
        verdict(name, target, {row.peer: row for row in rows if is_good(row, name)})
        for name in dict.fromkeys(row.scenario for row in rows)
        for target in SCENARIOS[name].targets
    ]


def is_good(row: Row, scenario: str) -> bool:
    return row.scenario == scenario and not row.problem


def verdict(name: str, target: Target, figures: Mapping[str, Row]) -> Verdict:
    return Verdict(name, target.text, target.most, target.measured(figures))


# How it is shown.


def as_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(rounds: int, scale: float) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | versions(),
        "cores": os.cpu_count(),
        "workers": WORKERS,
        "rounds": rounds,
        "scale": scale,
        "limit_seconds": LIMIT_SECONDS,
    }


def as_json(facts: Mapping[str, Any], cells: Sequence[Cell], rows: Sequence[Row]) -> str:
    return (
        json.dumps(
            {
                **facts,
                "targets": [asdict(found) | {"reached": found.reached} for found in verdicts(rows)],
                "rows": [asdict(row) for row in rows],
                "cells": [asdict(cell) for cell in cells],
            },
            indent=2,
        )
        + "\n"
    )


NOTES = """\
† A part of the inputs only, as it would take minutes; compared by the time an input takes.
"seconds" is the median of the rounds. "times at_once_dask" is the time an input takes, over that of
at_once_dask. Greedy is the makespan of a simulation in which each free worker takes the next input
in order, by the durations as measured. "driver grew by" is the most its resident memory was above
what it was after one second."""


def as_markdown(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    told = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    scale = "" if facts["scale"] == 1 else f" Sizes are multiplied by {facts['scale']:g}."
    names = dict.fromkeys(row.scenario for row in rows)
    abouts = "\n".join(f"- **{name}**: {SCENARIOS[name].about}." for name in names)
    return f"""# How fast it is, beside other tools

Made on {facts["date"]} by `python benchmarks/speed.py` with {told}, on {facts["cores"]} cores.
{facts["workers"]} workers each, started and warmed up before; {facts["rounds"]} rounds.{scale}

![Time an input takes with each tool](speed.png)

## Targets

{as_table(VERDICT_HEAD, (found.cells for found in verdicts(rows)))}

## The scenarios

{abouts}

## All figures

{as_table(HEAD, (row.cells for row in rows))}

{NOTES}
"""


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


COLUMNS = 3
BAR_INCHES, TITLE_INCHES = 0.3, 1.1
OUR_COLOR, OTHER_COLOR = "#d1495b", "#8fa3b0"


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A chart for each scenario: the time an input takes with each tool, on a log axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.scenario for row in rows))
    charts = {name: [row for row in rows if is_good(row, name)] for name in names}
    lines = [names[start : start + COLUMNS] for start in range(0, len(names), COLUMNS)]
    bars = [max(1, *(len(charts[name]) for name in line)) for line in lines]
    heights = [TITLE_INCHES + BAR_INCHES * most for most in bars]
    figure, axes = pyplot.subplots(
        len(lines),
        COLUMNS,
        figsize=(18, sum(heights) + 0.6),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for line, most, line_axes in zip(lines, bars, axes, strict=True):
        for name, axis in zip(line, line_axes, strict=False):
            draw_one(axis, name, charts[name], most)
    figure.suptitle(
        f"Time an input takes with {WORKERS} workers, median of the rounds, and the range"
        f" (log scale; shorter is better;{PART}: fewer inputs)",
        fontsize=14,
    )
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_one(axis: Any, name: str, rows: Sequence[Row], bars: int) -> None:
    """As high as if there were so many `bars`: all charts of a line have bars of one size."""
    axis.set_title(f"{name}: {SCENARIOS[name].n:,} inputs", fontsize=11, loc="left", pad=20)
    axis.annotate(
        shortened(SCENARIOS[name].about),
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
    ).set_in_layout(False)
    if not rows:
        axis.set_axis_off()
        return
    each = [row.each for row in rows]
    whiskers = [
        [row.each - row.least / row.n for row in rows],
        [row.most / row.n - row.each for row in rows],
    ]
    colors = [OUR_COLOR if row.peer == OURS else OTHER_COLOR for row in rows]
    labels = [PEERS[row.peer].name + (PART if row.part else "") for row in rows]
    axis.barh(labels, each, color=colors, xerr=whiskers, error_kw={"lw": 1, "alpha": 0.6})
    axis.set_xscale("log")
    # A bar on a log axis has no zero to begin at; the labels need room at the other end.
    low, high = min(each) / 3, max(each)
    axis.set_xlim(low, high * (high / low) ** 0.5)
    axis.set_ylim(bars - 0.4, -0.6)
    for place, row in enumerate(rows):
        ratio = None if row.peer == OURS else row.times_ours
        axis.annotate(
            duration(row.each) + (f" ({number_or_dash(ratio)} x)" if ratio else ""),
            (row.most / row.n, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        ).set_in_layout(False)
    axis.xaxis.set_major_formatter(lambda value, place: duration(value))
    axis.xaxis.set_minor_formatter(lambda value, place: "")
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def shortened(text: str, most: int = 58) -> str:
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


def benchmark(names: Sequence[str], only: Sequence[str], given: argparse.Namespace) -> bool:
    """Whether every cell has given a number."""
    cells: list[Cell] = []
    for name in names:
        peers = [peer for peer in SCENARIOS[name].shares if not only or peer in only]
        cells += run_scenario(name, peers, given.rounds, given.scale)
    rows = rows_of(cells)
    print(as_text(HEAD, (row.cells for row in rows)))
    print(f"\n{NOTES}\n")
    print(as_text(VERDICT_HEAD, (found.cells for found in verdicts(rows))))
    if given.write:
        write(about(given.rounds, given.scale), cells, rows)
    return not any(row.problem and row.problem != "not installed" for row in rows)


def write(facts: Mapping[str, Any], cells: Sequence[Cell], rows: Sequence[Row]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(as_json(facts, cells, rows), "utf-8")
    (RESULTS / "speed.md").write_text(as_markdown(facts, rows), "utf-8")
    draw(RESULTS / "speed.png", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, default=[])
    parser.add_argument("--peer", action="append", choices=PEERS, default=[])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all sizes")
    parser.add_argument("--write", action="store_true", help="write results of a part, too")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # how it starts itself
    given = parser.parse_args()
    if given.cell is not None:
        inside(given.cell)
        return
    given.write |= not given.scenario and not given.peer and given.scale == 1
    if given.write and importlib.util.find_spec("matplotlib") is None:
        sys.exit("the picture needs matplotlib: python -m pip install -e '.[bench]'")
    sys.exit(not benchmark(given.scenario or list(SCENARIOS), given.peer, given))


if __name__ == "__main__":
    main()
