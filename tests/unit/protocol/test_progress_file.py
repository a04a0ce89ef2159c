"""How far a partition came: what is written is what is read, whoever died meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from clock import Clock

from at_once_dask.errors import AtOnceError
from at_once_dask.protocol import progress_file
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import Progress, ProgressFile, StartedBeforeError
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.status import (
    CHECK,
    COLLECT,
    FAILED,
    LEFT,
    OPEN,
    PROCESS,
    PROCESSED,
    REDUCE,
    SEND,
    SKIPPED,
    STARTED,
)
from at_once_dask.user_code import pickling

START = 100
FAILURE = Failure(START, "process", "exception", "ValueError", "no")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the module takes for ``time.monotonic``."""
    hand = Clock()
    monkeypatch.setattr(progress_file, "time", SimpleNamespace(monotonic=hand))
    return hand


@pytest.fixture
def of_worker(folder: Path) -> ProgressFolder:
    return ProgressFolder(str(folder), "run", "tls://127.0.0.1:1")


@pytest.fixture
def file(of_worker: ProgressFolder, clock: Clock) -> Iterator[ProgressFile]:
    """Of partition p at 100 to 104, made at 1000 s; what it says is what a reader finds."""
    made = of_worker.create("p", START, 5)
    yield made
    made.close()


def read(of_worker: ProgressFolder, id: str = "p") -> Progress:
    found = Progress.read(of_worker.contents()[id])
    assert found is not None
    return found


def going_on(of_worker: ProgressFolder) -> list[tuple[str, int, float]]:
    """Of each partition that goes on: its id, the position it has come to, and since when.

    A look at the whole file says the same.
    """
    found = list(of_worker.running())
    for id, reached, since in found:
        seen = of_worker.look(id)
        assert seen is not None
        assert (seen.reached, seen.since) == (reached, since)
    return found


def handle(file: ProgressFile, position: int, state: int, clock: Clock, seconds: float) -> None:
    """An input begins, takes its time, and ends so."""
    assert file.begin(position)
    clock.move(seconds)
    file.note(state)


