"""What becomes of a dead worker's partitions: the rules, without any cluster or death."""

from __future__ import annotations

from array import array
from functools import partial
from typing import Any

import pytest

from at_once_dask.driver.blame import Death, exit_name, settle
from at_once_dask.driver.inputs import Chunk
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import (
    CLOSING,
    CURRENT,
    FAILURE,
    STOP,
    VALUE,
    BegunBeforeError,
    Progress,
    ProgressFile,
    ProgressFolder,
    Step,
)
from at_once_dask.protocol.status import (
    CHECK,
    COLLECT,
    COMBINE,
    FAILED,
    LEFT,
    OPEN,
    PROCESS,
    PROCESSED,
    REDUCE,
    SKIPPED,
)
from at_once_dask.protocol.task import Job
from at_once_dask.user_code import pickling

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
        "overdue": False,
        "thread": 0,
        "marks": marks + array("d", [0.0] * (n + 1 - len(states))),
        "states": bytes(states) + bytes(n - len(states)),
        "failures": {},
        "values": {},
    }
    return Progress(**given | more)


def death(exit: int | None = -11, **more: Any) -> Death:
    return Death("tcp://w", at=20.0, epoch=1000.0, exit=exit, **more)


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
    assert settled.outcomes[0][1].apart == [(100, b"kept")]
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
    progress = {"p": progress([PROCESSED, PROCESS]), "q": progress([CHECK])}
    died = death(progress=progress, overdue=("p", 101), timeout=5.0)
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
    settled = settle("p", CHUNK, death(None, progress=None), reducing=False, valued=False)
    assert chunks(settled) == [(100 + n, 101 + n, True) for n in range(5)]
    alone = settled.chunks[2]
    settled = settle("q", alone, death(None, progress=None), reducing=False, valued=False)
    assert settled.chunks == []
    failure = settled.outcomes[0][1].failures[0]
    assert (failure.position, failure.kind, failure.exit) == (102, "crash", None)


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


# ----- the progress file itself


def test_a_crumb_outlives_whoever_left_it(folder: Any) -> None:
    progress_folder = ProgressFolder(str(folder), "run", "tls://127.0.0.1:1")
    progress = progress_folder.create("run-m1", START, 5)
    failure = Failure(100, "process", "exception", "ValueError", "no")
    progress.states[0], progress.states[1] = FAILED, COLLECT
    progress.marks[0], progress.marks[1] = 1.0, 2.0
    progress.head[CURRENT] = START + 1
    progress.keep(100, FAILURE, pickling.dumps(failure))
    progress.keep(101, VALUE, b"value")
    progress.close()

    found = Progress.read(progress_folder.progress()["run-m1"])
    assert found is not None
    assert (found.start, found.n, found.current, found.stop) == (100, 5, 101, -1)
    assert found.running
    assert found.state == COLLECT
    assert found.failures == {100: failure}
    assert found.values == {101: b"value"}
    assert list(progress_folder.current()) == [("run-m1", 101, 2.0)]
    at = partial(Step, 101, COLLECT, 2.0, usual=1.0)
    assert progress_folder.step("run-m1", 10_000) == at([failure])
    assert progress_folder.step("run-m1", 20) == at([], more=True)  # of the record only a part
    assert progress_folder.step("run-m2", 10_000) is None


def test_a_torn_record_is_not_there(folder: Any) -> None:
    progress_folder = ProgressFolder(str(folder), "run", "w")
    progress = progress_folder.create("p", 0, 1)
    progress.keep(0, VALUE, b"whole")
    progress.keep(0, VALUE, b"torn")
    progress.close()
    content = progress_folder.progress()["p"]
    whole = Progress.read(content[:-1])
    assert whole is not None
    assert whole.values == {0: b"whole"}


def test_a_crumb_that_was_not_made_yet() -> None:
    for n in range(200):
        assert Progress.read(bytes(n)) is None


def test_the_same_partition_is_not_begun_twice(folder: Any) -> None:
    """By a worker that came back at the same address, say."""
    progress_folder = ProgressFolder(str(folder), "run", "w")
    progress_folder.create("p", 0, 1).close()
    with pytest.raises(BegunBeforeError):
        progress_folder.create("p", 0, 1)


def test_of_what_ended_only_failures_are_told_and_what_is_closing_goes_on(folder: Any) -> None:
    progress_folder = ProgressFolder(str(folder), "run", "w")
    progress = progress_folder.create("p", 0, 2)
    failure = Failure(0, "process", "exception", "ValueError", "no")
    progress.keep(0, FAILURE, pickling.dumps(failure))
    progress.states[:] = bytes([FAILED, SKIPPED])
    progress.head[STOP] = 2
    progress.marks[0], progress.marks[2] = 4.0, 7.0
    assert list(progress_folder.current()) == []
    told = progress_folder.step("p", 10_000)
    assert told is not None
    assert (told.ended, told.position, told.failures) == (True, None, [failure])
    progress.head[CLOSING] = 1
    assert list(progress_folder.current()) == [("p", 2, 7.0)]
    assert progress_folder.step("p", 10_000) == Step(None, COLLECT, 7.0, [failure], usual=3.0)
    progress.close()


def test_workers_do_not_see_each_others_crumbs(folder: Any) -> None:
    mine, other = (ProgressFolder(str(folder), "run", f"tcp://10.0.0.1:{port}") for port in (1, 11))
    mine.create("p", 0, 1).close()
    mine.open()
    mine.open_stack().close()
    assert (mine.is_open(), other.is_open()) == (True, False)
    assert list(mine.progress()) == ["p"]
    assert other.progress() == {}
    other.clear()
    assert list(mine.progress()) == ["p"]
    mine.clear()
    assert list(folder.glob("at_once_dask*")) == []


def test_in_memory_there_is_nothing_to_keep() -> None:
    progress = ProgressFile(0, 3)
    progress.keep(0, VALUE, b"value")
    progress.close()
    assert list(progress.states) == [OPEN, LEFT, LEFT]


@pytest.mark.parametrize("claimed", [0, 2])
def test_what_was_claimed_and_no_more_was_not_begun(folder: Any, claimed: int) -> None:
    """The process died before it could note what it was about to do."""
    progress_folder = ProgressFolder(str(folder), "run", "w")
    progress = progress_folder.create("p", START, 5)
    if claimed:
        progress.states[:2] = bytes([PROCESSED, PROCESSED])
        progress.head[CURRENT] = START + claimed
    progress.close()
    left = Progress.read(progress_folder.progress()["p"])
    assert left is not None
    died = death(progress={"p": left})
    settled = settle("p", CHUNK, died, reducing=False, valued=False)
    assert outcomes(settled) == ([(100, [PROCESSED, PROCESSED])] if claimed else [])
    assert chunks(settled) == [(100 + claimed, 105, False)]


def test_a_guard_that_looks_early_sees_a_time(folder: Any) -> None:
    progress = ProgressFolder(str(folder), "run", "w").create("p", START, 5)
    assert progress.marks[0] > 0
    progress.close()


def test_naming_the_tasks_does_not_pickle_the_functions() -> None:
    class Large:
        def __reduce__(self) -> Any:
            raise AssertionError("pickled for a name")

        def __call__(self, *args: Any) -> Any: ...

    job = Job(Large(), Large(), Large(), None)
    assert callable(job.mapping)
    assert callable(job.folding)
