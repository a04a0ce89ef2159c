"""One partition on a worker, from its inputs to its outcome. Knows no cluster.

Partition and Outcome are opaque to Dask on purpose: it would walk lists and dicts element by
element.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, takewhile
from typing import Any

from at_once_dask.logs import log_file, streams
from at_once_dask.logs.log_file import RunLog
from at_once_dask.protocol import lease
from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.function_results import Pairs
from at_once_dask.protocol.lease import Lease
from at_once_dask.protocol.progress_file import ProgressFile, TakenBackError
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.status import COLLECT, FAILED, PENDING, PROCESSED, SEND
from at_once_dask.protocol.task import (
    Group,
    MapOutcome,
    Outcome,
    Partition,
    Piece,
    ReduceOutcome,
)
from at_once_dask.reduction.map_side import Folds, Lists, alone
from at_once_dask.reduction.reduce_side import Part, Reduced
from at_once_dask.user_code import pickling
from at_once_dask.worker.bag import Bags
from at_once_dask.worker.steps import Item

COLLECT_HINT = "return data that can be pickled: text, numbers, arrays, frames, not what is open"
FOLD_BYTES = 8 * 2**20  # of values are unpickled together, unless one key alone has more
FOLD_SECONDS = 0.02  # keys folded together take no longer than this, or fewer are the next time


def work(
    bags: Callable[[], Bags],
    run_log: RunLog,
    partition: Partition,
    worker: str,
    folder: ProgressFolder | None = None,
    values_folder: str | None = None,
) -> Outcome:
    """Handle the inputs of `partition` until they end, are taken back, or time is up.

    Parameters
    ----------
    bags : callable
        Gives the Bags of the run; what that ends is not blamed on any input.
    run_log, partition, worker
    folder : ProgressFolder or None
        Where the progress file is left; None where nobody would look for it.
    values_folder : str or None
        A folder for values that are too many bytes to cross, where all workers see it.
    """
    ready = bags()
    _ = ready.folding if partition.reducing else ready.mapping  # compiled in no input's time
    if folder is None:
        progress = ProgressFile(partition.start, partition.n)
    else:
        folder.forget(partition.delivered)
        try:
            progress = folder.create(partition.id, partition.start, partition.n)
        except TakenBackError:
            return Outcome(partition.start, worker)
    progress.deadline = time.monotonic() + partition.seconds
    mine = lease.take(partition.id, partition.start, progress)
    mine.run_log, mine.worker = run_log, worker
    lease.enter(mine)
    try:
        if partition.reducing:
            return _ReduceRun(ready, partition, mine, progress).outcome()
        values_file = None if values_folder is None else os.path.join(values_folder, partition.id)
        return _MapRun(ready, partition, mine, progress, values_file).outcome()
    except UnreadableError:
        return Outcome(partition.start, worker, unreadable=True)
    finally:
        progress.close()  # first: nobody is to take back any more what the outcome does not say
        mine.subject = None
        streams.settle(mine)
        lease.enter(None)
        lease.end(partition.id)


class UnreadableError(Exception):
    """The inputs of a partition could not be unpickled together."""


class _PartitionRun:
    """The work on one partition, and what came of it so far."""

    def __init__(
        self, bags: Bags, partition: Partition, mine: Lease, progress: ProgressFile
    ) -> None:
        self.bags = bags
        self.partition = partition
        self.mine = mine
        self.progress = progress
        self.inputs: list[Any] = []
        self.failures: list[Failure] = []

    def drawn(self) -> Iterator[Any]:
        """The inputs; those that come singly are unpickled one by one, when they are drawn."""
        filed = self.partition.filed
        packs: Sequence[bytes | memoryview] = self.partition.packs
        if filed is not None:
            packs = filed.open()
        if not self.partition.singly:
            self.inputs = _read_together(packs[0])
            yield from self.inputs
            return
        for position, pack in enumerate(packs, self.partition.start):
            self.progress.turn_to(position, SEND)
            subject, self.mine.subject = self.mine.subject, None
            self.inputs.append(_read_alone(pack))
            self.mine.subject = subject
            yield self.inputs[-1]

    def fail(self, failure: Failure, inp: object) -> None:
        """Complete a failure and log it at once, however long its partition still goes on."""
        mine, partition = self.mine, self.partition
        offset = failure.position - partition.start
        failure.worker, failure.host = mine.worker, platform.node()
        failure.seconds = self.progress.seconds_of(failure.position)
        failure.attempts = partition.attempt
        self.failures.append(failure)
        self.progress.keep_failure(failure, pickling.dumps(failure))
        self.progress.states[offset] = FAILED
        index: int | None = None
        if not partition.reducing:
            indices = partition.indices
            index = failure.position if indices is None else indices[offset]
        assert mine.run_log is not None
        streams.settle(mine)  # what it printed comes before its failure
        log_file.note_failure(failure, mine.run_log, inp, index, partition.attempts)

    def handled(self) -> dict[str, Any]:
        """The fields that every outcome has."""
        stop = self.progress.stop
        return {
            "stop": stop,
            "worker": self.mine.worker,
            "states": bytearray(self.progress.states[: stop - self.partition.start]),
            "marks": self.progress.marks(stop),
            "epoch": time.time() - time.monotonic(),
            "failures": self.failures,
        }


class _MapRun(_PartitionRun):
    """A partition of inputs through check and process; their pairs are grouped by key."""

    def __init__(
        self,
        bags: Bags,
        partition: Partition,
        mine: Lease,
        progress: ProgressFile,
        values_file: str | None,
    ) -> None:
        super().__init__(bags, partition, mine, progress)
        self.values_file = values_file
        self.item = Item(progress)  # the same for all: a new one for each input would be felt
        self.item.compare = partition.compare
        self.apart: list[tuple[int, bytes]] = []
        self.grouped: Lists | Folds | None = None
        combine_fn = bags.job.combine_fn
        if bags.job.reducing and not partition.careful:
            self.grouped = Lists() if combine_fn is None else Folds(combine_fn)

    def outcome(self) -> MapOutcome:
        self._handle_all()
        streams.catch_up(self.mine.run_log)
        self.mine.subject = None
        piece = None
        if self.grouped is not None:
            with self.progress.closing():
                piece = self._close(self.grouped)
        item, difference = self.item, self.item.difference
        if difference is not None:  # it is logged where it is known that it counts
            difference.worker, difference.host = self.mine.worker, platform.node()
            difference.attempts = self.partition.attempt
        return MapOutcome(
            **self.handled(),
            piece=piece,
            apart=self.apart,
            compared=item.compared,
            difference=difference,
            returned=item.returned,
            note=item.note,
        )

    def _handle_all(self) -> None:
        states, reducing = self.progress.states, self.bags.job.reducing
        for item in self.bags.mapping(self._claimed()):
            if streams.is_child():
                _end_child(item.value if item.state == FAILED else None)
            if reducing and item.state != FAILED:
                self._collect(item)
            if item.state != FAILED:
                states[item.offset] = item.state
                continue
            self.fail(item.value, item.inp)
            # What is tried again has its own place in a map-reduce.
            final = self.partition.final or item.value.final
            if self._is_enough() if final else reducing:
                self.progress.end(item.position + 1)
                return

    def _claimed(self) -> Iterator[Item]:
        """The inputs, each claimed before it is given out."""
        partition, mine, item = self.partition, self.mine, self.item
        mine.indices = partition.indices
        if mine.indices is None:
            mine.indices = range(partition.start, partition.start + partition.n)
        drawn = self.drawn() if partition.singly else iter(list(self.drawn()))
        mine.subject = item
        for offset in self.progress.claims(partial(streams.catch_up, mine.run_log)):
            item.inp = inp = next(drawn)
            item.offset = offset  # at once with the input, for `named`
            item.state = PENDING
            item.value = None
            if type(inp) is _Unread:
                item.fail(inp.error)
            yield item

    def _is_enough(self) -> bool:
        allowed = self.partition.allowed
        return allowed is not None and len(self.failures) >= allowed

    def _collect(self, item: Item) -> None:
        """Take the pairs of an input; one that cannot be pickled has failed."""
        item.at(COLLECT)
        try:
            if self.grouped is not None:
                self.grouped.add(self.progress, item.position, item.value)
            else:
                self._keep(item.position, item.value)
        except BaseException as error:
            item.at(COLLECT)
            item.fail(error)
            item.value.message += f"; {COLLECT_HINT}"

    def _keep(self, position: int, pairs: Pairs) -> None:
        piece = alone(pairs, combining=self.bags.job.combine_fn is not None)
        self.apart.append((position, piece))
        if self.partition.careful:
            self.progress.keep_value(position, piece)

    def _close(self, grouped: Lists | Folds) -> Piece | None:
        """All values in one piece; where one of them cannot be pickled, each input's alone."""
        try:
            return self._close_together(grouped)
        except BaseException:
            assert isinstance(grouped, Lists)  # the other tries each value as it comes
        for position, pairs in grouped.made:
            try:
                self._keep(position, pairs)
            except BaseException as error:
                failure = from_exception(position, "collect", error)
                failure.message += f"; {COLLECT_HINT}"
                self.fail(failure, self.inputs[position - self.partition.start])
        return None

    def _close_together(self, grouped: Lists | Folds) -> Piece:
        try:
            return grouped.close(self.values_file)
        except OSError:
            if self.values_file is None:
                raise
            return grouped.close()  # there is no space for a file: they cross


