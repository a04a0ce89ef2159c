"""The inputs in the order of use, and which of them wait for a further attempt."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import replace

import pytest

from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.driver.inputs import (
    BACKOFF_LIMIT,
    BACKOFF_SECONDS,
    Chunk,
    Inputs,
    Retries,
    inputs_of,
)
from at_once_dask.protocol.failure import Failure


def failure(position: int = 7, final: bool = False) -> Failure:
    return Failure(position, "process", "exception", "ValueError", "no", final=final)


# ----- chunks


def test_parts_of_a_chunk_keep_their_positions_and_what_is_known_of_them() -> None:
    chunk = Chunk(10, list("abcde"), singly=True, again=True)
    part = chunk.part(11, 13)
    assert part == Chunk(11, ["b", "c"], singly=True, again=True)
    assert [(one.start, one.stop) for one in chunk.split(2)] == [(10, 12), (12, 14), (14, 15)]


# ----- what is drawn


def test_inputs_are_drawn_as_they_are_taken() -> None:
    drawn = []

    def letters() -> Iterator[str]:
        for letter in "abcde":
            drawn.append(letter)
            yield letter

    inputs = Inputs(letters(), 5)
    assert inputs.left == 5
    assert inputs.take(2) == Chunk(0, ["a", "b"])
    assert (drawn, inputs.left, inputs.drawn) == (["a", "b"], 3, 2)
    assert inputs.take(10) == Chunk(2, ["c", "d", "e"])
    assert inputs.at_end
    assert inputs.take(1) is None
    assert inputs.is_empty()


def test_what_comes_back_is_given_out_before_anything_new() -> None:
    inputs = Inputs("abcdef", 6)
    first = inputs.take(3)
    assert first is not None
    inputs.give_back(first.part(1, 3))
    assert inputs.left == 5
    assert inputs.take(1) == Chunk(1, ["b"])
    assert inputs.take(1) == Chunk(2, ["c"])
    assert inputs.take(1) == Chunk(3, ["d"])


def test_what_comes_back_is_filled_up_where_what_follows_is_there() -> None:
    """Of a list whose length is known nothing waits to be made."""
    inputs = Inputs("abcdef", 6)
    chunk = inputs.take(3)
    assert chunk is not None
    inputs.give_back(chunk.part(2, 3))
    assert inputs.take(3) == Chunk(2, ["c", "d", "e"])
    inputs = Inputs(iter("abcdef"))
    chunk = inputs.take(3)
    assert chunk is not None
    inputs.give_back(chunk.part(2, 3))
    assert inputs.take(3) == Chunk(2, ["c"])


def test_what_runs_again_is_kept_apart() -> None:
    inputs = Inputs("ab", 2)
    assert inputs.take(2) == Chunk(0, ["a", "b"])
    inputs.give_back(Chunk(0, ["a", "b"], again=True))
    assert (inputs.has_again(), inputs.is_empty(), inputs.left) == (True, False, 2)
    assert inputs.take(1) is None
    assert inputs.take_again(1) == Chunk(0, ["a"], again=True)
    assert inputs.take_again(5) == Chunk(1, ["b"], again=True)
    assert not inputs.has_again()
    assert inputs.is_empty()


def test_an_empty_chunk_is_nothing_that_comes_back() -> None:
    inputs = Inputs((), 0)
    inputs.give_back(Chunk(0, []))
    inputs.give_back(Chunk(0, [], again=True))
    assert inputs.is_empty()


def test_what_the_list_raises_counts_as_its_end() -> None:
    error = OSError("the disk is gone")

    def raises() -> Iterator[str]:
        yield "a"
        raise error

    inputs = Inputs(raises(), 3)
    assert inputs.take(3) == Chunk(0, ["a"])
    assert (inputs.error, inputs.at_end, inputs.drawn) == (error, True, 1)
    assert inputs.take(1) is None


def test_a_list_that_is_longer_than_it_says_is_drawn_whole() -> None:
    inputs = Inputs("abc", 1)
    assert inputs.take(5) == Chunk(0, ["a", "b", "c"])
    assert inputs.left == 0


def test_indices_are_needed_only_where_the_order_is_another() -> None:
    chunk = Chunk(1, ["x", "y"])
    assert Inputs("abc", 3).indices(chunk) is None
    assert Inputs("abc", 3, array("i", [2, 0, 1])).indices(chunk) == array("i", [0, 1])


def test_a_shuffled_list_is_drawn_whole_and_knows_where_each_input_was() -> None:
    given = [letter * 2 for letter in "abcdefgh"]
    inputs = inputs_of(iter(given), None, True, 1, Interrupts())
    assert inputs.total == 8
    chunk = inputs.take(8)
    assert chunk is not None
    assert sorted(chunk.inputs) == given != chunk.inputs
    order = inputs.indices(chunk)
    assert order is not None
    assert [given[index] for index in order] == chunk.inputs


# ----- further attempts


@pytest.mark.parametrize("most", [0, 1, 3])
def test_an_input_has_failed_for_good_with_its_last_attempt(most: int) -> None:
    retries = Retries(most)
    assert retries.attempts == 1 + most
    for attempt in range(1, most + 1):
        assert retries.attempt(7) == attempt
        one = failure()
        assert not retries.count(one)
        assert one.attempts == attempt
    last = failure()
    assert retries.count(last)
    assert last.attempts == 1 + most
    assert retries.attempt(8) == 1  # others have all of theirs


def test_a_failure_that_no_attempt_would_change_is_final_at_once() -> None:
    assert Retries(5).count(failure(final=True))


@pytest.mark.parametrize(
    ("attempt", "backoff"), [(1, 0.5), (2, 1.0), (3, 2.0), (8, 60.0), (20, 60.0)]
)
def test_each_attempt_waits_twice_as_long_give_or_take_half(attempt: int, backoff: float) -> None:
    """A minute at most: 0.5 s times 2 to the power of 7 would be 64 s."""
    assert (BACKOFF_SECONDS, BACKOFF_LIMIT) == (0.5, 60.0)
    retries = Retries(30)
    for _ in range(attempt):
        retries.count(failure())
    waits = []
    for _ in range(200):
        retries.wait({7: "input"}, 1_000.0)
        waits.append(retries.seconds(1_000.0))
        (chunk,) = retries.due(1_000.0 + 1.5 * backoff)
        assert chunk == Chunk(7, ["input"], singly=True)
    assert 0.5 * backoff <= min(waits) < 0.7 * backoff
    assert 1.3 * backoff < max(waits) <= 1.5 * backoff


def test_neighbours_that_failed_equally_often_stay_together() -> None:
    retries = Retries(3)
    for position in (3, 4, 5, 7, 8, 8):  # the third attempt of 8 is another one than the second
        retries.count(failure(position))
    retries.wait({8: "8", 4: "4", 3: "3", 7: "7", 5: "5"}, 0.0)
    chunks = sorted(retries.due(10.0), key=lambda chunk: chunk.start)
    assert [(chunk.start, chunk.inputs) for chunk in chunks] == [
        (3, ["3", "4", "5"]),
        (7, ["7"]),
        (8, ["8"]),
    ]
    assert all(chunk.singly for chunk in chunks)
    assert not retries


def test_how_many_are_left_is_known_however_many_chunks_came_back() -> None:
    inputs = Inputs(range(10), 10)
    seen = [inputs.left]
    chunk = inputs.take(6)
    assert chunk is not None
    inputs.give_back(chunk.part(0, 2))
    inputs.give_back(replace(chunk.part(2, 5), again=True))
    seen.append(inputs.left)  # 0, 1, 2, 3, 4 came back, and 6, 7, 8, 9 were never drawn
    inputs.take(1)
    inputs.take_again(2)
    seen.append(inputs.left)
    inputs.give_back(chunk.part(0, 0))
    seen.append(inputs.left)
    assert seen == [10, 9, 6, 6]


def test_what_waits_comes_in_the_order_in_which_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    retries = Retries(2)
    assert (bool(retries), retries.seconds(0.0)) == (False, math.inf)
    for position in (7, 8, 8):  # the third is the second failure of 8: it waits 1 s
        retries.count(failure(position))
    retries.wait({8: "eight"}, 100.0)
    retries.wait({7: "seven"}, 100.2)
    assert bool(retries)
    assert retries.seconds(100.2) == pytest.approx(0.5)
    assert list(retries.due(100.69)) == []
    assert [chunk.start for chunk in retries.due(100.71)] == [7]
    assert [chunk.start for chunk in retries.due(101.0)] == [8]
    assert not retries


def test_losses_in_a_row_are_counted_for_each_input() -> None:
    retries = Retries(0)
    assert [retries.lost(7) for _ in range(3)] == [1, 2, 3]
    assert retries.lost(8) == 1
    retries.handled(0, 8)
    assert [retries.lost(7), retries.lost(8)] == [1, 2]
