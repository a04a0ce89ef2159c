"""The crash table: every way to die, in every place where the user's code runs.

In every cell the guilty input (or key) is named with the right kind and stage, all others are done,
and a second run completes what can be completed. Ways of a kind share a run: each has an input, or
a key, of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from deaths import WAYS, Way, stop_iteration
from helpers import oracle

import at_once_dask

KEYS = 7
N = 4 * KEYS
GUILTY = range(3, N, 4)  # each with a key of its own
KINDS = {
    "raises": (
        "exception", "system_exit", "keyboard_interrupt", "stop_iteration", "unpicklable",
        "speechless",
    ),
    "dies": ("os_exit", "sigkill", "segfault", "abort", "stack_overflow"),
    "memory": ("memory",),
    "hangs": ("hang", "hang_in_c"),
}  # fmt: skip


@pytest.fixture(scope="module")
def limited() -> Iterator[None]:
    """Two workers that may hold little memory."""
    at_once_dask.close()
    at_once_dask.start(2, memory_limit="600 MB", dashboard_address="127.0.0.1:0")
    at_once_dask.run(range(4), None, print_nothing, progress=False)
    yield
    at_once_dask.close()


def print_nothing(inp: object) -> None:
    """The smallest `process_inp`."""


@dataclass(frozen=True)
class Mine:
    """What the functions of one cell use; deaths are for real until there is a file `fixed`."""

    folder: Path
    ways: dict[int, Callable[[], Any]]  # by input

    def meet(self, inp: int) -> None:
        """Die of `inp`, if that is guilty."""
        if inp in self.ways and not (self.folder / "fixed").exists():
            self.ways[inp]()

    def meet_key(self, value: int) -> None:
        """The same for the key of a `value`."""
        self.meet(next((inp for inp in self.ways if inp % KEYS == value % KEYS), -1))

    def done(self, inp: Any) -> Path:
        return self.folder / f"{int(inp)}.done"

    def check(self, inp: Any) -> list[Any]:
        return [self.done(inp).exists(), pairs(inp)]

    def process(self, inp: Any) -> Any:
        self.done(inp).touch()
        return pairs(inp)


def pairs(inp: Any) -> list[tuple[int, Any]]:
    return [(int(inp) % KEYS, int(inp))]


class Deadly:
    """An input or value that dies when it is pickled or unpickled."""

    def __init__(self, mine: Mine, inp: int, on_the_way_out: bool) -> None:
        self.mine = mine
        self.inp = inp
        self.on_the_way_out = on_the_way_out

    def __int__(self) -> int:
        return self.inp

    def __reduce__(self) -> Any:
        if self.on_the_way_out:
            self.mine.meet(self.inp)
            return int, (self.inp,)
        return revive, (self.mine, self.inp)


def revive(mine: Mine, inp: int) -> int:
    mine.meet(inp)
    return inp


# ----- the places: what to run, and the stage that a death there belongs to


def in_check(mine: Mine) -> dict[str, Any]:
    def check(inp: int) -> list[Any]:
        mine.meet(inp)
        return mine.check(inp)

    return {"check_inp": check}


def in_process(mine: Mine) -> dict[str, Any]:
    def process(inp: int) -> Any:
        mine.meet(inp)
        return mine.process(inp)

    return {"process_inp": process}


def in_verify(mine: Mine) -> dict[str, Any]:
    def check(inp: int) -> list[Any]:
        if mine.done(inp).exists():
            mine.meet(inp)
        return mine.check(inp)

    return {"check_inp": check, "verify": True}


def in_generator(mine: Mine) -> dict[str, Any]:
    def process(inp: int) -> Iterator[tuple[int, int]]:
        yield from mine.process(inp)
        if inp in mine.ways:
            mine.done(inp).unlink()
            mine.meet(inp)
            mine.done(inp).touch()

    return {"process_inp": process}


def in_unpickling(mine: Mine) -> dict[str, Any]:
    inputs = [Deadly(mine, n, on_the_way_out=False) if n in mine.ways else n for n in range(N)]
    return {"inp_list": inputs}


def in_pickling(mine: Mine) -> dict[str, Any]:
    def process(inp: int) -> Any:
        if inp in mine.ways:
            return [(inp % KEYS, Deadly(mine, inp, on_the_way_out=True))]
        return mine.process(inp)

    return {"process_inp": process}


def in_reduce(mine: Mine) -> dict[str, Any]:
    def reduce(values: list[int]) -> int:
        mine.meet_key(values[0])
        return max(values)

    return {"reduce_fn": reduce}


def in_combine(mine: Mine) -> dict[str, Any]:
    def combine(a: int, b: int) -> int:
        mine.meet_key(a)
        return max(a, b)

    return {"reduce_fn": None, "combine_fn": combine}


PLACES: dict[str, tuple[Callable[[Mine], dict[str, Any]], str]] = {
    "check": (in_check, "check"),
    "process": (in_process, "process"),
    "verify": (in_verify, "verify"),
    "generator": (in_generator, "process"),
    "unpickling": (in_unpickling, "send"),
    "pickling": (in_pickling, "collect"),
    "reduce": (in_reduce, "reduce"),
    "combine": (in_combine, "reduce"),
}


def expected(failed: set[int], failed_keys: set[int]) -> dict[int, int]:
    result = oracle([n for n in range(N) if n not in failed], pairs, max)
    return {key: value for key, value in result.items() if key not in failed_keys}


def cells() -> Iterator[Any]:
    """One way to end in one input, in one key and between processes; the others are thorough."""
    alike = ("check", "verify", "generator")  # the code of one input, as "process" is
    for kind, place in itertools.product(KINDS, PLACES):
        mark = []
        if kind in ("hangs", "memory"):
            mark = [pytest.mark.slow if place in alike else pytest.mark.thorough]
        elif place in alike:
            mark = [pytest.mark.thorough]
        if (kind, place) in (("hangs", "process"), ("memory", "process")):
            mark = []
        yield pytest.param(kind, place, marks=mark)


def test_each_way_is_of_one_kind() -> None:
    assert sorted(itertools.chain(*KINDS.values())) == sorted(WAYS)
    assert all(len(ways) <= len(GUILTY) for ways in KINDS.values())


@pytest.mark.parametrize(("kind", "place"), list(cells()))
def test_deaths(limited: None, folder: Path, kind: str, place: str) -> None:
    ways = dict(zip(GUILTY, (WAYS[way] for way in KINDS[kind]), strict=False))
    mine = Mine(folder, {inp: way.die for inp, way in ways.items()})
    deadly, stage = PLACES[place]
    (timeout,) = {way.timeout for way in ways.values()}
    call: dict[str, Any] = {
        "inp_list": range(N),
        "check_inp": mine.check,
        "process_inp": mine.process,
        "reduce_fn": max,
        "timeout": timeout,
        "on_error": "return",
        "progress": False,
    } | deadly(mine)

    first = at_once_dask.run(**call)

    of_key = stage == "reduce"
    report = first.report
    done = report.n_processed + report.n_skipped  # a bystander that runs again may be done by then
    assert (done, report.n_left) == (N - (0 if of_key else len(ways)), 0)
    keys = {inp % KEYS for inp in ways}
    assert dict(first) == expected(set() if of_key else set(ways), keys if of_key else set())
    if place == "generator":  # Python makes another one of it
        ways = {
            inp: replace(way, error="RuntimeError") if way.die is stop_iteration else way
            for inp, way in ways.items()
        }
    named_rightly(report, ways, stage, of_key)

    (folder / "fixed").touch()
    second = at_once_dask.run(**call)
    assert second.report.ok, str(second.report)
    assert dict(second) == expected(set(), set())
    assert second.report.n_skipped >= N - len(ways)


def named_rightly(
    report: at_once_dask.Report, ways: dict[int, Way], stage: str, of_key: bool
) -> None:
    assert len(report.failures) == len(ways)
    if of_key:
        named = dict(zip(report.failures["key"], report.failures.to_dict("records"), strict=True))
        assert set(report.failures["input"]) == {None}
    else:
        named = dict(zip(report.failures.index, report.failures.to_dict("records"), strict=True))
        assert [int(inp) for inp in report.failures["input"]] == list(named)
    for inp, way in ways.items():
        failure = named[inp % KEYS if of_key else inp]
        told = [failure[name] for name in ("stage", "kind", "error", "exit")]
        assert told == [stage, way.kind, way.error, way.exit]
        assert failure["attempts"] == 1
        assert failure["worker"].startswith("tls://127.0.0.1:")
        if way.timeout is not None:
            assert way.timeout <= failure["seconds"] < way.timeout + 1