class _ReduceRun(_PartitionRun):
    """A partition of keys through the fold and `reduce_fn`."""

    def outcome(self) -> ReduceOutcome:
        partition = self.partition
        groups = [_group(read, n) for n, read in enumerate(self.drawn(), partition.start)]
        values: list[tuple[int, bytes]] = []
        for reduced in self._folded(groups):
            if streams.is_child():
                _end_child(reduced.value if isinstance(reduced.value, Failure) else None)
            if not reduced.started:
                break
            pickled = reduced.pickled()
            if isinstance(pickled, Failure):
                self.fail(pickled, groups[reduced.position - partition.start].key)
                continue
            values.append((reduced.position, pickled))
            if partition.careful:
                self.progress.keep_value(reduced.position, pickled)
            self.progress.states[reduced.position - partition.start] = PROCESSED
        else:
            self.progress.end(partition.start + partition.n)
        return ReduceOutcome(**self.handled(), values=values)

    def _folded(self, groups: list[Group]) -> Iterator[Reduced]:
        """The keys through the bag, a few at a time.

        A call of the chain costs as much as many small keys, so they share one; but all keys of a
        call are folded, and lie in memory, before the first of them is finished.
        """
        first, n = 0, 1
        while first < len(groups):
            since = time.monotonic()
            few = _no_more_than(FOLD_BYTES, groups[first : first + n])
            yield from self.bags.folding(
                Part(position, group, self.mine, self.progress)
                for position, group in enumerate(few, self.partition.start + first)
            )
            first += len(few)
            n = 2 * n if time.monotonic() - since < FOLD_SECONDS else max(1, n // 2)


def _end_child(failure: Failure | None) -> None:
    """End a process that an input has forked: the rest of the partition is the worker's.

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


def _read_together(pack: bytes | memoryview) -> list[Any]:
    try:
        inputs: list[Any] = pickling.loads(pack)
    except BaseException as error:
        raise UnreadableError from error
    return inputs


def _read_alone(pack: bytes | memoryview) -> Any:
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
