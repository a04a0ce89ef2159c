"""Why a run stops early, by what the ledger counts and how workers die."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from at_once_dask.driver.blame import Death
from at_once_dask.driver.stop_rule import BARREN_DEATHS, StopRule
from at_once_dask.protocol.progress_file import Progress
from at_once_dask.protocol.status import FAILED, PENDING, PROCESS, PROCESSED, SKIPPED
from at_once_dask.report.ledger import Ledger


def ledger(failed: int = 0, processed: int = 0, skipped: int = 0, pending: int = 0) -> Ledger:
    made = Ledger()
    for state, n in (
        (FAILED, failed),
        (PROCESSED, processed),
        (SKIPPED, skipped),
        (PENDING, pending),
    ):
        made.counts[state] = n
    return made


# ----- failures


def test_by_itself_no_failure_stops_a_run() -> None:
    rule = StopRule(ledger(failed=10_000))
    assert (rule.reason(), rule.allowed(), rule.is_cautious) == (None, None, False)


def test_the_first_failure_stops_a_run_that_is_to_stop() -> None:
    counted = ledger(processed=100)
    rule = StopRule(counted, "stop")
    assert (rule.reason(), rule.allowed(), rule.is_cautious) == (None, 1, True)
    counted.counts[FAILED] = 1
    assert rule.reason() == "an input failed, and on_error is 'stop'"


@pytest.mark.parametrize(
    ("failed", "allowed", "reason"),
    [
        (0, 3, None),
        (2, 1, None),
        (3, 0, "3 inputs failed, more than max_failures=2 allows"),
        (1_500, -1_497, "1,500 inputs failed, more than max_failures=2 allows"),
    ],
)
def test_a_number_of_failures(failed: int, allowed: int, reason: str | None) -> None:
    rule = StopRule(ledger(failed=failed), max_failures=2)
    assert (rule.reason(), rule.allowed(), rule.is_cautious) == (reason, allowed, True)


def test_no_failure_is_a_number_too() -> None:
    assert StopRule(ledger(), max_failures=0).reason() is None
    assert StopRule(ledger(), max_failures=0).allowed() == 1
    failed = StopRule(ledger(failed=1), max_failures=0)
    assert failed.reason() == "1 input failed, more than max_failures=0 allows"


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"failed": 19}, None),  # all of them, and too few to judge by
        ({"failed": 20}, "20 of 20 inputs failed, more than max_failures=0.1 allows"),
        ({"failed": 2, "processed": 18}, None),  # not more than the share
        (
            {"failed": 3, "processed": 17},
            "3 of 20 inputs failed, more than max_failures=0.1 allows",
        ),
        ({"failed": 3, "processed": 7, "skipped": 20}, None),  # what is done is good
        ({"failed": 3, "processed": 10, "pending": 100}, None),  # what was only looked at is not
    ],
)
def test_a_share_is_judged_from_twenty_inputs_on(
    counts: dict[str, int], reason: str | None
) -> None:
    rule = StopRule(ledger(**counts), max_failures=0.1)
    assert rule.reason() == reason
    assert rule.allowed() is None  # partitions cannot know
    assert rule.is_cautious


# ----- deaths


def death(exit: int | None = 1, progress: Any = None, **more: Any) -> Death:
    return Death("w", exit=exit, progress={} if progress is None else progress, **more)


def inside(position: int = 0) -> Progress:
    """An input was running."""
    return Progress(
        start=position,
        n=1,
        current=position,
        stop=-1,
        closing=False,
        thread=0,
        marks=array("d", [0.0, 0.0]),
        states=bytes([PROCESS]),
        failures={},
        values={},
    )


def after(*deaths: Death) -> StopRule:
    rule = StopRule(ledger())
    for one in deaths:
        rule.died(one)
    return rule


def test_ten_deaths_in_a_row_before_anything_began_end_it() -> None:
    assert BARREN_DEATHS == 10
    assert after(*[death()] * 9).reason() is None
    assert after(*[death()] * 10).reason() == (
        "10 workers in a row died before they had started any input, the last one of exit 1: what"
        " ends them is in the functions themselves, or on the machine; try process_inp(inp_list[0])"
        " in this process"
    )


def test_the_reason_names_the_memory_that_the_last_one_held() -> None:
    reason = after(*[death()] * 9, death(-15, memory=2**31)).reason()
    assert reason is not None
    assert "the last one of the 2.00 GiB of memory that it held: what ends them" in reason


def test_an_input_that_is_handled_makes_them_begin_anew() -> None:
    rule = after(*[death()] * 9)
    rule.handled()
    for _ in range(9):
        rule.died(death())
    assert rule.reason() is None
    rule.died(death())
    assert rule.reason() is not None


@pytest.mark.parametrize(
    "innocent",
    [
        death(exit=None),  # nobody saw it: the machine may be gone
        Death("w", exit=1, progress=None),  # nobody knows what it did
        death(progress={"p": inside()}),  # in an input: that is to blame
    ],
    ids=["unseen", "unknown", "inside"],
)
def test_other_deaths_do_not_count(innocent: Death) -> None:
    assert after(*[innocent] * 30).reason() is None
    assert after(*[death()] * 9, innocent).reason() is None
