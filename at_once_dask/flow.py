"""One partition on a worker: partition -> bag -> outcome. Knows no cluster.

::

    Partition ──> Bag.map(check) ──> .filter(matters) ──> .map(process) ──> collect ──> Outcome
    (opaque)      └───────────── lazy, one input at a time ───────────────┘             (opaque)

The bag is built and optimised once a run and process. It becomes one linear, lazy chain, in which
each input passes all steps before the next one is drawn; so check comes right before process, and
stopping to draw stops everything behind. Partition and Outcome are opaque to Dask on purpose: it
would walk lists and dicts element by element.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dask.bag import Bag
from dask.local import get_sync

from at_once_dask import journal, lease, pickles
from at_once_dask.failure import Failure, from_exception
from at_once_dask.gather import Folds, Lists, Piece
from at_once_dask.item import FAILED, PROCESSED, Item, Steps
from at_once_dask.reduction import Fold, Group, Part

SLICE_SECONDS = 0.5  # a partition returns what it has past this, so that none holds others back

Chain = Callable[[Iterable[Any]], Iterator[Any]]

_SOURCE = ("partition", 0)


@dataclass(frozen=True)
class Job:
    """The functions of a run; crosses to each worker once a run, pickled whole.

    Attributes
    ----------
    check_inp, process_inp, reduce_fn, combine_fn
        As given to ``run``; no `process_inp`: only check.
    """

    check_inp: Callable[[Any], Any] | None
    process_inp: Callable[[Any], Any] | None
    reduce_fn: Callable[[list[Any]], Any] | None
    combine_fn: Callable[[Any, Any], Any] | None

    @property
    def reducing(self) -> bool:
        return self.reduce_fn is not None or self.combine_fn is not None

    @cached_property
    def mapping(self) -> Chain:
        """Inputs, as Items, to the Items that passed the filter."""
        steps = Steps(self.check_inp, self.process_inp, self.reducing)
        return compiled(_PARTITION.map(steps.check).filter(steps.matters).map(steps.process))

    @cached_property
    def folding(self) -> Chain:
        """Pieces of keys, as Parts, to Reduced keys."""
        return compiled(Fold(self.reduce_fn, self.combine_fn).bag(_PARTITION))


@dataclass(frozen=True, slots=True)
class Partition:
    """A stretch of the list on its way to a worker; opaque.

    Attributes
    ----------
    id : str
        Unique; begins with that of its `run`.
    run : str
        The run's id.
    start : int
        Position of the first input, in the order of use.
    packs : tuple of bytes
        One pickled list of all inputs; or, `singly`, each input pickled alone.
    indices : array of int or None
        Positions in the list as given, when that is not the order of use.
    reducing : bool
        Whether the inputs are Groups of the reduction.
    """

    id: str
    run: str
    start: int
    packs: tuple[bytes, ...]
    indices: array[int] | None = None
    singly: bool = False
    reducing: bool = False


@dataclass(slots=True)
class Outcome:
    """What came of a partition; crosses to the driver as soon as it is there.

    Attributes
    ----------
    stop : int
        Position behind the last input that was handled; the rest is for others to do.
    worker : str
        The worker's address.
    states : bytearray
        For each handled input SKIPPED, PROCESSED, FAILED or PENDING (see ``item``).
    marks : array of float
        When each of them began and the last one ended, in seconds since `epoch`.
    epoch : float
        The zero of `marks`, in seconds since 1970-01-01 UTC.
    failures : list of Failure
    made : Piece or bytes or None
        Map-reduce: the Piece. Reduction: the pickled list of (position, value).
    unreadable : bool
        The pack could not be unpickled and nothing was done.
    """

    stop: int
    worker: str = ""
    states: bytearray = field(default_factory=bytearray)
    marks: array[float] = field(default_factory=lambda: array("d"))
    epoch: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    made: Piece | bytes | None = None
    unreadable: bool = False


def work(job: Job, book: journal.Book, partition: Partition, worker: str) -> Outcome:
    """Handle the inputs of `partition` until they end, are taken back, or time is up."""
    mine = lease.take(partition.id, partition.start)
    mine.enter()
    mine.deadline = time.monotonic() + SLICE_SECONDS
    mine.book, mine.worker = book, worker
    lease.enter(mine)
    try:
        if partition.reducing:
            return _reduce_partition(job, partition, mine)
        return _map_partition(job, partition, mine)
    except UnreadableError:
        return Outcome(partition.start, worker, unreadable=True)
    finally:
        lease.enter(None)
        lease.end(partition.id)


def compiled(bag: Bag) -> Chain:
    """The bag as a function of its one partition: graph and optimisation are done once.

    The result is a lazy iterator: nothing runs before it is drawn from.
    """
    lazy = bag.map_partitions(_Stream)
    keys = lazy.__dask_keys__()
    # The partition stays a key of its own, or it would be fused into the chain for good.
    graph = Bag.__dask_optimize__(lazy.dask, keys, fuse_keys=[_SOURCE])

    def chain(partition: Iterable[Any]) -> Iterator[Any]:
        (stream,) = get_sync({**graph, _SOURCE: partition}, keys)
        return iter(stream.items)

    return chain


class UnreadableError(Exception):
    """The inputs of a partition could not be unpickled together."""


class _Stream:
    """Wraps an iterator, so that Dask neither walks nor lists it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


