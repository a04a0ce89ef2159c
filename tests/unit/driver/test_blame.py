"""What becomes of a dead worker's partitions: the rules, without any cluster or death."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from at_once_dask.driver.blame import Case, Death, Settled, exit_name
from at_once_dask.driver.blame import settle as settle_case
from at_once_dask.driver.inputs import Chunk
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import Progress
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.status import (
    CHECK,
    COMBINE,
    FAILED,
    OPEN,
    PROCESS,
    PROCESSED,
    REDUCE,
    SKIPPED,
)
from at_once_dask.protocol.task import MapOutcome
from at_once_dask.worker.last_stack import Stack

START = 100
CHUNK = Chunk(START, list("abcde"))


def progress(states: list[int], *, stop: int = -1, closing: bool = False, **more: Any) -> Progress:
    """A partition at 100 to 104 of which the last one in `states` was the last to begin."""
    n = len(CHUNK)
    marks = array("d", [10.0 + offset for offset in range(len(states))])
    given: dict[str, Any] = {
        "start": START,
        "n": n,
        "current": START + len(states) - 1,
        "stop": stop,
        "closing": closing,
        "thread": 0,
        "marks": marks + array("d", [0.0] * (n + 1 - len(states))),
        "states": bytes(states) + bytes(n - len(states)),
        "failures": {},
        "values": {},
    }
    return Progress(**given | more)


def death(exit: int | None = -11, **more: Any) -> Death:
    return Death("tcp://w", at=20.0, epoch=1000.0, exit=exit, **more)


def settle(
    id: str, chunk: Chunk, death: Death, reducing: bool, valued: bool, losses: int = 1, **more: Any
) -> Settled:
    """What becomes of a partition whose inputs have lost their worker so often, now included."""
    return settle_case(Case(id, chunk, reducing, valued, lambda position: losses, **more), death)


def chunks(settled: Any) -> list[tuple[int, int, bool]]:
    """What is still to be done: from, to, and whether it ran before."""
    return [(chunk.start, chunk.stop, chunk.again) for chunk in settled.chunks]


def outcomes(settled: Any) -> list[tuple[int, list[int]]]:
    return [(start, list(outcome.states)) for start, outcome in settled.outcomes]


def test_the_one_that_ran_is_guilty_and_what_was_passed_is_done() -> None:
    died = death(progress={"p": progress([SKIPPED, PROCESSED, PROCESS])})
    settled = settle("p", CHUNK, died, reducing=False, valued=False)

    assert outcomes(settled) == [(100, [SKIPPED, PROCESSED]), (102, [FAILED])]
    assert chunks(settled) == [(103, 105, False)]
    (failure,) = settled.outcomes[1][1].failures
    told = (failure.position, failure.stage, failure.kind, failure.exit, failure.seconds)
    assert told == (102, "process", "crash", "SIGSEGV", 8.0)
    assert failure.worker == "tcp://w"


def test_values_are_lost_unless_they_were_kept() -> None:
    left = progress([PROCESSED, PROCESSED, CHECK], values={100: b"kept"})
    settled = settle("p", CHUNK, death(progress={"p": left}), reducing=False, valued=True)

    assert outcomes(settled) == [(100, [PROCESSED]), (102, [FAILED])]
    (_, recovered), _ = settled.outcomes
    assert isinstance(recovered, MapOutcome)
    assert recovered.apart == [(100, b"kept")]
    assert chunks(settled) == [(101, 102, True), (103, 105, False)]


def test_failures_that_were_noted_stay() -> None:
    failure = Failure(101, "process", "exception", "ValueError", "no")
    left = progress([PROCESSED, FAILED, PROCESS], failures={101: failure})
    settled = settle("p", CHUNK, death(progress={"p": left}), reducing=False, valued=False)

    assert outcomes(settled) == [(100, [PROCESSED, FAILED]), (102, [FAILED])]
    assert settled.outcomes[0][1].failures == [failure]


def test_between_two_inputs_nobody_is_guilty() -> None:
    died = death(progress={"p": progress([PROCESSED, PROCESSED])})
    settled = settle("p", CHUNK, died, reducing=False, valued=False)
    assert outcomes(settled) == [(100, [PROCESSED, PROCESSED])]
    assert chunks(settled) == [(102, 105, False)]


def test_what_was_finished_and_not_delivered() -> None:
    left = progress([PROCESSED] * 5, stop=105)
    died = death(progress={"p": left, "q": progress([PROCESS])})
    assert died.guilty() == ("q", 100)
    settled = settle("p", CHUNK, died, reducing=False, valued=False)
    assert outcomes(settled) == [(100, [PROCESSED] * 5)]
    settled = settle("p", CHUNK, died, reducing=False, valued=True)
    assert (outcomes(settled), chunks(settled)) == ([], [(100, 105, True)])


def test_of_two_that_ran_each_runs_alone() -> None:
    died = death(progress={"p": progress([PROCESSED, PROCESS]), "q": progress([CHECK])})
    assert died.guilty() is None
    settled = settle("p", CHUNK, died, reducing=False, valued=False)
    assert outcomes(settled) == [(100, [PROCESSED])]
    assert chunks(settled) == [(101, 102, True), (102, 105, False)]


def test_the_overdue_one_is_guilty_though_another_ran() -> None:
    left = {"p": progress([PROCESSED, PROCESS]), "q": progress([CHECK])}
    died = death(progress=left, overdue=("p", 101), timeout=5.0)
    (_, blamed) = settle("p", CHUNK, died, reducing=False, valued=False).outcomes
    assert blamed[1].failures[0].kind == "timeout"
    assert blamed[1].failures[0].message == "longer than timeout=5 s; its worker was ended"
    assert chunks(settle("q", CHUNK, died, reducing=False, valued=False)) == [
        (100, 101, True),
        (101, 105, False),
    ]


def test_what_came_after_the_overdue_one_is_innocent() -> None:
    """It ended by itself just before its worker was ended."""
    died = death(progress={"p": progress([PROCESSED, PROCESS])}, overdue=("p", 100), timeout=5.0)
    settled = settle("p", CHUNK, died, reducing=False, valued=False)
    assert outcomes(settled) == [(100, [PROCESSED])]
    assert chunks(settled) == [(101, 102, True), (102, 105, False)]


def test_memory() -> None:
    died = death(-15, progress={"p": progress([PROCESS])}, memory=2**30)
    (_, outcome) = settle("p", CHUNK, died, reducing=False, valued=False).outcomes[0]
    failure = outcome.failures[0]
    assert (failure.kind, failure.exit) == ("memory", "SIGTERM")
    assert "1.00 GiB" in failure.message


@pytest.mark.parametrize("state", [COMBINE, OPEN])
def test_not_every_death_is_an_inputs(state: int) -> None:
    """It may be a key's, or that of any input that was unpickled together with this one."""
    died = death(progress={"p": progress([state])})
    assert died.guilty() is None
    settled = settle("p", CHUNK, died, reducing=False, valued=True)
    assert outcomes(settled) == []
    assert all(chunk.singly for chunk in settled.chunks[:1])
    assert died.combining() == (state == COMBINE)


