"""What is in flight: who has room, what is asked back, and what comes of it."""

from __future__ import annotations

import pytest
from clock import Clock
from dispatching import ScriptedBackend

from at_once_dask.driver.flights import (
    ASK_SECONDS,
    DEPTH,
    HELD_UP_SECONDS,
    RECLAIM_SECONDS,
    Flights,
    InFlight,
)
from at_once_dask.driver.inputs import Chunk


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(clock: Clock) -> ScriptedBackend:
    return ScriptedBackend(clock)


@pytest.fixture
def flights(backend: ScriptedBackend, clock: Clock) -> Flights:
    return Flights(backend, clock)


def add(
    flights: Flights, worker: str, start: int = 0, n: int = 10, again: bool = False
) -> InFlight:
    chunk = Chunk(start, list(range(start, start + n)), again=again)
    return flights.add("run-m", chunk, worker, "its directory")


def test_each_has_an_id_of_its_own_and_the_time_it_was_sent(flights: Flights, clock: Clock) -> None:
    first = add(flights, "w")
    clock.move(5)
    second = add(flights, "w", start=10)
    assert [first.id, second.id] == ["run-m0", "run-m1"]
    assert [first.sent, second.sent] == [1_000, 1_005]
    assert [first.limit, second.limit] == [10, 20]
    assert flights.held == {"run-m0": first, "run-m1": second}


def test_an_id_is_never_used_twice(flights: Flights) -> None:
    """A late outcome of the first must not be taken for the second's."""
    flights.drop(add(flights, "w"))
    assert add(flights, "w").id == "run-m1"


def test_it_is_in_flight_until_it_is_recorded_and_then_no_more_whatever_happens(
    flights: Flights,
) -> None:
    flight = add(flights, "w")
    with pytest.raises(ValueError, match="broken"), flights.landing(flight.id) as landing:
        assert landing is flight
        assert flights.held == {flight.id: flight}
        raise ValueError("broken")
    assert flights.held == {}


def test_what_is_dropped_is_dropped_by_the_backend_too(
    flights: Flights, backend: ScriptedBackend
) -> None:
    flights.drop(add(flights, "w"))
    assert (flights.held, backend.dropped) == ({}, ["run-m0"])


def test_only_what_is_wanted_is_kept(flights: Flights) -> None:
    for worker in "wvw":
        add(flights, worker)
    flights.keep(lambda flight: flight.worker == "w")
    assert list(flights.held) == ["run-m0", "run-m2"]
    assert flights.workers() == {"w"}


def test_what_was_delivered_is_said_once(flights: Flights) -> None:
    flights.delivered["w"] += ["p", "q"]
    assert flights.take_delivered("w") == ("p", "q")
    assert flights.take_delivered("w") == ()
    assert flights.take_delivered("v") == ()


def test_what_a_worker_holds_is_found_by_its_address(flights: Flights) -> None:
    first, other, second = (add(flights, worker) for worker in "wvw")
    assert flights.of("w") == [first, second]
    assert (flights.of("v"), flights.of("x"), flights.workers()) == ([other], [], {"v", "w"})
    flights.remove(other.id)
    assert (flights.of("v"), flights.workers()) == ([], {"w"})


# ----- who has room


def test_two_partitions_a_thread_are_in_flight(flights: Flights) -> None:
    assert DEPTH == 2
    got = []
    flights.take_workers({"w": 1, "v": 2})
    while (worker := flights.least_busy(None)) is not None:
        got.append(worker)
        add(flights, worker)
    assert got[:2] == ["v", "v"]  # the one with the most room
    assert sorted(got) == ["v", "v", "v", "v", "w", "w"]


def test_who_is_reserved_gets_nothing(flights: Flights) -> None:
    flights.take_workers({"w": 1})
    assert flights.least_busy("w") is None
    flights.take_workers({"w": 1, "v": 1})
    assert flights.least_busy("w") == "v"


def test_where_there_are_no_workers_nobody_has_room(flights: Flights) -> None:
    flights.take_workers({})
    assert flights.least_busy(None) is None


