"""What benchmarks/speed.py has the tools do, how many inputs of it each tool gets, and the targets.

A slow tool gets a part of the inputs, or it would take minutes; it is compared by the time an input
takes. The functions that the workers run are here too.
"""

from __future__ import annotations

import operator
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peers import PEERS, Work

OURS = "at_once_dask"
MS = 0.001
CPU_LOOPS = 130_000  # ten milliseconds or so of pure Python
SLEEP_UNIT, SLEEP_MOST = 0.0083, 40  # seconds, and the longest sleep in units: no one dominates
OTHERS_SECONDS = 0.01  # of each input beside the long one
FILES = 1000
WORDS = 200  # in a document
MANY, FEW = 20_000, 20  # words in the vocabulary
MEGABYTE = 1_000_000
KEYS = 10
ARRAY_NUMBERS = 12_500_000  # 100 MB
SEED = 1


# What the workers run.


def idle(inp: int) -> dict[int, int]:
    """For the warm-up: long enough for every worker to get some."""
    time.sleep(0.01)
    return {inp: 1}


def nothing(inp: int) -> None:
    return None


def spin(inp: int) -> None:
    """Keep a core busy for a millisecond: asleep, more inputs than cores could go on at once."""
    end = time.perf_counter() + MS
    while time.perf_counter() < end:
        pass


def compute(inp: int) -> int:
    total = 0
    for number in range(CPU_LOOPS):
        total += number * number % 7
    return total


def sleep(seconds: float) -> float:
    begin = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - begin


def exists(path: str) -> list[Any]:
    return [os.path.exists(path), None]


def count_words(document: str) -> dict[str, int]:
    return dict(Counter(document.split()))