def test_it_outlives_whoever_wrote_it(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    handle(file, 100, FAILED, clock, 1.0)
    file.begin(101)
    file.note(COLLECT)
    file.keep_failure(FAILURE, pickling.dumps(FAILURE))
    file.keep_value(101, b"value")
    file.close()

    found = Progress.read(of_worker.contents()["p"])
    assert found is not None
    assert (found.start, found.n, found.current) == (100, 5, 101)
    assert found.thread == threading.get_ident()
    assert list(found.marks) == [1000.0, 1001.0, 0.0, 0.0, 0.0, 0.0]
    assert list(found.states) == [FAILED, COLLECT, LEFT, LEFT, LEFT]
    assert found.failures == {100: FAILURE}
    assert found.values == {101: b"value"}


def test_one_that_goes_on_says_what_it_is_at(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    handle(file, 100, FAILED, clock, 1.0)
    file.begin(101)
    file.note(COLLECT)

    found = read(of_worker)
    assert (found.stop, found.running, found.ended) == (-1, True, False)
    assert (found.state, found.doing, found.position) == (COLLECT, COLLECT, 101)
    assert (found.reached, found.since, found.usual) == (101, 1001.0, 1.0)
    assert going_on(of_worker) == [("p", 101, 1001.0)]
    assert (file.current, file.stage, file.seconds) == (101, "collect", 0.0)
    clock.move(3)
    assert file.seconds == file.seconds_of(101) == 3.0
    assert file.seconds_of(100) == 1.0


def test_who_looks_reads_no_records(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    file.keep_failure(FAILURE, pickling.dumps(FAILURE))
    file.keep_value(100, b"value")
    looked, whole = of_worker.look("p"), read(of_worker)
    assert looked is not None
    assert (looked.failures, looked.values) == ({}, {})
    assert (whole.failures, whole.values) == ({100: FAILURE}, {100: b"value"})
    assert looked.states == whole.states
    assert looked.marks == whole.marks


def test_who_looks_for_what_has_not_started_finds_nothing(of_worker: ProgressFolder) -> None:
    assert of_worker.look("p") is None
    assert list(of_worker.running()) == []
    assert of_worker.contents() == {}


@pytest.mark.parametrize("size", [0, 10, 64, 117])
def test_who_looks_while_it_is_made_finds_nothing_and_raises_nothing(
    of_worker: ProgressFolder, size: int
) -> None:
    """The file is there before it has its size, and has that before it counts."""
    of_worker.create("p", START, 5).close()
    (path,) = Path(of_worker.folder).iterdir()
    path.unlink()
    path.write_bytes(bytes(size))
    assert of_worker.look("p") is None
    assert list(of_worker.running()) == []


def test_looks_while_it_is_written_agree_with_themselves(of_worker: ProgressFolder) -> None:
    """A thread handles inputs as fast as it can; each look finds a state that was once there."""
    n = 100_000
    file = of_worker.create("p", 0, n)
    half, looked = n // 2, threading.Event()

    def work() -> None:
        for offset in file.claims(lambda: None):
            file.states[offset] = PROCESSED
            if offset == half:  # so that one look at least is in the middle
                looked.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    looks = []
    while thread.is_alive():
        looks.append(of_worker.look("p"))
        if any(True for _ in of_worker.running()) and looks[-1] and looks[-1].current == half:
            looked.set()
    thread.join()
    file.close()

    assert looks
    for found in looks:
        assert found is not None
        assert 0 <= found.current < n
        assert set(found.states[: found.current]) <= {PROCESSED}
        assert 0 < found.since <= time.monotonic()
    reached = [found.reached for found in looks if found is not None]
    assert reached == sorted(reached)
    assert list(of_worker.running()) == []


def test_before_its_first_input_it_is_about_all(
    file: ProgressFile, of_worker: ProgressFolder
) -> None:
    """They are unpickled together."""
    found = read(of_worker)
    assert (found.state, found.running) == (OPEN, True)
    assert (found.position, found.since, found.usual) == (None, 1000.0, None)


def test_of_one_input_alone_it_is_clear_what_is_unpickled(of_worker: ProgressFolder) -> None:
    file = of_worker.create("p", 7, 1)
    assert read(of_worker).position == 7
    file.turn_to(7, SEND)
    assert read(of_worker).position == 7
    file.close()


@pytest.mark.parametrize("state", [STARTED, CHECK, PROCESS, COLLECT])
def test_what_runs_is_the_current_one(
    file: ProgressFile, of_worker: ProgressFolder, state: int
) -> None:
    file.begin(START)
    file.note(state)
    found = read(of_worker)
    assert (found.running, found.position, found.doing) == (True, 100, state)


def test_between_two_inputs_none_runs(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    handle(file, 100, PROCESSED, clock, 1.0)
    found = read(of_worker)
    assert (found.running, found.ended, found.position) == (False, False, None)


def test_what_is_usual_is_the_mean_of_what_was_not_skipped(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    handle(file, 100, PROCESSED, clock, 2.0)
    handle(file, 101, SKIPPED, clock, 0.0)
    handle(file, 102, FAILED, clock, 4.0)
    file.begin(103)
    clock.move(60)
    found = read(of_worker)
    assert (found.usual, found.since) == (3.0, 1006.0)


def test_where_all_was_skipped_nothing_is_usual(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    handle(file, 100, SKIPPED, clock, 2.0)
    file.begin(101)
    assert read(of_worker).usual is None


def test_one_that_was_taken_back_has_ended_where_it_stopped(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    assert file.begin(100)
    file.note(PROCESSED)
    file.limit = 101
    clock.move(1)
    assert not file.begin(101)
    found = read(of_worker)
    assert (found.stop, found.reached, found.ended) == (101, 101, True)
    assert (found.running, found.position) == (False, None)
    assert file.stop == 101
    assert list(file.marks(101)) == [1000.0, 1001.0]
    assert list(of_worker.running()) == []


def test_a_key_whose_parts_are_folded_takes_its_time_from_when_it_is_turned_to(
    file: ProgressFile, of_worker: ProgressFolder, clock: Clock
) -> None:
    clock.move(1)
    file.turn_to(102, REDUCE)
    clock.move(2)
    file.turn_to(102, REDUCE)
    found = read(of_worker)
    assert (found.current, found.state, found.since) == (102, REDUCE, 1001.0)


def test_of_what_ended_only_failures_are_kept_and_what_is_closing_goes_on(
    of_worker: ProgressFolder, clock: Clock
) -> None:
    file = of_worker.create("p", 0, 2)
    failure = Failure(0, "process", "exception", "ValueError", "no")
    file.keep_failure(failure, pickling.dumps(failure))
    handle(file, 0, FAILED, clock, 3.0)
    file.begin(1)
    file.note(SKIPPED)
    file.end(2)
    assert list(of_worker.running()) == []
    found = read(of_worker)
    assert (found.ended, found.position, found.failures) == (True, None, {0: failure})
    with file.closing():
        assert going_on(of_worker) == [("p", 2, 1003.0)]
        found = read(of_worker)
        assert (found.ended, found.running) == (False, True)
        assert (found.position, found.doing, found.since) == (None, COLLECT, 1003.0)
        assert (found.failures, found.usual) == ({0: failure}, 3.0)
    assert list(of_worker.running()) == []
    file.close()


def test_a_torn_record_is_not_there(of_worker: ProgressFolder) -> None:
    file = of_worker.create("p", 0, 1)
    file.keep_value(0, b"whole")
    file.keep_value(0, b"torn")
    file.close()
    content = of_worker.contents()["p"]
    for torn in range(1, 4 + 17 + 1):  # its data, and the 17 bytes before that
        whole = Progress.read(content[:-torn])
        assert whole is not None
        assert whole.values == {0: b"whole"}


def test_one_that_was_not_made_yet() -> None:
    for n in range(200):
        assert Progress.read(bytes(n)) is None


def test_the_same_partition_is_not_begun_twice(of_worker: ProgressFolder) -> None:
    """By a worker that came back at the same address, say."""
    of_worker.create("p", 0, 1).close()
    with pytest.raises(StartedBeforeError):
        of_worker.create("p", 0, 1)


def test_where_none_can_be_written_it_says_what_to_do(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    with pytest.raises(AtOnceError, match=r"a worker cannot note how far it is: .*see that there"):
        ProgressFolder(str(folder / "file"), "run", "w").create("p", 0, 1)


def test_workers_do_not_see_each_others_files(folder: Path) -> None:
    mine, other = (ProgressFolder(str(folder), "run", f"tcp://10.0.0.1:{port}") for port in (1, 11))
    mine.create("p", 0, 1).close()
    mine.open()
    mine.open_stack().close()
    assert (mine.is_open(), other.is_open()) == (True, False)
    assert list(mine.contents()) == ["p"]
    assert other.contents() == {}
    other.clear()
    assert list(mine.contents()) == ["p"]
    mine.clear()
    assert list(folder.glob("at_once_dask*")) == []


def test_what_was_delivered_is_forgotten(of_worker: ProgressFolder) -> None:
    for id in ("p", "q"):
        of_worker.create(id, 0, 1).close()
    of_worker.forget(("p", "never seen"))
    assert list(of_worker.contents()) == ["q"]


def test_the_last_stack_is_read_back(of_worker: ProgressFolder) -> None:
    assert of_worker.read_stack() == ""
    of_worker.open()
    with of_worker.open_stack() as file:
        file.write("Current thread")
    assert of_worker.read_stack() == "Current thread"


def test_in_memory_there_is_nothing_to_keep() -> None:
    file = ProgressFile(0, 3)
    file.keep_value(0, b"value")
    file.close()
    assert list(file.states) == [OPEN, LEFT, LEFT]


def test_a_nanny_that_looks_early_sees_a_time(of_worker: ProgressFolder) -> None:
    file = of_worker.create("p", START, 5)
    assert read(of_worker).since > 0
    file.close()


def test_one_that_is_closed_before_it_began_counts_as_ended(
    file: ProgressFile, of_worker: ProgressFolder
) -> None:
    """What was raised while the inputs were unpickled: nothing runs any more."""
    file.close()
    found = read(of_worker)
    assert (found.stop, found.ended, found.running) == (100, True, False)


def test_an_input_that_takes_long_enough_to_start_a_process_is_looked_after(clock: Clock) -> None:
    file, ended = ProgressFile(0, 3), []
    for offset in file.claims(lambda: ended.append(file.current)):
        clock.move(0.0001 if offset == 0 else 0.01)
    assert ended == [1]  # when the third is claimed; behind the last its partition looks itself
