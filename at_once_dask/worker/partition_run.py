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

import os
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import accumulate, takewhile
from typing import Any

from dask.bag import Bag
from dask.local import get_sync

from at_once_dask.logs import log_file, streams
from at_once_dask.protocol import lease
from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.progress_file import CLOSING, FAILURE, STOP, VALUE, Crumb, Trail
from at_once_dask.protocol.return_values import Pairs
from at_once_dask.protocol.status import COLLECT, FAILED, PENDING, PROCESSED, SEND
from at_once_dask.reduction.map_side import Folds, Lists, Piece, alone
from at_once_dask.reduction.reduce_side import Fold, Group, Part, Reduced
from at_once_dask.user_code import pickling
from at_once_dask.worker.steps import Item, Steps

SLICE_SECONDS = 0.5  # a partition returns what it has past this, so that none holds others back

COLLECT_HINT = "return data that can be pickled: text, numbers, arrays, frames, not what is open"
FOLD_BYTES = 8 * 2**20  # of values are unpickled together, unless one key alone has more
FOLD_SECONDS = 0.02  # keys folded together take no longer than this, or fewer are the next time

Chain = Callable[[Iterable[Any]], Iterator[Any]]

_SOURCE = ("partition", 0)


@dataclass(frozen=True)
class Job:
    """The functions of a run; crosses to each worker once a run, pickled whole.

    Attributes
    ----------
    check_inp, process_inp, reduce_fn, combine_fn
        As given to ``run``; no `process_inp`: only check.
    verify : bool
        Whether `check_inp` must say done after `process_inp`.
    """

    check_inp: Callable[[Any], Any] | None
    process_inp: Callable[[Any], Any] | None
    reduce_fn: Callable[[list[Any]], Any] | None
    combine_fn: Callable[[Any, Any], Any] | None
    verify: bool = False

    @property
    def functions(self) -> tuple[Any, ...]:
        """All that it has, in the order of its fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def reducing(self) -> bool:
        return self.reduce_fn is not None or self.combine_fn is not None

    @property
    def steps(self) -> Steps:
        """The functions of the map pass, guarded."""
        return Steps(self.check_inp, self.process_inp, self.reducing, self.verify)

    @cached_property
    def mapping(self) -> Chain:
        """Inputs, as Items, to the Items that passed the filter."""
        steps, bag = self.steps, _PARTITION
        if self.check_inp is not None:  # else nothing is done yet, and all of it matters
            bag = bag.map(steps.check).filter(steps.matters)
        return compiled(bag.map(steps.process))

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
    n : int
        How many inputs.
    packs : tuple of bytes
        One pickled list of all inputs; or, `singly`, each input pickled alone.
    indices : array of int or None
        Positions in the list as given, when that is not the order of use.
    singly : bool
    reducing : bool
        Whether the inputs are Groups of the reduction.
    careful : bool
        What an input gives is put where a death cannot take it, before the next one begins.
    attempt, attempts : int
        The how-manieth this is for each input, and how many it gets.
    allowed : int or None
        It ends when so many inputs have failed for good: the run may have to stop for that.
    seconds : float
        No further input is begun when it has run so long; the rest goes back.
    delivered : tuple of str
        Partitions of this worker that have reached the driver: their crumbs may go.
    compare : bool
        Of the first input that can be, what `check_inp` says after it is compared with what
        `process_inp` gave.
    """

    id: str
    run: str
    start: int
    n: int
    packs: tuple[bytes, ...]
    indices: array[int] | None = None
    singly: bool = False
    reducing: bool = False
    careful: bool = False
    attempt: int = 1
    attempts: int = 1
    allowed: int | None = None
    seconds: float = SLICE_SECONDS
    delivered: tuple[str, ...] = ()
    compare: bool = False

    @property
    def final(self) -> bool:
        """Whether an input that fails has failed for good."""
        return self.attempt >= self.attempts


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
    apart : list of (int, bytes)
        What is not in `made`. Map-reduce: position and pickled Piece of one input. Reduction:
        position and pickled value.
    unreadable : bool
        The pack could not be unpickled and nothing was done.
    compared : bool
        Whether it was possible to compare.
    difference : Failure or None
        What came of it: the input's value is among the others all the same.
    returned : (int, str) or None
        Map-only: position and repr of the first value that was returned, and dropped.
    note : str or None
        What somebody should know.
    """

    stop: int
    worker: str = ""
    states: bytearray = field(default_factory=bytearray)
    marks: array[float] = field(default_factory=lambda: array("d"))
    epoch: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    made: Piece | bytes | None = None
    apart: list[tuple[int, bytes]] = field(default_factory=list)
    unreadable: bool = False
    compared: bool = False
    difference: Failure | None = None
    returned: tuple[int, str] | None = None
    note: str | None = None

    @property
    def n_bytes(self) -> int:
        """Of the values that the inputs gave, where that counts."""
        return self.made.n_bytes if isinstance(self.made, Piece) else 0


def work(
    job: Callable[[], Job],
    book: log_file.Book,
    partition: Partition,
    worker: str,
    trail: Trail | None = None,
    shelves: str | None = None,
) -> Outcome:
    """Handle the inputs of `partition` until they end, are taken back, or time is up.

    Parameters
    ----------
    job : callable
        Gives the Job; what that ends is not blamed on any input.
    book, partition, worker
    trail : Trail or None
        Where the crumb is left; None where nobody would look for it.
    shelves : str or None
        A folder for values that are too many bytes to cross, where all workers see it.
    """
    functions = job()
    _ = functions.folding if partition.reducing else functions.mapping  # no input's time
    if trail is None:
        crumb = Crumb(partition.start, partition.n)
    else:
        crumb = trail.create(partition.id, partition.start, partition.n)
        trail.forget(partition.delivered)
    mine = lease.take(partition.id, partition.start)
    mine.enter(crumb)
    mine.deadline = time.monotonic() + partition.seconds
    mine.book, mine.worker = book, worker
    lease.enter(mine)
    shelf = None if shelves is None else os.path.join(shelves, partition.id)
    slice = _Slice(functions, partition, mine, crumb, shelf)
    try:
        return slice.reduce() if partition.reducing else slice.map()
    except UnreadableError:
        return Outcome(partition.start, worker, unreadable=True)
    finally:
        crumb.head[STOP] = max(crumb.head[STOP], partition.start)
        mine.subject = None
        streams.settle(mine)
        lease.enter(None)
        lease.end(partition.id)
        crumb.close()


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


class _Slice:
    """The work on one partition, and what came of it so far."""

    def __init__(
        self,
        job: Job,
        partition: Partition,
        mine: lease.Lease,
        crumb: Crumb,
        shelf: str | None = None,
    ) -> None:
        self.job = job
        self.shelf = shelf
        self.partition = partition
        self.mine = mine
        self.crumb = crumb
        self.inputs: list[Any] = []
        self.failures: list[Failure] = []
        self.apart: list[tuple[int, bytes]] = []
        self.item: Item | None = None  # of the map pass, while and when it is drawn from

    def map(self) -> Outcome:
        job, partition, states = self.job, self.partition, self.crumb.states
        reducing = job.reducing  # to look it up for each input would be felt
        gathered = None
        if reducing and not partition.careful:
            gathered = Folds(job.combine_fn) if job.combine_fn else Lists()
        for item in job.mapping(_Stream(self._claimed())):
            if streams.is_child():
                _end_child(item.value if item.state == FAILED else None)
            if reducing and item.state != FAILED:
                self._collect(item, gathered)
            if item.state == FAILED:
                self._fail(item.value, item.inp)
                # What is tried again has its own place in a map-reduce.
                final = partition.final or item.value.final
                if self._is_enough() if final else reducing:
                    self.mine.end(item.position + 1)
                    break
            else:
                states[item.offset] = item.state
        streams.catch_up(self.mine.book)
        self.mine.subject = None
        made = None
        if gathered is not None:
            self.crumb.head[CLOSING] = 1
            made = self._close(gathered)
            self.crumb.head[CLOSING] = 0
        return self._outcome(made)

    def reduce(self) -> Outcome:
        partition, mine = self.partition, self.mine
        groups = [_group(read, n) for n, read in enumerate(self._drawn(), partition.start)]
        made: list[tuple[int, bytes]] = []
        for reduced in self._folded(groups):
            if streams.is_child():
                _end_child(reduced.value if isinstance(reduced.value, Failure) else None)
            if not reduced.begun:
                break
            offset = reduced.position - partition.start
            pickled = reduced.pickled()
            if isinstance(pickled, Failure):
                self._fail(pickled, groups[offset].key)
            else:
                made.append((reduced.position, pickled))
                if partition.careful:
                    self.crumb.keep(reduced.position, VALUE, pickled)
                self.crumb.states[offset] = PROCESSED
        else:
            mine.end(partition.start + partition.n)
        return self._outcome(pickling.dumps(made))

    def _folded(self, groups: list[Group]) -> Iterator[Reduced]:
        """The keys through the bag, a few at a time.

        A call of the chain costs as much as many small keys, so they share one; but all keys of a
        call are folded, and lie in memory, before the first of them is finished.
        """
        first, n = 0, 1
        while first < len(groups):
            begun = time.monotonic()
            few = _no_more_than(FOLD_BYTES, groups[first : first + n])
            parts = [
                Part(position, group, self.mine)
                for position, group in enumerate(few, self.partition.start + first)
            ]
            yield from self.job.folding(_Stream(parts))
            first += len(few)
            n = 2 * n if time.monotonic() - begun < FOLD_SECONDS else max(1, n // 2)

    def _is_enough(self) -> bool:
        allowed = self.partition.allowed
        return allowed is not None and len(self.failures) >= allowed

    def _drawn(self) -> Iterator[Any]:
        """The inputs; those that come singly are unpickled one by one, when they are drawn."""
        packs = self.partition.packs
        if self.partition.singly:
            for position, pack in enumerate(packs, self.partition.start):
                self.mine.turn_to(position, SEND)
                subject, self.mine.subject = self.mine.subject, None
                self.inputs.append(_read_alone(pack))
                self.mine.subject = subject
                yield self.inputs[-1]
            return
        try:
            self.inputs = pickling.loads(packs[0])
        except BaseException as error:
            raise UnreadableError from error
        yield from self.inputs

    def _claimed(self) -> Iterator[Item]:
        """The inputs, each claimed before it is given out; the Item is the same for all.

        In the chain there is one at a time, and a new one for each would be felt.
        """
        partition, mine = self.partition, self.mine
        mine.indices = partition.indices
        if mine.indices is None:
            mine.indices = range(partition.start, partition.start + partition.n)
        drawn = self._drawn() if partition.singly else iter(list(self._drawn()))
        item = self.item = mine.subject = Item(mine)
        item.compare = partition.compare
        for offset in mine.claims(partition.n, partial(streams.catch_up, mine.book)):
            item.inp = inp = next(drawn)
            item.offset = offset  # at once with the input, for `named`
            item.state = PENDING
            item.value = None
            if type(inp) is _Unread:
                item.fail(inp.error)
            yield item

    def _collect(self, item: Item, gathered: Lists | Folds | None) -> None:
        """Take the pairs of an input; one that cannot be pickled has failed."""
        item.at(COLLECT)
        try:
            if gathered is not None:
                gathered.add(self.mine, item.position, item.value)
            else:
                self._keep(item.position, item.value)
        except BaseException as error:
            item.at(COLLECT)
            item.fail(error)
            item.value.message += f"; {COLLECT_HINT}"

    def _keep(self, position: int, pairs: Pairs) -> None:
        piece = alone(pairs, combining=self.job.combine_fn is not None)
        self.apart.append((position, piece))
        if self.partition.careful:
            self.crumb.keep(position, VALUE, piece)

    def _close(self, gathered: Lists | Folds) -> Piece | None:
        """All values in one piece; where one of them cannot be pickled, each input's alone."""
        try:
            return self._close_together(gathered)
        except BaseException:
            assert isinstance(gathered, Lists)  # the other tries each value as it comes
        for position, pairs in gathered.made:
            try:
                self._keep(position, pairs)
            except BaseException as error:
                inp = self.inputs[position - self.partition.start]
                failure = from_exception(position, "collect", error)
                failure.message += f"; {COLLECT_HINT}"
                self._fail(failure, inp)
        return None

    def _close_together(self, gathered: Lists | Folds) -> Piece:
        try:
            return gathered.close(self.shelf)
        except OSError:
            if self.shelf is None:
                raise
            return gathered.close()  # there is no space for a file: they cross

    def _fail(self, failure: Failure, inp: object) -> None:
        """Complete a failure and log it at once, however long its partition still goes on."""
        mine, partition = self.mine, self.partition
        offset = failure.position - partition.start
        ended = self.crumb.marks[offset + 1] or time.monotonic()
        failure.worker = mine.worker
        failure.seconds = ended - self.crumb.marks[offset]
        failure.attempts = partition.attempt
        self.failures.append(failure)
        self.crumb.keep(failure.position, FAILURE, pickling.dumps(failure))
        self.crumb.states[offset] = FAILED
        index: int | None = None
        if not partition.reducing:
            indices = partition.indices
            index = failure.position if indices is None else indices[offset]
        assert mine.book is not None
        streams.settle(mine)  # what it printed comes before its failure
        attempts = failure.attempts if failure.final else partition.attempts
        log_file.note_failure(failure, mine.book, inp, index, attempts)

    def _difference(self) -> Failure | None:
        """Completed, as a failure; it is logged where it is known that it counts."""
        failure = None if self.item is None else self.item.difference
        if failure is not None:
            failure.worker, failure.attempts = self.mine.worker, self.partition.attempt
        return failure

    def _outcome(self, made: Piece | bytes | None) -> Outcome:
        crumb, stop = self.crumb, self.crumb.head[STOP]
        handled = stop - self.partition.start
        return Outcome(
            stop=stop,
            worker=self.mine.worker,
            states=bytearray(crumb.states[:handled]),
            marks=array("d", crumb.marks[: handled + 1]),
            epoch=time.time() - time.monotonic(),
            failures=self.failures,
            made=made,
            apart=self.apart,
            compared=self.item is not None and self.item.compared,
            difference=self._difference(),
            returned=None if self.item is None else self.item.returned,
            note=None if self.item is None else self.item.note,
        )