def megabyte(inp: int) -> bytes:
    return inp.to_bytes(8, "big") * (MEGABYTE // 8)


def keyed_megabyte(inp: int) -> dict[int, bytes]:
    return {inp % KEYS: megabyte(inp)}


def total_size(values: list[bytes]) -> int:
    return sum(map(len, values))


def pick(array: Any, inp: int) -> float:
    return float(array[inp])


# What the parent does with the results, where the tool has no map-reduce.


def add_counts(mappings: Iterable[dict[Any, int]]) -> dict[Any, int]:
    totals: dict[Any, int] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            totals[key] = totals.get(key, 0) + value
    return totals


def add_sizes(mappings: Iterable[dict[Any, bytes]]) -> dict[Any, int]:
    return add_counts({key: len(value) for key, value in mapping.items()} for mapping in mappings)


def keep_larger(mappings: Iterable[dict[Any, bytes]]) -> dict[Any, bytes]:
    largest: dict[Any, bytes] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            largest[key] = max(largest.get(key, b""), value)
    return largest


def add_count_of(total: int, pair: tuple[str, int]) -> int:
    return total + pair[1]


# The works, for n inputs.


def warm_up(reducing: bool) -> Work:
    n = 4 * (os.cpu_count() or 1)
    work = partial(Work, idle, range(n), n)
    return work(reduce_fn=sum, gather=add_counts) if reducing else work()


def trivial(n: int) -> Work:
    return Work(nothing, range(n), n, [None] * n)


def from_generator(n: int) -> Work:
    return Work(nothing, (number for number in range(n)), n)


def milliseconds(n: int) -> Work:
    return Work(spin, range(n), n, [None] * n)


def cpu(n: int) -> Work:
    return Work(compute, range(n), n, [compute(0)] * n)


def sleeps(order: Callable[[list[float]], list[float]], n: int) -> Work:
    """Their durations are drawn from a Pareto distribution."""
    rng = random.Random(SEED)
    durations = [SLEEP_UNIT * min(rng.paretovariate(1.5), SLEEP_MOST) for _ in range(n)]
    return Work(sleep, order(durations), n)


def as_drawn(durations: list[float]) -> list[float]:
    return durations


def heavy_first(durations: list[float]) -> list[float]:
    return sorted(durations, reverse=True)


def one_long(share: float, n: int) -> Work:
    """One input as long as all others together, after this `share` of them."""
    durations = [OTHERS_SECONDS] * (n - 1)
    durations.insert(int(share * (n - 1)), sum(durations))
    return Work(sleep, durations, n)


def done(n: int) -> Work:
    folder = Path.cwd() / "done"
    folder.mkdir()
    for number in range(FILES):
        (folder / str(number)).touch()
    paths = [f"{folder}/{number % FILES}" for number in range(n)]
    return Work(os.path.exists, paths, n, [True] * n, check_inp=exists)


def words(vocabulary: int, n: int, combine: bool = False) -> Work:
    rng = random.Random(SEED)
    all_words = [f"word{number}" for number in range(vocabulary)]
    documents = [" ".join(rng.choices(all_words, k=WORDS)) for _ in range(n)]
    return Work(
        count_words,
        documents,
        n,
        expected=dict(Counter(word for document in documents for word in document.split())),
        reduce_fn=None if combine else sum,
        combine_fn=operator.add if combine else None,
        gather=add_counts,
        foldby={
            "binop": add_count_of,
            "initial": 0,
            "combine": operator.add,
            "combine_initial": 0,
        },
    )


def large_values(n: int) -> Work:
    sizes = Counter(inp % KEYS for inp in range(n))
    return Work(
        keyed_megabyte,
        range(n),
        n,
        expected={key: MEGABYTE * count for key, count in sizes.items()},
        reduce_fn=total_size,
        gather=add_sizes,
    )


def large_values_combined(n: int) -> Work:
    last = {inp % KEYS: inp for inp in range(n)}
    return Work(
        keyed_megabyte,
        range(n),
        n,
        expected={key: megabyte(inp) for key, inp in last.items()},
        combine_fn=max,
        gather=keep_larger,
    )


def large_inputs(n: int) -> Work:
    return Work(len, [megabyte(inp) for inp in range(n)], n, [MEGABYTE] * n)


def large_closure(n: int) -> Work:
    import numpy as np

    array = np.ones(ARRAY_NUMBERS)
    return Work(lambda inp: float(array[inp]), range(n), n, [1.0] * n, plain=partial(pick, array))


# The targets. What they are judged by has `seconds`, `each` (seconds an input), `over_greedy` and
# `memory_each` (bytes an input), the medians of the rounds, for each tool.

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """What at_once_dask must reach: a figure, and the most that it may be."""

    text: str
    of: Callable[[Figures], float]
    most: float
    needs: tuple[str, ...] = ()  # the tools that are compared with

    def measured(self, figures: Figures) -> float | None:
        """None where a tool is missing or has failed."""
        if {OURS, *self.needs} <= figures.keys():
            return self.of(figures)
        return None


def times(most: float, peer: str) -> Target:
    return Target(
        f"at most {most:g} times {PEERS[peer].name}",
        lambda figures: figures[OURS].each / figures[peer].each,
        most,
        (peer,),
    )


def microseconds(most: float) -> Target:
    return Target(f"at most {most:g} µs an input", lambda figures: figures[OURS].each * 1e6, most)


def microseconds_more(most: float, peer: str) -> Target:
    return Target(
        f"at most {most:g} µs an input more than {PEERS[peer].name}",
        lambda figures: (figures[OURS].each - figures[peer].each) * 1e6,
        most,
        (peer,),
    )


def milliseconds_in_all(most: float) -> Target:
    return Target(f"at most {most:g} ms", lambda figures: figures[OURS].seconds * 1e3, most)


def bytes_each(most: float) -> Target:
    return Target(
        f"at most {most:g} bytes an input more in the driver",
        lambda figures: figures[OURS].memory_each,
        most,
    )


GREEDY = Target("at most 1.05 times greedy", lambda figures: figures[OURS].over_greedy, 1.05)


# The scenarios.


@dataclass(frozen=True)
class Scenario:
    """Some work for some tools; each of them gets a share of the `n` inputs.

    `way` is how it is timed, one of speed.py's. With `greedy` the makespan of a simulation in which
    each free worker takes the next input is told beside the time.
    """

    about: str
    n: int
    shares: Mapping[str, float]
    work: Callable[[int], Work] | None = None
    targets: Sequence[Target] = field(default=())
    way: str = "warm"
    greedy: bool = False

    def inputs(self, peer: str, scale: float) -> int:
        if self.n == 1:
            return 1
        return max(2, round(self.n * self.shares[peer] * scale))


def all_of(*peers: str) -> dict[str, float]:
    return dict.fromkeys((OURS, *peers), 1.0)


EVERYONE = ("pool-imap", "pool-map", "executor", "joblib", "mpire", "dask-bag", "client-map")
SLEEPERS = all_of("pool-imap", "pool-map", "joblib", "dask-bag")
ALONE = all_of("pool-imap", "pool-map", "joblib")
REDUCERS = all_of("pool-map") | {"dask-bag": 0.1}


SCENARIOS = {
    "trivial": Scenario(
        "integers, a function that returns None",
        1_000_000,
        all_of(*EVERYONE) | {"pool-imap": 0.1, "dask-bag": 0.1, "client-map": 0.005},
        trivial,
        (microseconds(1),),
    ),
    "ms": Scenario(
        "a millisecond of a busy core each",
        4000,
        all_of(*EVERYONE) | {"client-map": 0.25},
        milliseconds,
        (times(1.08, "pool-map"),),
    ),
    "cpu": Scenario(
        "ten milliseconds or so of pure Python each",
        400,
        all_of(*EVERYONE),
        cpu,
        (times(1.08, "pool-map"),),
    ),
    "skewed": Scenario(
        "heavy-tailed sleeps (Pareto) of 8 ms to 0.2 s",
        400,
        SLEEPERS,
        partial(sleeps, as_drawn),
        (GREEDY,),
        greedy=True,
    ),
    "heavy-first": Scenario(
        "the same, the longest first",
        400,
        SLEEPERS,
        partial(sleeps, heavy_first),
        (GREEDY,),
        greedy=True,
    ),
    "heavy-last": Scenario(
        "the same, the longest last",
        400,
        SLEEPERS,
        partial(sleeps, sorted),
        (GREEDY,),
        greedy=True,
    ),
    "alone-first": Scenario(
        "one sleep as long as all others together (10 ms each), at the beginning",
        401,
        ALONE,
        partial(one_long, 0.0),
        (GREEDY,),
        greedy=True,
    ),
    "alone-middle": Scenario(
        "the same, in the middle",
        401,
        ALONE,
        partial(one_long, 0.5),
        (GREEDY,),
        greedy=True,
    ),
    "alone-last": Scenario(
        "the same, at the end",
        401,
        ALONE,
        partial(one_long, 1.0),
        (GREEDY,),
        greedy=True,
    ),
    "done": Scenario(
        "paths that all exist: check_inp says done, others map os.path.exists",
        1_000_000,
        all_of("pool-map"),
        done,
        (microseconds_more(3, "pool-map"),),
    ),
    "words-many": Scenario(
        f"documents of {WORDS} words out of {MANY:,}, counted; reduce_fn=sum",
        10_000,
        REDUCERS,
        partial(words, MANY),
        (times(1.25, "pool-map"),),
    ),
    "words-many-combine": Scenario(
        "the same; combine_fn=operator.add",
        10_000,
        all_of("pool-map"),
        partial(words, MANY, combine=True),
        (times(1.1, "pool-map"),),
    ),
    "words-few": Scenario(
        f"documents of {WORDS} words out of {FEW}, counted; reduce_fn=sum",
        10_000,
        REDUCERS,
        partial(words, FEW),
        (times(1.25, "pool-map"),),
    ),
    "words-few-combine": Scenario(
        "the same; combine_fn=operator.add",
        10_000,
        all_of("pool-map"),
        partial(words, FEW, combine=True),
        (times(1.1, "pool-map"),),
    ),
    "values": Scenario(
        f"values of 1 MB for {KEYS} keys; reduce_fn adds up their sizes",
        300,
        all_of("pool-map", "pickle"),
        large_values,
        (times(2, "pickle"),),
    ),
    "values-combine": Scenario(
        f"values of 1 MB for {KEYS} keys; combine_fn=max",
        300,
        all_of("pool-map", "pickle"),
        large_values_combined,
        (times(2, "pickle"),),
    ),
    "megabytes": Scenario(
        "inputs of 1 MB, function len",
        300,
        all_of(*EVERYONE),
        large_inputs,
        (times(1.0, "pool-map"),),
    ),
    "generator": Scenario(
        "integers from a generator, a function that returns None",
        10_000_000,
        all_of("pool-imap-1000"),
        from_generator,
        (bytes_each(32),),
        way="memory",
    ),
    "closure": Scenario(
        "a lambda with an array of 100 MB; functools.partial for Pool.map",
        2000,
        all_of("pool-map", "dask-bag") | {"client-map": 0.01},
        large_closure,
    ),
    "cold": Scenario(
        "one input, from the start of a fresh interpreter until it is done",
        1,
        all_of("client-submit"),
        targets=(times(0.7, "client-submit"),),
        way="cold",
    ),
    "second": Scenario(
        "one input, in a process that has done a few before",
        1,
        all_of("pool-map", "joblib", "dask-bag", "client-map"),
        trivial,
        (milliseconds_in_all(50),),
    ),
}