_PARTITION = Bag({_SOURCE: _Stream(())}, _SOURCE[0], 1)  # the place of the partition in a chain


def _map_partition(job: Job, partition: Partition, mine: lease.Lease) -> Outcome:
    inputs = _inputs(partition)
    states = bytearray(len(inputs))
    failures: list[Failure] = []
    gathered = Folds(job.combine_fn) if job.combine_fn else Lists() if job.reduce_fn else None

    def fail(failure: Failure) -> None:
        offset = failure.position - partition.start
        states[offset] = FAILED
        index = failure.position if partition.indices is None else partition.indices[offset]
        failures.append(_noted(failure, mine, inputs[offset], index))

    for item in job.mapping(_Stream(_claimed(inputs, partition, mine))):
        if gathered is not None and item.state != FAILED:
            try:
                gathered.add(item.position, item.value)
            except BaseException as error:
                item.fail(from_exception(item.position, "collect", error))
        if item.state == FAILED:
            fail(item.value)
        else:
            states[item.position - partition.start] = item.state
    made = None
    if gathered is not None:
        made, unpicklable = gathered.close()
        for failure in unpicklable:
            fail(failure)
    return _outcome(partition, mine, states, failures, made)


def _reduce_partition(job: Job, partition: Partition, mine: lease.Lease) -> Outcome:
    groups: list[Group] = _inputs(partition)
    states = bytearray(len(groups))
    failures: list[Failure] = []
    made: list[tuple[int, bytes]] = []
    parts = [
        Part(position, group.key, blob, mine)
        for position, group in enumerate(groups, partition.start)
        for blob in group.blobs
    ]
    for reduced in job.folding(_Stream(parts)):
        if not reduced.begun:
            break
        offset = reduced.position - partition.start
        pickled = reduced.pickled()
        if isinstance(pickled, Failure):
            states[offset] = FAILED
            failures.append(_noted(pickled, mine, groups[offset].key, None))
        else:
            states[offset] = PROCESSED
            made.append((reduced.position, pickled))
    else:
        mine.end()
    return _outcome(partition, mine, states, failures, pickles.dumps(made))


def _inputs(partition: Partition) -> list[Any]:
    if partition.singly:
        return [_read_alone(pack) for pack in partition.packs]
    try:
        inputs: list[Any] = pickles.loads(partition.packs[0])
    except Exception as error:
        raise UnreadableError from error
    return inputs


class _Unread:
    """Stands for an input that could not be unpickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        return "<an input that could not be unpickled>"


def _read_alone(pack: bytes) -> Any:
    try:
        return pickles.loads(pack)
    except BaseException as error:
        return _Unread(error)


def _claimed(inputs: list[Any], partition: Partition, mine: lease.Lease) -> Iterator[Item]:
    """The inputs as Items, each claimed before it is given out."""
    indices = partition.indices
    for position, inp in enumerate(inputs, partition.start):
        mine.inp = inp
        mine.index = position if indices is None else indices[position - partition.start]
        if not mine.begin(position):
            return
        item = Item(position, inp, mine)
        if isinstance(inp, _Unread):
            item.fail(from_exception(position, "send", inp.error))
        yield item
    mine.end()


def _noted(failure: Failure, mine: lease.Lease, inp: object, index: int | None) -> Failure:
    """Complete a failure and log it at once, however long its partition still goes on."""
    failure.worker = mine.worker
    begun, ended = failure.position - mine.start, failure.position - mine.start + 1
    end = mine.marks[ended] if ended < len(mine.marks) else time.monotonic()
    failure.seconds = end - mine.marks[begun]
    assert mine.book is not None
    journal.note_failure(failure, mine.book, inp, index)
    return failure


def _outcome(
    partition: Partition,
    mine: lease.Lease,
    states: bytearray,
    failures: list[Failure],
    made: Piece | bytes | None,
) -> Outcome:
    handled = len(mine.marks) - 1
    del states[handled:]
    return Outcome(
        stop=partition.start + handled,
        worker=mine.worker,
        states=states,
        marks=mine.marks,
        epoch=time.time() - time.monotonic(),
        failures=failures,
        made=made,
    )
