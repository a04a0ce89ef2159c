"""The bag of one partition, compiled once a run: check, filter, process; or the fold of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dask.bag import Bag
from dask.local import get_sync

Chain = Callable[[Iterable[Any]], Iterator[Any]]


_SOURCE = ("partition", 0)


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


class _Stream:
    """Wraps an iterator, so that Dask neither walks nor lists it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


_PARTITION = Bag({_SOURCE: _Stream(())}, _SOURCE[0], 1)  # the place of the partition in a chain
