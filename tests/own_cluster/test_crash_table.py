"""The crash table: every way to die, in every place where the user's code runs.

In every cell the guilty input (or key) is named with the right kind and stage, all others are done,
and a second run completes what can be completed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from deaths import WAYS, Way
from helpers import oracle

import at_once_dask

N = 24
GUILTY = 13
GUILTY_KEY = GUILTY % 3


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
    """What the functions of one cell use; `death` is for real until there is a file `fixed`."""

    folder: Path
    die: Callable[[], Any]

    def death(self) -> None:
        if not (self.folder / "fixed").exists():
            self.die()

    def done(self, inp: Any) -> Path:
        return self.folder / f"{int(inp)}.done"

    def check(self, inp: Any) -> list[Any]:
        return [self.done(inp).exists(), pairs(inp)]

    def process(self, inp: Any) -> Any:
        self.done(inp).touch()
        return pairs(inp)


def pairs(inp: Any) -> list[tuple[int, Any]]:
    return [(int(inp) % 3, int(inp))]


class Deadly:
    """An input or value that dies when it is pickled or unpickled."""

    def __init__(self, mine: Mine, on_the_way_out: bool) -> None:
        self.mine = mine
        self.on_the_way_out = on_the_way_out

    def __int__(self) -> int:
        return GUILTY

    def __reduce__(self) -> Any:
        if self.on_the_way_out:
            self.mine.death()
            return int, (GUILTY,)
        return revive, (self.mine,)


def revive(mine: Mine) -> int:
    mine.death()
    return GUILTY


# ----- the places: what to run, and the stage that a death there belongs to


def in_check(mine: Mine) -> dict[str, Any]:
    def check(inp: int) -> list[Any]:
        if inp == GUILTY:
            mine.death()
        return mine.check(inp)

    return {"check_inp": check}


def in_process(mine: Mine) -> dict[str, Any]:
    def process(inp: int) -> Any:
        if inp == GUILTY:
            mine.death()
        return mine.process(inp)

    return {"process_inp": process}


def in_verify(mine: Mine) -> dict[str, Any]:
    def check(inp: int) -> list[Any]:
        if inp == GUILTY and mine.done(inp).exists():
            mine.death()
        return mine.check(inp)

    return {"check_inp": check, "verify": True}


def in_generator(mine: Mine) -> dict[str, Any]:
    def process(inp: int) -> Iterator[tuple[int, int]]:
        yield from mine.process(inp)
        if inp == GUILTY:
            mine.done(inp).unlink()
            mine.death()
            mine.done(inp).touch()

    return {"process_inp": process}


def in_unpickling(mine: Mine) -> dict[str, Any]:
    inputs = [Deadly(mine, on_the_way_out=False) if n == GUILTY else n for n in range(N)]
    return {"inp_list": inputs}


def in_pickling(mine: Mine) -> dict[str, Any]:
    def process(inp: int) -> Any:
        if inp == GUILTY:
            return [(GUILTY_KEY, Deadly(mine, on_the_way_out=True))]
        return mine.process(inp)

    return {"process_inp": process}


def in_reduce(mine: Mine) -> dict[str, Any]:
    def reduce(values: list[int]) -> int:
        if values[0] % 3 == GUILTY_KEY:
            mine.death()
        return max(values)

    return {"reduce_fn": reduce}


def in_combine(mine: Mine) -> dict[str, Any]:
    def combine(a: int, b: int) -> int:
        if a % 3 == GUILTY_KEY:
            mine.death()
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
    """Those that wait for a second are for `make test-slow` where their place is like another."""
    alike = ("check", "verify", "generator")  # the code of one input, as "process" is
    for way, place in itertools.product(WAYS, PLACES):
        slow = way in ("hang_in_c", "memory") and place in alike
        yield pytest.param(way, place, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("way", "place"), list(cells()))
def test_a_death(limited: None, folder: Path, way: str, place: str) -> None:
    mine, death = Mine(folder, WAYS[way].die), WAYS[way]
    deadly, stage = PLACES[place]
    call: dict[str, Any] = {
        "inp_list": range(N),
        "check_inp": mine.check,
        "process_inp": mine.process,
        "reduce_fn": max,
        "timeout": death.timeout,
        "on_error": "return",
        "progress": False,
    } | deadly(mine)

    first = at_once_dask.run(**call)

    of_key = stage == "reduce"
    report = first.report
    done = report.n_processed + report.n_skipped  # a bystander that runs again may be done by then
    assert (done, report.n_left) == (N - (not of_key), 0)
    assert dict(first) == expected(set() if of_key else {GUILTY}, {GUILTY_KEY} if of_key else set())
    if (way, place) == ("stop_iteration", "generator"):  # Python makes another one of it
        death = replace(death, error="RuntimeError")
    named_rightly(report, death, stage, of_key)

    (folder / "fixed").touch()
    second = at_once_dask.run(**call)
    assert second.report.ok, str(second.report)
    assert dict(second) == expected(set(), set())
    assert second.report.n_skipped >= N - 1


def named_rightly(report: at_once_dask.Report, death: Way, stage: str, of_key: bool) -> None:
    assert len(report.failures) == 1
    failure = report.failures.iloc[0]
    if of_key:
        assert failure["key"] == GUILTY_KEY
        assert failure["input"] is None
    else:
        assert report.failures.index.tolist() == [GUILTY]
        assert int(failure["input"]) == GUILTY
    told = failure[["stage", "kind", "error", "exit"]].tolist()
    assert told == [stage, death.kind, death.error, death.exit]
    assert failure["attempts"] == 1
    assert failure["worker"].startswith("tls://127.0.0.1:")
    if death.timeout is not None:
        assert death.timeout <= failure["seconds"] < death.timeout + 1
