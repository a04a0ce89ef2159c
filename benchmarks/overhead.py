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
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from growth import RESULTS, about, as_table, made, own_cluster
from scenarios import nothing, spin

import at_once_dask
from at_once_dask.cluster import connect
from at_once_dask.cluster.dashboard import Page

ROUNDS = 15
WORKERS = 2
TARGET = 1.02
HEAD = (
    "inputs", "with", "rounds", "without, median s", "with, median s", "median ratio", "smallest",
    "largest", "holds",
)  # fmt: skip
OFF, PAGE, BOTH = "neither", "the page", "page and capture"
WAYS = (OFF, PAGE, BOTH)


# The function, and how many inputs take some two seconds.
SCENARIOS: dict[str, tuple[Callable[[int], None], int]] = {
    "of 1 ms": (spin, 4_000),
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


class NoPage:
    """In the place of the page: a run finds nobody there whom it would have to tell."""

    def answer(self, scheduler: Any) -> None: ...
    def add(self, scheduler: Any) -> None: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def with_page(page: Page) -> Iterator[None]:
    """Meanwhile it is the own cluster's."""
    own = connect._own
    assert own is not None
    before, own.page = own.page, page
    try:
        yield
    finally:
        own.page = before


def once(scenario: str, way: str) -> float:
    """Seconds of one run."""
    function, n = SCENARIOS[scenario]
    at_once_dask.capture_output = way == BOTH
    with with_page(NoPage()) if way == OFF else contextlib.nullcontext():
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


def as_json(facts: Mapping[str, Any], rounds: Sequence[Round], rows: Sequence[Row]) -> str:
    found = {
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
        "rounds": [asdict(one) for one in rounds],
    }
    return json.dumps({**facts, **found}, indent=2) + "\n"


def as_markdown(facts: Mapping[str, Any], table: str) -> str:
    return f"""# What the page and the capturing of output cost when nobody looks

{made(facts, "python benchmarks/overhead.py")}
The same run on a warm cluster of {WORKERS} workers, with the page "At once" and `capture_output`
switched off, with the page only, and with both, in rounds whose order alternates. The target: a
median ratio of at most {TARGET:g}.

{table}

- **ratio**: with to without, of the runs of one round.
"""


def benchmark(n_rounds: int) -> bool:
    """Whether the target is reached."""
    rounds = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder, contextlib.chdir(folder):
        with own_cluster(WORKERS):
            for scenario in SCENARIOS:
                rounds += measure(scenario, n_rounds)
    rows = [
        row(name, [one for one in rounds if one.scenario == name], way)
        for name in SCENARIOS
        for way in (PAGE, BOTH)
    ]
    facts, table = about(1, workers=WORKERS, target=TARGET), as_table(HEAD, [r.cells for r in rows])
    print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(as_json(facts, rounds, rows), "utf-8")
    (RESULTS / "overhead.md").write_text(as_markdown(facts, table), "utf-8")
    return all(row.holds for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    sys.exit(not benchmark(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
