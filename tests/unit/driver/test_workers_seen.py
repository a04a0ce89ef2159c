"""Which workers there are, by looks alone; the clock starts at 1000 s."""

from __future__ import annotations

import math
from typing import Any

import pytest
from clock import Clock
from dispatching import worker

from at_once_dask.driver.workers_seen import (
    BLINK_SECONDS,
    LOOK_SECONDS,
    LOOK_SOON_SECONDS,
    NEWS_SECONDS,
    NONE_LEFT,
    PATIENCE_SECONDS,
    SLOW_SECONDS,
    WorkersSeen,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def seen(clock: Clock) -> WorkersSeen:
    return WorkersSeen(clock)


def why(seen: WorkersSeen, is_held: bool = False, patience: float = PATIENCE_SECONDS) -> str | None:
    return seen.why_nobody_works(is_held, patience)


def test_before_the_first_look_one_is_due_and_nobody_is_known(seen: WorkersSeen) -> None:
    assert seen.is_due()
    assert (seen.alive, seen.threads, seen.paused, seen.n_threads) == ({}, {}, set(), 0)


def test_looks_are_a_second_apart(seen: WorkersSeen, clock: Clock) -> None:
    seen.look({"w": worker()})
    clock.move(LOOK_SECONDS - 0.01)
    assert not seen.is_due()
    clock.move(0.01)
    assert seen.is_due()


def test_a_new_worker_gets_something_from_the_look_on_that_shows_it(seen: WorkersSeen) -> None:
    seen.look({"w": worker()})
    seen.look({"w": worker(), "v": worker(threads=3)})
    assert seen.threads == {"w": 1, "v": 3}
    assert seen.n_threads == 4


def test_one_that_is_paused_or_not_ready_lives_and_gets_nothing(seen: WorkersSeen) -> None:
    seen.look({"p": worker(paused=True), "s": worker(ready=False), "w": worker()})
    assert set(seen.alive) == {"p", "s", "w"}
    assert (seen.threads, seen.paused) == ({"w": 1}, {"p"})
    assert seen.lives("p", "first")
    assert seen.lives("s", "first")


# ----- gone, and nobody says how


@pytest.mark.parametrize(
    ("nanny", "patience"), [(None, BLINK_SECONDS), ("its nanny", NEWS_SECONDS)]
)
def test_one_that_is_gone_is_lost_when_nobody_reports_its_death(
    seen: WorkersSeen, clock: Clock, nanny: str | None, patience: float
) -> None:
    seen.look({"w": worker(nanny=nanny)})
    seen.look({})
    assert not seen.lives("w", "first")
    assert not seen.is_lost("w", "first")  # this says since when
    clock.move(patience)
    assert not seen.is_lost("w", "first")
    clock.move(0.01)
    assert seen.is_lost("w", "first")
    assert not seen.is_dead("w")


def test_one_that_is_met_again_was_never_gone(seen: WorkersSeen, clock: Clock) -> None:
    """One look that does not show it is not the end; the time begins anew."""
    seen.look({})
    assert not seen.is_lost("w", "first")
    clock.move(2)
    seen.look({"w": worker()})
    assert seen.lives("w", "first")
    seen.look({})
    assert not seen.is_lost("w", "first")
    clock.move(2)
    assert not seen.is_lost("w", "first")


def test_another_process_at_its_address_is_another_worker(seen: WorkersSeen) -> None:
    seen.look({"w": worker(directory="second")})
    assert not seen.lives("w", "first")
    assert seen.lives("w", "second")


# ----- a death is reported


def test_one_that_died_is_dead_at_once_and_the_next_look_is_due(seen: WorkersSeen) -> None:
    seen.look({"w": worker(), "v": worker()})
    seen.died("w")
    assert seen.is_dead("w")
    assert (set(seen.alive), seen.threads) == ({"v"}, {"v": 1})
    assert seen.is_due()


def test_while_one_is_replaced_looks_come_soon(seen: WorkersSeen, clock: Clock) -> None:
    seen.look({"w": worker(), "v": worker()})
    assert (seen.is_short(), seen.pause) == (False, LOOK_SECONDS)
    seen.died("w")
    seen.look({"v": worker()})
    assert (seen.is_short(), seen.pause) == (True, LOOK_SOON_SECONDS)
    seen.look({"v": worker(), "another": worker()})
    assert (seen.is_short(), seen.pause) == (False, LOOK_SECONDS)


def test_one_that_is_not_replaced_is_not_looked_for_without_end(
    seen: WorkersSeen, clock: Clock
) -> None:
    seen.look({"w": worker(), "v": worker()})
    seen.died("w")
    seen.look({"v": worker()})
    clock.move(PATIENCE_SECONDS)
    assert not seen.is_short()


def test_one_at_the_address_of_a_dead_one_is_not_dead_for_long(
    seen: WorkersSeen, clock: Clock
) -> None:
    """The look right after the report may still show the dead one."""
    seen.look({"w": worker()})
    seen.died("w")
    seen.look({"w": worker()})
    assert seen.is_dead("w")
    clock.move(LOOK_SECONDS + 0.1)
    seen.look({"w": worker(directory="second")})
    assert not seen.is_dead("w")
    assert seen.lives("w", "second")


# ----- nobody works


def test_who_works_is_reason_enough(seen: WorkersSeen, clock: Clock) -> None:
    for _ in range(10):
        seen.look({"w": worker()})
        clock.move(100)
        assert why(seen) is None


def test_one_look_that_shows_no_worker_is_not_the_end(seen: WorkersSeen, clock: Clock) -> None:
    """Nor are several, with one between them that shows some."""
    for there in ({"w": worker()}, {}, {"w": worker()}, {}, {"w": worker()}):
        seen.look(there)
        assert why(seen) is None
        clock.move(2.4)


@pytest.mark.parametrize("before", [False, True])
def test_without_workers_it_ends_in_the_end(seen: WorkersSeen, clock: Clock, before: bool) -> None:
    """Where somebody will start some, that is waited for."""
    if before:
        seen.look({"w": worker()})
        assert why(seen) is None
    seen.look({})
    assert why(seen) is None
    clock.move(PATIENCE_SECONDS - 0.01)
    seen.look({})
    assert why(seen) is None
    assert seen.deserted_seconds == pytest.approx(PATIENCE_SECONDS - 0.01)
    clock.move(0.01)
    assert why(seen) == NONE_LEFT


def test_where_others_start_workers_it_waits_for_ever(seen: WorkersSeen, clock: Clock) -> None:
    seen.look({})
    for _ in range(3):
        assert why(seen, patience=math.inf) is None
        clock.move(1e6)
    seen.look({"w": worker()})
    assert why(seen, patience=math.inf) is None
    assert seen.deserted_seconds == 0


def test_who_holds_something_and_lives_may_take_as_long_as_it_likes(
    seen: WorkersSeen, clock: Clock
) -> None:
    seen.look({"w": worker(paused=True)})
    for _ in range(10):
        clock.move(SLOW_SECONDS)
        assert why(seen, is_held=True) is None
    assert why(seen) is None  # the time begins when it holds nothing any more
    clock.move(PATIENCE_SECONDS)
    assert why(seen) == NONE_LEFT


@pytest.mark.parametrize("known", [{"paused": True}, {"paused": False}])
def test_who_lives_and_has_not_answered_yet_is_waited_for_longest(
    seen: WorkersSeen, clock: Clock, known: dict[str, Any]
) -> None:
    """One that is paused is no reason to wait."""
    seen.look({"w": worker(ready=known["paused"], **known)})
    patience = PATIENCE_SECONDS if known["paused"] else SLOW_SECONDS
    assert why(seen) is None
    clock.move(patience - 0.01)
    assert why(seen) is None
    clock.move(0.01)
    assert why(seen) == NONE_LEFT