@pytest.mark.parametrize("sees_progress", [False, True])
def test_what_runs_again_has_its_process_for_itself(
    flights: Flights, backend: ScriptedBackend, sees_progress: bool
) -> None:
    """Where progress is seen, of one with a single thread it takes one of the two places."""
    backend.sees_progress = sees_progress
    add(flights, "w", again=True)
    flights.take_workers({"w": 2})
    assert flights.least_busy(None) is None
    flights.take_workers({"w": 1})
    assert flights.least_busy(None) == ("w" if sees_progress else None)
    assert flights.room_for_again() == (("w", None) if sees_progress else (None, "w"))


def test_what_a_worker_holds_that_is_gone_counts_for_nobody(flights: Flights) -> None:
    add(flights, "gone")
    flights.take_workers({"w": 1})
    assert flights.least_busy(None) == "w"


# ----- asked back


def test_what_was_just_sent_is_not_asked_back(
    flights: Flights, backend: ScriptedBackend, clock: Clock
) -> None:
    add(flights, "w", start=0)
    clock.move(RECLAIM_SECONDS - 0.001)
    add(flights, "w", start=10)
    flights.ask_back("w")
    assert backend.asked == []
    clock.move(0.002)
    flights.ask_back("w")
    assert backend.asked == [("w", [("run-m0", 0)], False)]


def test_others_are_not_asked(flights: Flights, backend: ScriptedBackend, clock: Clock) -> None:
    add(flights, "w")
    clock.move(1)
    flights.ask_back("v")
    assert backend.asked == []


def test_who_was_asked_has_a_while_to_answer(
    flights: Flights, backend: ScriptedBackend, clock: Clock
) -> None:
    add(flights, "w")
    clock.move(1)
    flights.ask_back("w")
    flights.ask_back("w")
    assert len(backend.asked) == 1
    clock.move(ASK_SECONDS - 0.001)
    flights.ask_back("w")
    assert len(backend.asked) == 1
    clock.move(0.001)
    flights.ask_back("w")
    assert len(backend.asked) == 2


def test_what_waits_behind_the_task_of_somebody_else_is_taken_back_whole(
    flights: Flights, backend: ScriptedBackend, clock: Clock
) -> None:
    """The worker has none of ours at work, and so would give nothing back."""
    flight = add(flights, "w")
    clock.move(HELD_UP_SECONDS)
    flights.ask_back("w")
    assert backend.asked == [("w", [(flight.id, 0)], True)]
    other = add(flights, "v")
    list(flights.take_back({flight.id: 0}))
    flights.drop_empty()
    assert list(flights.held.values()) == [flight, other]  # until nothing else is out
    flights.remove(other.id)
    flights.drop_empty()
    assert (flights.held, backend.dropped) == ({}, [flight.id])


def test_who_has_answered_is_not_asked_again(
    flights: Flights, backend: ScriptedBackend, clock: Clock
) -> None:
    """Even when it gave nothing back: it has started all."""
    flight = add(flights, "w")
    assert list(flights.take_back({flight.id: 10})) == []
    clock.move(1)
    flights.ask_back("w")
    assert backend.asked == []


def test_when_a_run_stops_all_is_asked_back(flights: Flights, backend: ScriptedBackend) -> None:
    """Also what was just sent, and what has answered."""
    flight = add(flights, "w")
    list(flights.take_back({flight.id: 5}))
    flights.ask_back("w", stopping=True)
    assert backend.asked == [("w", [("run-m0", 0)], True)]


def test_what_is_taken_back_is_all_from_the_new_limit_on(flights: Flights) -> None:
    flight = add(flights, "w", start=20)
    (chunk,) = flights.take_back({flight.id: 24})
    assert (chunk.start, chunk.inputs) == (24, [24, 25, 26, 27, 28, 29])
    assert (flight.limit, flight.answered) == (24, True)
    assert (flight.rest.start, flight.rest.inputs) == (20, [20, 21, 22, 23])


def test_what_is_given_back_twice_is_taken_once(flights: Flights) -> None:
    """A limit only ever falls."""
    flight = add(flights, "w")
    assert [len(chunk) for chunk in flights.take_back({flight.id: 6})] == [4]
    assert list(flights.take_back({flight.id: 6})) == []
    assert list(flights.take_back({flight.id: 8})) == []
    assert [chunk.inputs for chunk in flights.take_back({flight.id: 4})] == [[4, 5]]


def test_what_has_come_back_meanwhile_gives_nothing_back(flights: Flights) -> None:
    assert list(flights.take_back({"run-m7": 0})) == []
