"""Many workers: 2 to 128 of them with inputs that sleep, beside a Pool and joblib of as many.

Asleep, more workers than cores are no problem for the work itself; so what is measured is what the
tool costs with so many of them, here on few cores. Each row runs in a new interpreter, on workers
that are there and warm.

- **ideal**: the seconds when no worker ever waits; **ratio**: seconds over it.
- **driver's CPU**: seconds of the process that calls `run`, in which Dask's scheduler and the
  nannies live; and milliseconds of it for each partition. In the last rows what a run costs that
  lasts as long and has nearly no partitions is taken off: the rest is what a partition costs.
- **idle**: the share of a core that one worker with nothing to do needs, in percent.

    python -m pip install -e '.[bench]'
    python benchmarks/workers.py

takes some minutes and writes benchmarks/results/workers.json and workers.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
from growth import (
    MEMORY,
    RESULTS,
    Asleep,
    about,
    as_table,
    driver_cpu,
    in_new_interpreter,
    made,
    nothing,
    watched,
)

import at_once_dask
from at_once_dask.cluster import connect

OURS, POOL, JOBLIB = "at_once_dask", "Pool.map", "joblib"
IDLE_SECONDS = 10.0
ROUNDS = 3
SLEEPS = "sleeps of 0.1 s"
EACH = "sleeps of 0.01 s, less those of 4 s"  # as long, in as few partitions as there are
TARGETS = {(SLEEPS, 32): 1.12, (SLEEPS, 64): 1.25, (SLEEPS, 128): 1.6}  # ratios


@dataclass(frozen=True)
class Case:
    """A row: what so many workers do with so many inputs, each asleep for some seconds."""

    what: str
    tool: str
    workers: int
    n: int
    sleep: float

    @property
    def ideal(self) -> float:
        return self.n * self.sleep / self.workers


@dataclass(frozen=True)
class Found:
    """What one run of a case found."""

    seconds: float
    cpu: float = 0.0  # seconds of the driver
    partitions: int = 0
    start: float = 0.0  # seconds until all workers were there
    idle: float = 0.0  # percent of a core, a worker


def cases() -> list[Case]:
    many = (32, 64, 128)
    return [
        *(Case(SLEEPS, OURS, workers, 40 * workers, 0.1) for workers in (2, 16, *many)),
        *(Case(SLEEPS, POOL, workers, 40 * workers, 0.1) for workers in many),
        *(Case(SLEEPS, JOBLIB, workers, 40 * workers, 0.1) for workers in many),
        *(Case("sleeps of 0.01 s", tool, 64, 25_600, 0.01) for tool in (OURS, POOL, JOBLIB)),
        Case("a map-reduce of 10 keys", OURS, 64, 2_560, 0.1),
        Case("all is done already", OURS, 64, 1_000_000, 0.0),
        Case("20 segfaults", OURS, 64, 20_000, 0.01),
        *(Case(EACH, OURS, workers, 800 * workers, 0.01) for workers in (2, 16, 64)),
    ]


# The functions of the inputs.


@dataclass(frozen=True)
class Keyed(Asleep):
    def __call__(self, inp: int) -> dict[int, int]:  # type: ignore[override]
        time.sleep(self.seconds)
        return {inp % 10: inp}


@dataclass(frozen=True)
class Deadly(Asleep):
    """Every thousandth input is a segfault."""

    def __call__(self, inp: int) -> None:
        if inp % 1_000 == 500:
            import ctypes

            ctypes.string_at(0)
        time.sleep(self.seconds)


def is_done(inp: int) -> bool:
    return True


# Inside a row.


def by_us(case: Case) -> Found:
    begin = time.perf_counter()
    at_once_dask.start(case.workers, memory_limit=MEMORY, dashboard_address="127.0.0.1:0")
    own = connect._own
    assert own is not None
    own.wait_for_workers()
    start = time.perf_counter() - begin
    try:
        at_once_dask.run(range(20 * case.workers), None, nothing, progress=False)
        found = timed(case)
        if case.what == EACH:
            other = timed(replace(case, n=2 * case.workers, sleep=case.ideal / 2))
            found = replace(
                found, cpu=found.cpu - other.cpu, partitions=found.partitions - other.partitions
            )
        return replace(found, start=start, idle=idle(own))
    finally:
        at_once_dask.close()


def timed(case: Case) -> Found:
    with watched() as watch:
        cpu, begin = driver_cpu(), time.perf_counter()
        check(case, run(case))
        return Found(time.perf_counter() - begin, driver_cpu() - cpu, watch.partitions)


def run(case: Case) -> Any:
    """The report; or, of a map-reduce, the result."""
    more: dict[str, Any] = {"on_error": "return", "progress": False}
    if case.what == "a map-reduce of 10 keys":
        return at_once_dask.run(range(case.n), None, Keyed(case.sleep), reduce_fn=sum, **more)
    if case.what == "all is done already":
        return at_once_dask.run(range(case.n), is_done, nothing, **more)
    if case.what == "20 segfaults":
        return at_once_dask.run(range(case.n), None, Deadly(case.sleep), **more)
    return at_once_dask.run(range(case.n), None, Asleep(case.sleep), **more)


def check(case: Case, result: Any) -> None:
    """What came out is right; a wrong result has no speed."""
    if case.what == "a map-reduce of 10 keys":
        assert dict(result) == {key: sum(range(key, case.n, 10)) for key in range(10)}
        return
    n_failed = 20 if case.what == "20 segfaults" else 0
    assert (result.n_failed, result.n_left) == (n_failed, 0), str(result)
    assert result.n_processed + result.n_skipped == case.n - n_failed


def idle(own: Any) -> float:
    """Percent of a core that a worker needs when it has nothing to do: the mean of all."""
    time.sleep(2)  # what the run leaves to do is done
    pids = [nanny.pid for nanny in own.nannies().values()]
    before = [used(pid) for pid in pids]
    time.sleep(IDLE_SECONDS)
    shares = [used(pid) - was for pid, was in zip(pids, before, strict=True)]
    return 100 * statistics.mean(shares) / IDLE_SECONDS


def used(pid: int) -> float:
    """CPU seconds."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def opened(case: Case) -> Iterator[Callable[[Any], object]]:
    """A call that has others handle a list of inputs."""
    function = Asleep(case.sleep)
    if case.tool == POOL:
        with multiprocessing.get_context("fork").Pool(case.workers) as pool:
            yield lambda inputs: pool.map(function, inputs)
        return
    from joblib import Parallel, delayed

    with Parallel(n_jobs=case.workers) as parallel:
        yield lambda inputs: parallel(delayed(function)(inp) for inp in inputs)


