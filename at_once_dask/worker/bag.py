"""The bag of one partition, compiled once a run and process: check, filter, process; or the fold.

::

    Partition ──> Bag.map(check) ──> .filter(matters) ──> .map(process) ──> collect ──> Outcome
    (opaque)      └───────────── lazy, one input at a time ───────────────┘             (opaque)

It becomes one linear, lazy chain, in which each input passes all steps before the next one is
drawn; so check comes right before process, and stopping to draw stops everything behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

from dask.bag import Bag
from dask.local import get_sync

from at_once_dask.protocol.task import Job
from at_once_dask.reduction.reduce_side import Fold
from at_once_dask.worker.dask_internals import optimised
from at_once_dask.worker.steps import Steps

Chain = Callable[[Iterable[Any]], Iterator[Any]]

_SOURCE = ("partition", 0)


class Bags:
    """The functions of a run as two chains, each compiled when it is first needed."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def mapping(self) -> Chain:
        """Inputs, as Items, to the Items that passed the filter."""
        steps, bag = Steps.of(self.job), _PARTITION
        if self.job.check_inp is not None:  # else nothing is done yet, and all of it matters
            bag = bag.map(steps.check).filter(steps.matters)
        return compiled(bag.map(steps.process))

    @cached_property
    def folding(self) -> Chain:
        """Pieces of keys, as Parts, to Reduced keys."""
        return compiled(Fold(self.job.reduce_fn, self.job.combine_fn).bag(_PARTITION))


def compiled(bag: Bag) -> Chain:
    """The bag as a function of its one partition: graph and optimisation are done once.

    The result is a lazy iterator: nothing runs before it is drawn from.
    """
    lazy = bag.map_partitions(Stream)
    keys = lazy.__dask_keys__()
    graph = optimised(lazy, keep=_SOURCE)  # the partition stays a key of its own

    def chain(partition: Iterable[Any]) -> Iterator[Any]:
        (stream,) = get_sync({**graph, _SOURCE: Stream(partition)}, keys)
        return iter(stream.items)

    return chain


class Stream:
    """Wraps an iterator, so that Dask neither walks nor lists it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


_PARTITION = Bag({_SOURCE: Stream(())}, _SOURCE[0], 1)  # the place of the partition in a chain
