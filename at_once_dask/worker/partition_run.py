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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, takewhile
from typing import Any

from at_once_dask.logs import log_file, streams
from at_once_dask.protocol import lease
from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.progress_file import CLOSING, FAILURE, STOP, VALUE, Crumb, Trail
from at_once_dask.protocol.return_values import Pairs
from at_once_dask.protocol.status import COLLECT, FAILED, PENDING, PROCESSED, SEND
from at_once_dask.protocol.task import Group, Job, Outcome, Partition, Piece
from at_once_dask.reduction.map_side import Folds, Lists, alone
from at_once_dask.reduction.reduce_side import Part, Reduced
from at_once_dask.user_code import pickling
from at_once_dask.worker.bag import _Stream
from at_once_dask.worker.steps import Item

COLLECT_HINT = "return data that can be pickled: text, numbers, arrays, frames, not what is open"
FOLD_BYTES = 8 * 2**20  # of values are unpickled together, unless one key alone has more
FOLD_SECONDS = 0.02  # keys folded together take no longer than this, or fewer are the next time


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


class UnreadableError(Exception):
    """The inputs of a partition could not be unpickled together."""


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
