"""What one segfault costs among 10,000 quick inputs.

The same list of inputs of about 0.1 ms each goes through `run` twice, side by side: once as it is,
and once with one input that ends its process with a segfault. Both happen on the same warm cluster
of two workers, in pairs whose order alternates, so that what else the machine does hits both
alike. From pair to pair the bad input moves from the front of the list to its end. It is measured
for a run that only maps, and for a map-reduce.

Two times are taken: from the call to its return, and from the call until all workers are there
again, for the dead one may still be being replaced when the run is over. Before each run the
cluster is whole, and a small run warms it.

    python benchmarks/segfault.py

prints the table and writes it to benchmarks/results/, as JSON and as Markdown. The exit code is 1
when the difference of the medians is above the target, or when a run is not what it must be.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distributed import Client

import at_once_dask

INPUTS = 10_000
PAIRS = 7
WORKERS = 2
WORK_SECONDS = 0.0001
KEYS = 100
WARM_UP = 200  # inputs
WAIT_SECONDS = 30  # for the workers
TARGET_SECONDS = 2.0
MODES = ("map-only", "map-reduce")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Work:
    """The function of a run: input `bad` ends its process."""

    bad: int | None

    def __call__(self, inp: int) -> dict[int, int]:
        if inp == self.bad:
            ctypes.string_at(0)
        end = time.perf_counter() + WORK_SECONDS
        while time.perf_counter() < end:  # asleep, it would take far longer than that
            pass
        return {inp % KEYS: inp}


@dataclass(frozen=True)
class Times:
    """Seconds that a run took: until it returned, and until the cluster was whole again."""

    returned: float
    whole: float


@dataclass(frozen=True)
class Pair:
    """One run without and one with the segfault, side by side."""

    mode: str
    bad: int
    crash_first: bool
    plain: Times
    crash: Times


@dataclass(frozen=True)
class Row:
    """The pairs of one mode in a few figures, all in seconds."""

    mode: str
    pairs: int
    plain: float
    crash: float
    difference: float  # of the medians
    largest: float  # difference in a pair
    whole: float  # difference of the medians, until the cluster was whole again

    @property
    def holds(self) -> bool:
        return self.difference <= TARGET_SECONDS

    @property
    def cells(self) -> tuple[str, ...]:
        seconds = (self.plain, self.crash, self.difference, self.largest, self.whole)
        return self.mode, str(self.pairs), *(f"{value:.2f}" for value in seconds)


HEAD = (
    "run",
    "pairs",
    "without, median s",
    "with, median s",
    "difference",
    "largest in a pair",
    "until all workers are back",
)


def timed(client: Client, mode: str, n: int, bad: int | None) -> Times:
    """Run once on a cluster that is whole and warm; what came of it is checked."""
    once(mode, WARM_UP, None)
    begin = time.perf_counter()
    result = once(mode, n, bad)
    returned = time.perf_counter() - begin
    client.wait_for_workers(WORKERS, timeout=WAIT_SECONDS)
    whole = time.perf_counter() - begin
    check(result, mode, n, bad)
    return Times(returned, whole)


def once(mode: str, n: int, bad: int | None) -> Any:
    reduce_fn = sum if mode == "map-reduce" else None
    return at_once_dask.run(
        range(n), None, Work(bad), reduce_fn=reduce_fn, on_error="return", progress=False
    )


def check(result: Any, mode: str, n: int, bad: int | None) -> None:
    """A run that is quick and wrong would be worth nothing."""
    report = result.report if mode == "map-reduce" else result
    failed = [(row.input, row.kind, row.exit) for row in report.failures.itertuples()]
    expected = [] if bad is None else [(bad, "crash", "SIGSEGV")]
    if failed != expected or report.n_processed != n - len(expected):
        sys.exit(f"{mode}: expected the failures {expected}, got {failed} and {report}")
    if mode == "map-reduce" and dict(result) != oracle(n, bad):
        sys.exit(f"{mode}: the reduction with input {bad} bad is wrong")


def oracle(n: int, bad: int | None) -> dict[int, int]:
    sums: dict[int, int] = {}
    for inp in range(n):
        if inp != bad:
            sums[inp % KEYS] = sums.get(inp % KEYS, 0) + inp
    return sums


def measure(client: Client, mode: str, n: int, pairs: int) -> list[Pair]:
    found = []
    for number in range(pairs):
        bad = n * (number + 1) // (pairs + 1)
        crash_first = number % 2 == 1
        times = {
            with_crash: timed(client, mode, n, bad if with_crash else None)
            for with_crash in ((True, False) if crash_first else (False, True))
        }
        found.append(Pair(mode, bad, crash_first, times[False], times[True]))
        print(
            f"{mode}, input {bad:,} bad: {times[False].returned:.2f} s without,"
            f" {times[True].returned:.2f} s with",
            file=sys.stderr,
        )
    return found


def row(mode: str, pairs: Sequence[Pair]) -> Row:
    plain = statistics.median(pair.plain.returned for pair in pairs)
    crash = statistics.median(pair.crash.returned for pair in pairs)
    return Row(
        mode=mode,
        pairs=len(pairs),
        plain=plain,
        crash=crash,
        difference=crash - plain,
        largest=max(pair.crash.returned - pair.plain.returned for pair in pairs),
        whole=statistics.median(pair.crash.whole for pair in pairs)
        - statistics.median(pair.plain.whole for pair in pairs),
    )


def versions() -> dict[str, str]:
    names = ("at_once_dask", "dask", "distributed")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def as_json(n: int, pairs: Sequence[Pair], rows: Sequence[Row]) -> str:
    about = {
        "date": today(),
        "versions": versions(),
        "cores": os.cpu_count(),
        "workers": WORKERS,
        "inputs": n,
        "target_seconds": TARGET_SECONDS,
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
        "pairs": [asdict(pair) for pair in pairs],
    }
    return json.dumps(about, indent=2) + "\n"


def as_markdown(n: int, rows: Sequence[Row]) -> str:
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# What one segfault costs

Made on {today()} by `python benchmarks/segfault.py` with {told}, on {os.cpu_count()} cores.
{n:,} inputs of about {WORK_SECONDS * 1000:g} ms each on a warm cluster of {WORKERS} workers,
without and with one segfault among them, in pairs whose order alternates.
The target: it costs at most {TARGET_SECONDS:g} s.

{table}

- **difference**: of the medians, in seconds. **largest in a pair**: the largest difference of two
  runs side by side.
- **until all workers are back**: the same difference, but timed until the dead worker has been
  replaced, which may be after the run.
"""


def as_text(rows: Sequence[Row]) -> str:
    lines = [HEAD, *(row.cells for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def benchmark(n: int, n_pairs: int) -> bool:
    """Whether the target is reached."""
    pairs = []
    with tempfile.TemporaryDirectory(prefix="segfault-") as folder:
        at_once_dask.logfile = str(Path(folder, "log.jsonl"))
        # The dashboard's usual port may be taken.
        client = at_once_dask.start(WORKERS, dashboard_address="127.0.0.1:0")
        try:
            for mode in MODES:
                once(mode, n, None)  # the first one imports
                pairs += measure(client, mode, n, n_pairs)
        finally:
            at_once_dask.close()
    rows = [row(mode, [pair for pair in pairs if pair.mode == mode]) for mode in MODES]
    print(as_text(rows))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "segfault.json").write_text(as_json(n, pairs, rows), "utf-8")
    (RESULTS / "segfault.md").write_text(as_markdown(n, rows), "utf-8")
    return all(row.holds for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = parser.parse_args()
    # A core dump would cost more than all the rest; the workers inherit this.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(not benchmark(given.inputs, given.pairs))


if __name__ == "__main__":
    main()
