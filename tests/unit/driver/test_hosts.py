"""Which hosts fail what they are given, and which only got the bad part of the list."""

from __future__ import annotations

from array import array

import pytest
from clock import Clock

from at_once_dask.driver.hosts import IN_A_ROW, WAIT_SECONDS, Hosts
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.status import FAILED, PROCESSED, SKIPPED
from at_once_dask.protocol.task import MapOutcome

GOOD, BAD, OTHER = "10.0.0.1", "10.0.0.17", "10.0.0.2"


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hosts(notes: list[str], clock: Clock) -> Hosts:
    found = Hosts(notes.append, clock)
    found.see([f"tcp://{GOOD}:1", f"tcp://{BAD}:1", f"tcp://{OTHER}:1"])
    return found


def came(host: str, states: list[int], error: str = "OSError", start: int = 0) -> MapOutcome:
    failures = [
        Failure(start + n, "process", "exception", error, "no disk", host=f"node of {host}")
        for n, state in enumerate(states)
        if state == FAILED
    ]
    return MapOutcome(
        stop=start + len(states),
        worker=f"tcp://{host}:1",
        states=bytearray(states),
        marks=array("d", range(len(states) + 1)),
        failures=failures,
    )


def test_ten_in_a_row_while_others_succeed(hosts: Hosts, notes: list[str]) -> None:
    hosts.take(came(BAD, [FAILED] * 9))
    hosts.take(came(GOOD, [PROCESSED]))
    assert hosts.avoided == set()
    hosts.take(came(BAD, [FAILED], start=9))
    assert hosts.avoided == {BAD}
    hosts.take(came(BAD, [FAILED] * 5, start=10))  # what was on its way
    (note,) = notes
    assert note == (
        f"node of {BAD} gets nothing more: 10 inputs in a row have failed there (OSError), and"
        " others not; see what is wrong with it, and run the same again"
    )


@pytest.mark.parametrize("between", [PROCESSED, SKIPPED])
def test_only_one_that_was_processed_is_between_them(hosts: Hosts, between: int) -> None:
    hosts.take(came(BAD, [FAILED] * 6 + [between] + [FAILED] * 6))
    hosts.take(came(GOOD, [PROCESSED]))
    hosts.take(came(BAD, [FAILED], start=13))
    assert hosts.avoided == ({BAD} if between == SKIPPED else set())


def test_where_nobody_succeeds_it_only_waits_a_little(
    hosts: Hosts, clock: Clock, notes: list[str]
) -> None:
    hosts.take(came(GOOD, [PROCESSED] * 5))
    assert hosts.take(came(BAD, [FAILED] * 20))  # somebody is avoided from now on
    assert hosts.avoided == {BAD}
    clock.move(WAIT_SECONDS)
    assert hosts.avoided == set()
    assert hosts.take(came(BAD, [FAILED], start=20))
    assert hosts.avoided == {BAD}
    assert notes == []


def test_one_that_waits_is_judged_as_soon_as_others_succeed(
    hosts: Hosts, clock: Clock, notes: list[str]
) -> None:
    hosts.take(came(BAD, [FAILED] * 10))
    hosts.take(came(GOOD, [PROCESSED]))
    clock.move(WAIT_SECONDS)
    assert hosts.avoided == {BAD}
    assert len(notes) == 1


def test_others_that_fail_in_the_same_way_acquit_it(hosts: Hosts, notes: list[str]) -> None:
    """The bad inputs are neighbours in the list."""
    hosts.take(came(BAD, [FAILED] * 10))
    hosts.take(came(GOOD, [PROCESSED]))
    hosts.take(came(BAD, [FAILED], start=10))
    assert hosts.avoided == {BAD}
    hosts.take(came(OTHER, [FAILED], start=20))
    assert hosts.avoided == set()
    assert notes[1] == f"node of {BAD} gets inputs again: others fail in the same way"
    hosts.take(came(OTHER, [FAILED] * 20, start=30))
    assert hosts.avoided == set()


def test_failures_of_another_kind_acquit_nobody(hosts: Hosts) -> None:
    hosts.take(came(GOOD, [FAILED, PROCESSED], error="ValueError"))
    hosts.take(came(BAD, [FAILED] * 10))
    hosts.take(came(GOOD, [PROCESSED], error="ValueError"))
    hosts.take(came(BAD, [FAILED], start=20))
    assert hosts.avoided == {BAD}


def test_how_many_failures_end_a_partition(hosts: Hosts) -> None:
    assert hosts.allowed() == IN_A_ROW == 10
    hosts.take(came(BAD, [FAILED]))
    assert hosts.allowed() == 10
    hosts.take(came(GOOD, [FAILED]))
    assert hosts.allowed() is None  # it is not a host's fault
    alone = Hosts(print, Clock())
    alone.see([f"tcp://{GOOD}:1", f"tcp://{GOOD}:2"])
    assert alone.allowed() is None


def test_the_last_host_is_never_bad(hosts: Hosts) -> None:
    hosts.take(came(BAD, [FAILED] * 10))
    hosts.take(came(GOOD, [PROCESSED]))
    hosts.take(came(BAD, [FAILED], start=10))
    hosts.see([f"tcp://{BAD}:1"])
    assert hosts.avoided == set()