def test_while_all_values_are_pickled_together() -> None:
    left = progress([PROCESSED, PROCESSED], stop=102, closing=True)
    died = death(progress={"p": left})
    assert died.guilty() is None
    settled = settle("p", CHUNK, died, reducing=False, valued=True)
    assert chunks(settled) == [(100, 102, True), (102, 105, False)]


def test_a_key_is_guilty_and_those_of_which_only_parts_were_folded_are_not() -> None:
    died = death(progress={"p": progress([PROCESSED, REDUCE, REDUCE])})
    settled = settle("p", CHUNK, died, reducing=True, valued=True)
    assert [(start, o.failures[0].stage) for start, o in settled.outcomes] == [(102, "reduce")]
    assert chunks(settled) == [(100, 101, True), (101, 102, False), (103, 105, False)]


def test_what_was_not_begun_goes_back_as_it_was() -> None:
    settled = settle("p", CHUNK, death(progress={}), reducing=False, valued=True)
    assert (settled.outcomes, settled.chunks) == ([], [CHUNK])


def test_without_a_trace_all_run_alone_and_who_dies_alone_is_guilty() -> None:
    settled = settle("p", CHUNK, death(-9, progress=None), reducing=False, valued=False)
    assert chunks(settled) == [(100 + n, 101 + n, True) for n in range(5)]
    alone = settled.chunks[2]
    settled = settle("q", alone, death(-9, progress=None), reducing=False, valued=False)
    assert settled.chunks == []
    failure = settled.outcomes[0][1].failures[0]
    assert (failure.position, failure.kind, failure.exit) == (102, "crash", "SIGKILL")


ALONE = Chunk(102, ["c"], again=True)
RUNNING = progress([PROCESSED, PROCESSED, PROCESS])