def by_others(case: Case) -> Found:
    with opened(case) as handle:
        handle(range(case.workers))
        cpu, begin = driver_cpu(), time.perf_counter()
        handle(range(case.n))
        seconds = time.perf_counter() - begin
        return Found(seconds, driver_cpu() - cpu)


def measure(case: Case) -> Found:
    return by_us(case) if case.tool == OURS else by_others(case)


# The whole.

HEAD = (
    *("what", "tool", "workers", "inputs", "ideal", "seconds", "ratio", "target"),
    *("driver's CPU s", "partitions", "ms a partition", "start s", "idle %"),
)


def row(case: Case, rounds: list[Found]) -> tuple[str, ...]:
    def median(name: str) -> float:
        return statistics.median(getattr(found, name) for found in rounds)

    seconds, cpu, partitions = median("seconds"), median("cpu"), median("partitions")
    ours = case.tool == OURS
    target = TARGETS.get((case.what, case.workers)) if ours else None
    return (
        case.what,
        case.tool,
        f"{case.workers}",
        f"{case.n:,}",
        f"{case.ideal:.2f}" if case.sleep else "",
        f"{seconds:.2f}",
        f"{seconds / case.ideal:.2f}" if case.sleep else "",
        f"{target:g}" if target else "",
        f"{cpu:.2f}",
        f"{partitions:,.0f}" if ours else "",
        f"{1000 * cpu / partitions:.1f}" if ours else "",
        f"{median('start'):.1f}" if ours else "",
        f"{median('idle'):.2f}" if ours else "",
    )


def benchmark(n_rounds: int) -> None:
    found: dict[Case, list[Found]] = {case: [] for case in cases()}
    for number in range(1, n_rounds + 1):
        for case in found:
            one = Found(**in_new_interpreter(__file__, asdict(case)))
            found[case].append(one)
            print(f"round {number}: {case}: {one}", file=sys.stderr, flush=True)
    table = as_table(HEAD, [row(case, rounds) for case, rounds in found.items()])
    print(table)
    facts = about(1, rounds=n_rounds)
    cells = [asdict(case) | asdict(one) for case, rounds in found.items() for one in rounds]
    (RESULTS / "workers.json").write_text(json.dumps({**facts, "rows": cells}, indent=2) + "\n")
    _, _, explained = (__doc__ or "").partition("\n\n")
    text = f"# Many workers\n\n{made(facts, 'python benchmarks/workers.py')}\n\n{table}\n\n"
    (RESULTS / "workers.md").write_text(text + explained.partition("\n    python")[0] + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # how it starts itself
    given = parser.parse_args()
    if given.cell is None:
        benchmark(given.rounds)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(asdict(measure(Case(**json.loads(given.cell))))), flush=True)


if __name__ == "__main__":
    main()