def _end_child(failure: Failure | None) -> None:
    """What an input has forked comes to its end here: the rest of the partition is the worker's.

    As Python ends: with the number of a ``SystemExit``, and with 1 and a traceback otherwise.
    """
    code = 0
    if failure is not None:
        exits = failure.error == "SystemExit"
        code = 1 if not exits or failure.message not in ("", "0", "None") else 0
        if exits and failure.message.isdigit():
            code = int(failure.message)
        if not exits:
            print(failure.traceback or failure.line(), file=sys.stderr)
    streams.end_lines()
    os._exit(code)


def _no_more_than(n_bytes: int, groups: list[Group]) -> list[Group]:
    """The first of `groups`, whose values are not more together; at least one."""
    sizes = accumulate(group.n_bytes for group in groups)
    return groups[: max(1, sum(1 for _ in takewhile(lambda size: size <= n_bytes, sizes)))]


class _Unread:
    """Stands for an input that could not be unpickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        return "<an input that could not be unpickled>"


def _read_alone(pack: bytes) -> Any:
    try:
        return pickling.loads(pack)
    except BaseException as error:
        return _Unread(error)


def _group(read: Group | _Unread, position: int) -> Group:
    """A key that could not be unpickled has failed: that is its value."""
    if isinstance(read, _Unread):
        failure = from_exception(position, "reduce", read.error)
        return Group(repr(read), [pickling.dumps(failure)])
    return read