@pytest.mark.parametrize("seen", [None, {"p": RUNNING}])
@pytest.mark.parametrize(
    ("died", "losses", "is_alone"),
    [
        ({"exit": None}, 2, True),  # without a nanny nobody knows whether the machine was lost
        ({"exit": -11, "beside": 1}, 5, False),  # a task of somebody else may have done it
        ({"exit": -15, "departed": True}, 5, False),
        ({"exit": None, "departed": True}, 5, False),
    ],
)
def test_how_often_an_input_may_be_lost_where_nobody_can_be_blamed(
    seen: dict[str, Progress] | None, died: dict[str, Any], losses: int, is_alone: bool
) -> None:
    end = Death("tcp://w", at=20.0, progress=seen, **died)
    chunk = ALONE if is_alone else replace(ALONE, again=False)
    for n in range(1, losses):
        settled = settle("p", chunk, end, reducing=False, valued=False, losses=n)
        assert settled.outcomes == []
        assert [(one.start, one.stop) for one in settled.chunks] == [(102, 103)]
        assert settled.repeated == 1
    settled = settle("p", chunk, end, reducing=False, valued=False, losses=losses)
    assert settled.chunks == []
    failure = settled.outcomes[0][1].failures[0]
    assert (failure.position, failure.kind) == (102, "lost" if end.departed else "crash")


def test_what_a_lost_machine_held_goes_back_as_it_was() -> None:
    lost = death(None, progress=None, departed=True)
    settled = settle("p", CHUNK, lost, reducing=False, valued=False)
    assert (settled.outcomes, settled.chunks, settled.repeated) == ([], [CHUNK], 5)
    settled = settle("p", CHUNK, lost, reducing=False, valued=False, losses=2)
    assert chunks(settled) == [(100 + n, 101 + n, True) for n in range(5)]


@pytest.mark.parametrize("departed", [False, True])
@pytest.mark.parametrize("chunk", [CHUNK, ALONE])
def test_what_waited_for_its_turn_goes_back_as_it_was(chunk: Chunk, departed: bool) -> None:
    """Nor is it counted: another one was running there."""
    gone = death(None, progress=None, departed=departed)
    queued = settle("p", chunk, gone, reducing=False, valued=False, losses=9, started=False)
    assert (queued.outcomes, queued.chunks, queued.repeated) == ([], [chunk], 0)


def test_what_a_worker_had_done_that_was_told_to_go_counts() -> None:
    left = death(0, progress={"p": RUNNING}, departed=True)
    settled = settle("p", CHUNK, left, reducing=False, valued=False)
    assert outcomes(settled) == [(100, [PROCESSED, PROCESSED])]
    assert chunks(settled) == [(102, 103, False), (103, 105, False)]


def test_the_thread_that_wrote_the_last_stack_is_guilty() -> None:
    """Be there others that were running, and tasks of others beside."""
    progresses = {"p": replace(RUNNING, thread=7), "q": replace(RUNNING, thread=8)}
    died = death(progress=progresses, stack=Stack(thread=8), beside=1)
    assert died.guilty() == ("q", 102)
    assert replace(died, stack=Stack(thread=9)).guilty() is None


def test_what_was_taken_back_is_not_settled_here() -> None:
    died = death(progress={"p": progress([PROCESSED, PROCESS])})
    settled = settle("p", CHUNK.part(100, 102), died, reducing=False, valued=False)
    assert outcomes(settled) == [(100, [PROCESSED]), (101, [FAILED])]
    assert chunks(settled) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [(-11, "SIGSEGV"), (3, "exit 3"), (0, "exit 0"), (-200, "signal 200"), (None, None)],
)
def test_names_of_exits(code: int | None, name: str | None) -> None:
    assert exit_name(code) == name


class Dying:
    """As a deadline: the process ends between the claim and the note of it, when that is read."""

    def __gt__(self, now: object) -> bool:
        raise SystemExit


@pytest.mark.parametrize("claimed", [0, 2])
def test_what_was_claimed_and_no_more_was_not_begun(folder: Path, claimed: int) -> None:
    """The process died before it could note what it was about to do."""
    progress_folder = ProgressFolder(str(folder), "run", "w")
    left = progress_folder.create("p", START, 5)
    for position in range(START, START + claimed):
        assert left.begin(position)
        left.note(PROCESSED)
    left.deadline = Dying()  # type: ignore[assignment]
    with pytest.raises(SystemExit):
        left.begin(START + claimed)
    found = Progress.read(progress_folder.contents()["p"])
    left.close()
    assert found is not None
    settled = settle("p", CHUNK, death(progress={"p": found}), reducing=False, valued=False)
    assert outcomes(settled) == ([(100, [PROCESSED, PROCESSED])] if claimed else [])
    assert chunks(settled) == [(100 + claimed, 105, False)]
