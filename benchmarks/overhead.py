"""What the page "At once" and the capturing of output cost a run that nobody looks at.

The same list goes through `run` three ways: with neither, with the page only, and with both, side
by side, on the same warm cluster of two workers, in rounds whose order alternates, so that what
else the machine does hits all alike. It is measured for inputs of about a millisecond, as many as
take some two seconds, and for inputs that do nothing, which come back in the largest partitions.

    python benchmarks/overhead.py

prints the table and writes it to benchmarks/results/, as JSON and as Markdown. The exit code is 1
when a median of the rounds' ratios is above the target.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import at_once_dask
from at_once_dask import sight

ROUNDS = 15
WORKERS = 2
WORK_SECONDS = 0.001
TARGET = 1.02
RESULTS = Path(__file__).parent / "results"
HEAD = (
    "inputs", "with", "rounds", "without, median s", "with, median s", "median ratio", "smallest",
    "largest", "holds",
)  # fmt: skip
OFF, PAGE, BOTH = "neither", "the page", "page and capture"
WAYS = (OFF, PAGE, BOTH)


def busy(inp: int) -> None:
    """Keep a core busy for a millisecond."""
    end = time.perf_counter() + WORK_SECONDS
    while time.perf_counter() < end:
        pass


def nothing(inp: int) -> None:
    """The least that an input can be."""


# The function, and how many inputs take some two seconds.
SCENARIOS: dict[str, tuple[Callable[[int], None], int]] = {
    "of 1 ms": (busy, 4_000),
    "that do nothing": (nothing, 2_000_000),
}


@dataclass(frozen=True)
class Round:
    """A run each way, side by side: seconds by way, in the order in which they were made."""

    scenario: str
    seconds: dict[str, float]

    def ratio(self, way: str) -> float:
        return self.seconds[way] / self.seconds[OFF]


@dataclass(frozen=True)
class Row:
    """What the rounds of one scenario say together about one way."""

    scenario: str
    n: int
    way: str
    rounds: int
    off: float
    on: float
    ratio: float
    smallest: float
    largest: float

    @property
    def holds(self) -> bool:
        return self.ratio <= TARGET

    @property
    def cells(self) -> tuple[str, ...]:
        seconds = (f"{value:.3f}" for value in (self.off, self.on))
        ratios = (f"{value:.4f}" for value in (self.ratio, self.smallest, self.largest))
        name = f"{self.n:,} {self.scenario}"
        return name, self.way, str(self.rounds), *seconds, *ratios, "yes" if self.holds else "NO"


def once(scenario: str, way: str) -> float:
    """Seconds of one run."""
    function, n = SCENARIOS[scenario]
    sight.switched_on = way != OFF
    at_once_dask.capture_output = way == BOTH
    begun = time.perf_counter()
    report = at_once_dask.run(range(n), None, function, progress=False)
    seconds = time.perf_counter() - begun
    assert report.ok
    assert report.n_processed == n
    return seconds


def measure(scenario: str, n_rounds: int) -> list[Round]:
    once(scenario, BOTH)  # the first one imports
    orders = itertools.islice(itertools.cycle(itertools.permutations(WAYS)), n_rounds)
    return [Round(scenario, {way: once(scenario, way) for way in order}) for order in orders]


def row(scenario: str, rounds: Sequence[Round], way: str) -> Row:
    ratios = [one.ratio(way) for one in rounds]
    return Row(
        scenario=scenario,
        n=SCENARIOS[scenario][1],
        way=way,
        rounds=len(rounds),
        off=statistics.median(one.seconds[OFF] for one in rounds),
        on=statistics.median(one.seconds[way] for one in rounds),
        ratio=statistics.median(ratios),
        smallest=min(ratios),
        largest=max(ratios),
    )


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def versions() -> dict[str, str]:
    packages = ("at_once_dask", "dask", "distributed")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def as_json(rounds: Sequence[Round], rows: Sequence[Row]) -> str:
    about = {
        "date": today(),
        "versions": versions(),
        "cores": os.cpu_count(),
        "workers": WORKERS,
        "target": TARGET,
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
        "rounds": [asdict(one) for one in rounds],
    }
    return json.dumps(about, indent=2) + "\n"


def as_markdown(rows: Sequence[Row]) -> str:
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# What the page and the capturing of output cost when nobody looks

Made on {today()} by `python benchmarks/overhead.py` with {told}, on {os.cpu_count()} cores.
The same run on a warm cluster of {WORKERS} workers, with the page "At once" and `capture_output`
switched off, with the page only, and with both, in rounds whose order alternates. The target: a
median ratio of at most {TARGET:g}.

{table}

- **ratio**: with to without, of the runs of one round.
"""


def as_text(rows: Sequence[Row]) -> str:
    lines = [HEAD, *(row.cells for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def benchmark(n_rounds: int) -> bool:
    """Whether the target is reached."""
    rounds = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        at_once_dask.logfile = str(Path(folder, "log.jsonl"))
        # The dashboard's usual port may be taken.
        at_once_dask.start(WORKERS, dashboard_address="127.0.0.1:0")
        try:
            for scenario in SCENARIOS:
                rounds += measure(scenario, n_rounds)
        finally:
            at_once_dask.close()
    rows = [
        row(name, [one for one in rounds if one.scenario == name], way)
        for name in SCENARIOS
        for way in (PAGE, BOTH)
    ]
    print(as_text(rows))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(as_json(rounds, rows), "utf-8")
    (RESULTS / "overhead.md").write_text(as_markdown(rows), "utf-8")
    return all(row.holds for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    sys.exit(not benchmark(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
