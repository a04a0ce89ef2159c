"""Taking back what has not begun, while it is beginning: nothing twice, nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile

import pytest

from at_once_dask.protocol import lease
from at_once_dask.protocol.progress_file import _CURRENT, _LIMIT, ProgressFile
from at_once_dask.protocol.status import LEFT, REDUCE, STARTED

N = 300


class Entered:
    """A partition of `N` inputs that a thread has taken up: its lease, and its progress file."""

    def __init__(self, id: str, start: int) -> None:
        self.start = start
        self.progress = ProgressFile(start, N)
        self.lease = lease.take(id, start, self.progress)

    def begin(self, position: int) -> bool:
        return self.progress.begin(position)

    def states(self, n: int) -> list[int]:
        """Of the first `n` inputs."""
        return list(self.progress.states[:n])


def entered(id: str, start: int) -> Entered:
    return Entered(id, start)


def test_a_partition_that_waits_comes_back_whole() -> None:
    entered("run-0", 0)
    assert lease.take_back([("run-1", 7)]) == {"run-1": 7}
    assert not entered("run-1", 7).begin(7)
    lease.end("run-1")
    lease.forget("run")
    assert lease.LEASES == {}


def test_a_partition_on_its_way_to_an_idle_worker_is_let_come() -> None:
    """Taken back, it would go to another idle worker and be asked back there, for ever."""
    assert lease.take_back([("run-1", 7)]) == {}
    assert lease.take_back([("run-1", 7)], stopping=True) == {"run-1": 7}
    lease.forget("run")


def test_the_first_input_counts_as_begun_while_it_is_unpickled() -> None:
    mine = entered("run-1", 7)
    assert lease.take_back([("run-1", 7)]) == {"run-1": 8}
    assert mine.begin(7)
    assert not mine.begin(8)
    lease.forget("run")


def test_a_running_partition_keeps_what_it_has_begun() -> None:
    mine = entered("run-1", 7)
    assert mine.begin(7)
    assert mine.begin(8)
    assert lease.take_back([("run-1", 7)]) == {"run-1": 9}
    assert not mine.begin(9)
    lease.end("run-1")
    lease.forget("run")


def test_a_partition_that_has_ended_gives_nothing_back() -> None:
    """Its outcome is on its way: what it has done must not be done again."""
    assert entered("run-1", 0).begin(0)
    lease.end("run-1")
    assert lease.take_back([("run-1", 0)]) == {}
    lease.forget("run")


def test_time_is_up_only_behind_the_first_input() -> None:
    mine = entered("run-1", 0)
    mine.progress.deadline = 0.0
    assert mine.begin(0)
    assert not mine.begin(1)
    lease.forget("run")


def nothing() -> None:
    """Called when an input has ended that took long."""


def one_by_one(mine: Entered) -> Iterator[int]:
    """The inputs that begin, asked for one by one."""
    return takewhile(mine.begin, range(mine.start, mine.start + N))


def in_a_row(mine: Entered) -> Iterator[int]:
    return (mine.start + offset for offset in mine.progress.claims(nothing))


@pytest.mark.parametrize("begun", [one_by_one, in_a_row])
def test_both_ways_to_begin_say_the_same(begun: Callable[[Entered], Iterator[int]]) -> None:
    mine = entered("run-1", 7)
    claimed = begun(mine)
    assert next(claimed) == 7
    assert lease.take_back([("run-1", 7)]) == {"run-1": 8}
    assert list(claimed) == []
    assert (mine.progress.current, mine.progress.stop) == (8, 8)
    assert mine.states(2) == [STARTED, LEFT]
    first, second = mine.progress.marks(8)
    assert 0 < first <= second

    mine = entered("run-2", 7)
    mine.progress.deadline = 0.0
    assert list(begun(mine)) == [7]
    assert mine.progress.stop == 8
    lease.forget("run")


def test_behind_the_last_of_a_row_it_ends() -> None:
    mine = entered("run-1", 7)
    assert list(mine.progress.claims(nothing)) == list(range(N))
    assert mine.progress.stop == 7 + N
    assert mine.states(N) == [STARTED] * N
    *_, last, end = mine.progress.marks(7 + N)
    assert end >= last > 0
    lease.forget("run")


class Asked:
    """A head of which all is taken back just when its thread looks at the limit, at `at`."""

    def __init__(self, progress: ProgressFile, at: int) -> None:
        self.progress, self.at, self.answer = progress, at, -1
        self._head = progress._head
        progress._head = self  # type: ignore[assignment]

    def __getitem__(self, place: int) -> int:
        before = self._head[place]
        if place == _LIMIT and self._head[_CURRENT] == self.at and self.answer < 0:
            self.answer = 0  # what is read to take back is no question
            self.answer = self.progress.take_back()
        return before

    def __setitem__(self, place: int, number: int) -> None:
        self._head[place] = number


@pytest.mark.parametrize("at", range(7, 17))
@pytest.mark.parametrize("begun", [one_by_one, in_a_row])
def test_begun_or_taken_back_but_never_both(
    begun: Callable[[Entered], Iterator[int]], at: int
) -> None:
    """The question comes between the claim and the look at the limit, which is too old then."""
    mine = entered("run-1", 7)
    asked = Asked(mine.progress, at)
    handled = list(begun(mine))
    assert asked.answer == at + 1
    assert handled == list(range(7, at + 1))
    assert mine.progress.stop == at + 1
    lease.forget("run")


def test_what_was_given_back_once_is_never_asked_for_again() -> None:
    """Keys are folded before they are begun: the current one may be far behind the limit."""
    mine = entered("p", 0)
    mine.progress.turn_to(3, REDUCE)
    assert mine.lease.take_back() == 4
    mine.progress.turn_to(7, REDUCE)
    assert mine.lease.take_back() == 4
    assert [mine.begin(position) for position in (2, 3, 4, 5)] == [True, True, False, False]
    lease.forget("p")
