"""How many inputs the next partition gets; half a second of work is wanted."""

from __future__ import annotations

import pytest

from at_once_dask.driver.partition_size import (
    CAUTIOUS,
    FIRST,
    FIRST_CAUTIOUS,
    FIRST_SECONDS,
    GROWTH,
    MOST,
    PAYLOAD_BYTES,
    VALUE_BYTES,
    PartitionSizer,
)
from at_once_dask.protocol.task import SLICE_SECONDS


def learned(*partitions: tuple[int, float], cautious: bool = False) -> PartitionSizer:
    """From partitions of so many inputs, which took so many seconds."""
    sizer = PartitionSizer(cautious)
    for n, seconds in partitions:
        sizer.learn(n, seconds)
    return sizer


@pytest.mark.parametrize(
    ("left", "slots", "size"), [(100, 4, 25), (101, 4, 26), (3, 4, 1), (10**6, 4, FIRST), (0, 4, 1)]
)
def test_at_first_a_short_list_is_handed_out_whole(left: int, slots: int, size: int) -> None:
    assert PartitionSizer().size(left, slots) == size


def test_the_first_ones_are_equal_however_much_is_left_by_then() -> None:
    sizer = PartitionSizer()
    assert [sizer.size(left, 4) for left in (100, 75, 50, 25)] == [25] * 4


def test_of_a_list_of_unknown_length_as_many_as_a_first_one_may_have() -> None:
    assert PartitionSizer().size(None, 4) == FIRST
    assert PartitionSizer(cautious=True).size(None, 4) == FIRST_CAUTIOUS


def test_the_first_ones_come_back_soon() -> None:
    sizer = PartitionSizer()
    assert sizer.size(None, 4) == FIRST
    assert sizer.seconds(4) == FIRST_SECONDS == 0.05
    sizer.learn(10, 1.0)
    assert sizer.seconds(4) == SLICE_SECONDS == 0.5


def test_those_of_a_short_list_take_their_time() -> None:
    """All of it is handed out: what would be learnt from them is needed for nothing."""
    sizer = PartitionSizer()
    assert sizer.size(100, 4) == 25
    assert sizer.seconds(4) == SLICE_SECONDS


def test_a_slice_grows_with_the_workers() -> None:
    """So that the driver has the same number of partitions a second, however many workers."""
    sizer = learned((10, 0.1))
    assert [sizer.seconds(2 * workers) for workers in (2, 16, 64, 128)] == [
        0.5,
        0.512,
        2.048,
        4.096,
    ]
    assert sizer.size(None, 128) == 204


def test_then_it_follows_the_measured_speed() -> None:
    """10 ms each: 50 in half a second."""
    assert learned((10, 0.1)).size(None, 4) == 50


def test_a_new_speed_counts_for_half() -> None:
    """10 ms, and then 30: as if it were 20."""
    assert learned((10, 0.1), (10, 0.3)).size(None, 4) == 25


def test_it_grows_no_faster_than_this() -> None:
    """One input a millisecond would be 500; the largest so far had one."""
    assert learned((1, 0.001)).size(None, 4) == GROWTH == 64


def test_towards_the_end_partitions_get_smaller() -> None:
    """10 ms each; 0.05 s of work is the least that is sent."""
    sizer = learned((10, 0.1))
    assert sizer.size(1_000, 4) == 50
    assert sizer.size(100, 4) == 25
    assert sizer.size(12, 4) == 5


@pytest.mark.parametrize(
    ("left", "n_idle", "size"), [(1_000, 0, 50), (40, 0, 40), (40, 1, 40), (40, 3, 14), (2, 3, 1)]
)
def test_where_all_can_be_taken_back_only_those_share_who_have_nothing(
    left: int, n_idle: int, size: int
) -> None:
    assert learned((10, 0.1)).size(left, 4, n_idle) == size


def test_slow_inputs_go_one_by_one() -> None:
    assert learned((1, 60.0)).size(1_000, 4) == 1


def test_instant_inputs_do_not_go_without_end() -> None:
    sizer = learned((10_000, 0.0))
    assert sizer.size(None, 4) == MOST
    assert learned((10_000, 0.0), cautious=True).size(None, 4) == CAUTIOUS


def test_a_partition_of_nothing_says_nothing() -> None:
    sizer = learned((0, 0.5))
    assert sizer.seconds(4) == FIRST_SECONDS


def test_what_inputs_weigh_bounds_the_partition() -> None:
    sizer = PartitionSizer()
    sizer.weigh(2**20)
    assert sizer.fits == PAYLOAD_BYTES // 2**20 == 8
    assert sizer.size(1_000, 4) == 8
    sizer.packed(8, 2**20)  # together they were an eighth of that
    assert sizer.fits == 64
    sizer.packed(1, 2**30)  # one that is large makes the others no larger
    assert sizer.fits == 64


def test_one_that_is_larger_than_a_partition_may_be_goes_alone() -> None:
    sizer = PartitionSizer()
    sizer.weigh(2**30)
    assert sizer.fits == 1


def test_what_inputs_give_bounds_the_partition() -> None:
    """A tenth of a millisecond each, and a MiB: half of that is believed after one partition."""
    sizer = PartitionSizer()
    sizer.learn(1_000, 0.1, n_bytes=1_000 * 2**20)
    assert sizer.size(None, 4) == VALUE_BYTES // 2**19 == 128
