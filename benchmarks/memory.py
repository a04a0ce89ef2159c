"""How much memory the driver needs: for many inputs, and for large values.

The driver is the process that calls `run`; the scheduler lives in it, too. For each input it keeps
a row of 21 bytes. Each case runs in a new interpreter, on a cluster that is there and warm:

- generator: ten million numbers from a generator, and nothing done with them. The generator itself
  looks at the memory of its process every 100,000 of them. What counts is the growth from one
  second after the start to the peak.
- list, shuffled: a list of a million numbers, as it is and with do_shuffle. What counts is the peak
  above what there was before the call, the list included. That has in it the partitions that are
  on their way, up to half a second of work each; these do not grow with the list any more, so
  large-list and large-shuffled, the same with ten million, show better what an input costs.
- combine: 5,000 inputs, each of which gives a value of 1 MiB to one of ten keys; combine_fn=max.
- reduce: 2,000 inputs, each of which gives a value of 1 MiB to one of 100 keys; reduce_fn adds up
  their lengths, so that 20 MiB must come together for each key.

Of combine and reduce these are told: the peak above what there was before the call; how many bytes
of values a second were dealt with, beside the rate at which one process pickles and unpickles 300
such values, taken in the same interpreter right after; and how many bytes lay on disk at the end,
where workers and driver put what is large.

    python benchmarks/memory.py

takes a few minutes, prints the tables and writes them to benchmarks/results/, as JSON and as
Markdown. `--case reduce --scale 0.1` measures a part of it, and writes only if told to by
`--write`. The exit code is 1 when a case has failed; a target that is missed is told, no more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from growth import (
    CORES,
    RESULTS,
    about,
    as_table,
    forget_peak,
    in_new_interpreter,
    made,
    nothing,
    own_cluster,
    peak,
    resident,
)

import at_once_dask
from at_once_dask.driver.dask_backend import DaskBackend
from at_once_dask.reduction.groups import SPILL_BYTES, Groups

LOOK_EVERY = 100_000  # inputs of the generator
SETTLED_SECONDS = 1.0
ROW_BYTES = 21
TARGET_BYTES, TARGET_BYTES_SHUFFLED = 32, 48  # an input
VALUE_BYTES = 2**20
COMBINE_KEYS, REDUCE_KEYS = 10, 100
PICKLED = 300  # values
TARGET_RATE = 0.5  # of the rate of pickling
TARGET_PEAK = 2 * SPILL_BYTES  # above the start: what it keeps before it spills, and as much again


# Many inputs.


@dataclass(frozen=True)
class ManyInputs:
    """What such a case has found; all but `seconds` in bytes."""

    n: int
    seconds: float
    before: int  # resident before the call
    counted_from: int  # resident where the growth begins
    n_counted: int  # inputs that were drawn from there on
    at_end: int  # resident when the call had returned
    peak: int
    most_each: int  # allowed
    tenths: tuple[int, ...] = ()  # resident, on the way

    @property
    def growth(self) -> int:
        return self.peak - self.counted_from

    @property
    def each(self) -> float:
        """By how much the driver grew for an input."""
        return self.growth / self.n_counted

    @property
    def targets(self) -> dict[str, bool]:
        return {f"at most {self.most_each} bytes an input": self.each <= self.most_each}

    def cells(self, name: str) -> tuple[str, ...]:
        sizes = (self.before, self.counted_from, self.at_end, self.peak)
        return (
            name,
            f"{self.n:,}",
            f"{self.seconds:.1f}",
            *(f"{size / 1e6:,.0f}" for size in sizes),
            f"{self.growth / 1e6:,.0f}",
            f"{self.each:.1f}",
            f"{self.each - ROW_BYTES:+.1f}",
            f"{self.most_each}",
            verdict(self),
        )


MANY_INPUTS_HEAD = (
    "case",
    "inputs",
    "seconds",
    "before, MB",
    "counted from, MB",
    "at the end, MB",
    "peak, MB",
    "grew by MB",
    "bytes an input",
    f"beyond its row of {ROW_BYTES}",
    "target",
    "",
)


class Numbers:
    """Ten million of them, say; looks at the memory of this process now and then."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.samples: list[tuple[float, int, int]] = []  # seconds, numbers drawn, bytes

    def __iter__(self) -> Iterator[int]:
        begin = time.perf_counter()
        step = min(LOOK_EVERY, -(-self.n // 100))
        for number in range(self.n):
            if number % step == 0:
                self.samples.append((time.perf_counter() - begin, number, resident()))
            yield number

    def settled(self) -> tuple[int, int]:
        """After a second: numbers drawn, and bytes; of a run that was too short, from the start."""
        late = [sample for sample in self.samples if sample[0] >= SETTLED_SECONDS]
        return min(late, default=self.samples[0])[1:]

    def tenths(self) -> tuple[int, ...]:
        return tuple(size for _, _, size in self.samples[:: max(1, len(self.samples) // 10)])


def generator(n: int) -> ManyInputs:
    numbers = Numbers(n)
    before = resident_before()
    seconds = processed(iter(numbers), n)
    at_end = resident()
    drawn, settled = numbers.settled()
    return ManyInputs(
        n=n,
        seconds=seconds,
        before=before,
        counted_from=settled,
        n_counted=n - drawn,
        at_end=at_end,
        peak=peak(),
        most_each=TARGET_BYTES,
        tenths=numbers.tenths(),
    )


def list_as_it_is(n: int) -> ManyInputs:
    return of_list(n, TARGET_BYTES)


def shuffled(n: int) -> ManyInputs:
    return of_list(n, TARGET_BYTES_SHUFFLED, do_shuffle=True, random_state=1)


def of_list(n: int, most_each: int, **options: Any) -> ManyInputs:
    numbers = list(range(n))
    before = resident_before()
    seconds = processed(numbers, n, **options)
    return ManyInputs(
        n=n,
        seconds=seconds,
        before=before,
        counted_from=before,
        n_counted=n,
        at_end=resident(),
        peak=peak(),
        most_each=most_each,
    )


def processed(inputs: Any, n: int, **options: Any) -> float:
    """The seconds it took."""
    begin = time.perf_counter()
    report = at_once_dask.run(inputs, None, nothing, progress=False, **options)
    seconds = time.perf_counter() - begin
    check(report, n)
    return seconds


def resident_before() -> int:
    gc.collect()
    forget_peak()
    return resident()


def check(report: Any, n: int) -> None:
    if report.n_processed != n or not report.ok:
        raise ValueError(f"not all of {n} inputs were processed: {report}")


# Large values.


@dataclass(frozen=True)
class LargeValues:
    """What such a case has found; sizes in bytes."""

    n: int
    seconds: float
    pickle_rate: float  # bytes a second that one process pickles and unpickles
    before: int  # resident before the call
    peak: int
    on_disk: int  # of values, where workers have put them
    spilled: int  # of values, by the driver

    @property
    def rate(self) -> float:
        return self.n * VALUE_BYTES / self.seconds

    @property
    def targets(self) -> dict[str, bool]:
        return {
            f"{TARGET_RATE:g} times the rate of pickling": self.rate
            >= TARGET_RATE * self.pickle_rate,
            f"peak at most {TARGET_PEAK / 1e6:,.0f} MB above the start": self.peak - self.before
            <= TARGET_PEAK,
        }

    def cells(self, name: str) -> tuple[str, ...]:
        sizes = (self.before, self.peak, self.peak - self.before, self.on_disk, self.spilled)
        return (
            name,
            f"{self.n:,}",
            f"{self.n * VALUE_BYTES / 1e6:,.0f}",
            f"{self.seconds:.1f}",
            f"{self.rate / 1e6:,.0f}",
            f"{self.pickle_rate / 1e6:,.0f}",
            *(f"{size / 1e6:,.0f}" for size in sizes),
            verdict(self),
        )


LARGE_VALUES_HEAD = (
    "case",
    "inputs",
    "values, MB",
    "seconds",
    "MB/s",
    "pickle, MB/s",
    "before, MB",
    "peak, MB",
    "grew by MB",
    "put on disk by workers, MB",
    "spilled by the driver, MB",
    "",
)


def value(inp: int) -> bytes:
    return inp.to_bytes(8, "big") * (VALUE_BYTES // 8)


@dataclass(frozen=True)
class Valued:
    """Gives the value of its input to one of so many keys."""

    keys: int

    def __call__(self, inp: int) -> list[tuple[str, bytes]]:
        return [(f"key {inp % self.keys}", value(inp))]


def add_lengths(values: list[bytes]) -> int:
    return sum(map(len, values))


def combine(n: int) -> LargeValues:
    largest = {f"key {inp % COMBINE_KEYS}": inp for inp in range(n)}

    def is_right(result: Mapping[str, bytes]) -> bool:
        return result.keys() == largest.keys() and all(
            result[key] == value(inp) for key, inp in largest.items()
        )

    return of_values(n, COMBINE_KEYS, is_right, combine_fn=max)


def reduce(n: int) -> LargeValues:
    times = Counter(f"key {inp % REDUCE_KEYS}" for inp in range(n))
    lengths = {key: count * VALUE_BYTES for key, count in times.items()}
    return of_values(n, REDUCE_KEYS, lambda result: result == lengths, reduce_fn=add_lengths)


def of_values(
    n: int, keys: int, is_right: Callable[[Any], bool], **reducing: Callable[..., Any]
) -> LargeValues:
    before = resident_before()
    with files_watched() as files:
        begin = time.perf_counter()
        result: Any = at_once_dask.run(range(n), None, Valued(keys), progress=False, **reducing)
        seconds = time.perf_counter() - begin
    most = peak()
    check(result.report, n)
    if not is_right(result):
        raise ValueError("the reduction is wrong")
    return LargeValues(n, seconds, pickle_rate(min(n, PICKLED)), before, most, **files)


def pickle_rate(n: int) -> float:
    """Bytes a second, of values that are all kept, as a list of results would be."""
    values = [value(inp) for inp in range(n)]
    begin = time.perf_counter()
    back = [pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)) for value in values]
    seconds = time.perf_counter() - begin
    if back != values:
        raise ValueError("pickling has changed a value")
    return n * VALUE_BYTES / seconds


@contextlib.contextmanager
def files_watched() -> Iterator[dict[str, int]]:
    """The sizes of what lies on disk when a run of this process has come to its end.

    Nothing of it is deleted before, so that is the most there ever was.
    """
    sizes = {"on_disk": 0, "spilled": 0}
    leave, close = DaskBackend.__exit__, Groups.close

    def watched_leave(backend: DaskBackend, *exc_info: object) -> None:
        if backend._values_folder is not None:
            sizes["on_disk"] += sum(
                file.stat().st_size for file in Path(backend._values_folder).iterdir()
            )
        leave(backend, *exc_info)

    def watched_close(groups: Groups) -> None:
        if groups._file is not None:  # it has no name
            sizes["spilled"] += os.fstat(groups._file.fileno()).st_size
        close(groups)

    with (
        mock.patch.object(DaskBackend, "__exit__", watched_leave),
        mock.patch.object(Groups, "close", watched_close),
    ):
        yield sizes


# The cases.


@dataclass(frozen=True)
class Case:
    n: int
    measure: Callable[[int], Any]
    found: type[Any]


CASES = {
    "generator": Case(10_000_000, generator, ManyInputs),
    "list": Case(1_000_000, list_as_it_is, ManyInputs),
    "large-list": Case(10_000_000, list_as_it_is, ManyInputs),
    "shuffled": Case(1_000_000, shuffled, ManyInputs),
    "large-shuffled": Case(10_000_000, shuffled, ManyInputs),
    "combine": Case(5_000, combine, LargeValues),
    "reduce": Case(2_000, reduce, LargeValues),
}
Found = ManyInputs | LargeValues


def inside(told: Mapping[str, Any]) -> None:
    """What the interpreter of a case does; the last line of its output is what it found."""
    with own_cluster(CORES):
        found = CASES[told["case"]].measure(told["n"])
    print(json.dumps(asdict(found)), flush=True)


def run_case(name: str, scale: float) -> Found:
    case = CASES[name]
    n = max(1, round(case.n * scale))
    found: Found = case.found(**in_new_interpreter(__file__, {"case": name, "n": n}))
    print(f"{name}: {found.seconds:.1f} s", file=sys.stderr)
    return found


# How it is shown.


def verdict(found: Found) -> str:
    missed = [target for target, reached in found.targets.items() if not reached]
    return f"MISSED: {'; '.join(missed)}" if missed else "reached"


def tables(found: Mapping[str, Found]) -> str:
    kinds = (
        ("Many inputs", ManyInputs, MANY_INPUTS_HEAD),
        ("Large values", LargeValues, LARGE_VALUES_HEAD),
    )
    return "\n\n".join(
        f"## {title}\n\n{as_table(head, rows)}"
        for title, kind, head in kinds
        if (rows := [one.cells(name) for name, one in found.items() if isinstance(one, kind)])
    )


def as_json(facts: Mapping[str, Any], found: Mapping[str, Found]) -> str:
    cases = {name: asdict(one) | {"targets": one.targets} for name, one in found.items()}
    return json.dumps({**facts, "cases": cases}, indent=2) + "\n"


def as_markdown(facts: Mapping[str, Any], found: Mapping[str, Found]) -> str:
    return f"""# How much memory the driver needs

{made(facts, "python benchmarks/memory.py")}
Each case in a new interpreter, on a cluster of {CORES} workers that is there and warm. All sizes
are of the driver, its resident memory; MB are 10^6 bytes.

{tables(found)}

- **generator**: growth from the first second to the peak, over the inputs drawn meanwhile.
- **list**, **shuffled**: growth from before the call, the list included, to the peak, over all
  inputs. Partitions that are on their way count as well, which is why an input of fewer seems to
  cost more. **large-**: the same with more inputs. do_shuffle may take
  {TARGET_BYTES_SHUFFLED - TARGET_BYTES} bytes more: the copy of the list and its order.
- **combine**, **reduce**: values of 1 MiB. **pickle** is the rate at which one process pickles and
  unpickles {PICKLED} such values. The targets: {TARGET_RATE:g} times that rate, and a peak of at
  most {TARGET_PEAK / 1e6:,.0f} MB above the start.
- **put on disk by workers**: values that need not cross; with combine_fn what is left of them.
"""


# The whole.


def benchmark(names: Sequence[str], scale: float, write: bool) -> None:
    found = {name: run_case(name, scale) for name in names}
    print(tables(found))
    if write:
        facts = about(scale)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "memory.json").write_text(as_json(facts, found), "utf-8")
        (RESULTS / "memory.md").write_text(as_markdown(facts, found), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, default=[])
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all sizes")
    parser.add_argument("--write", action="store_true", help="write results of a part, too")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # how it starts itself
    given = parser.parse_args()
    if given.cell is not None:
        inside(json.loads(given.cell))
        return
    whole = not given.case and given.scale == 1
    benchmark(given.case or list(CASES), given.scale, given.write or whole)


if __name__ == "__main__":
    main()
