"""From pieces to the result: keys brought together in the driver, folded by ``foldby`` on workers.

The driver brings together what belongs to a key, by the key's own ``==`` and ``hash``, without
opening the values. Then keys are inputs like any others: cut into partitions, leased to workers,
where the bag's ``foldby`` folds the pieces of each key and ``reduce_fn`` is mapped over them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dask.bag import Bag

from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.function_results import refuse_awaitable
from at_once_dask.protocol.lease import Lease
from at_once_dask.protocol.progress_file import ProgressFile
from at_once_dask.protocol.status import REDUCE
from at_once_dask.protocol.task import Group, Place
from at_once_dask.reduction.map_side import combine
from at_once_dask.user_code import pickling


@dataclass(slots=True)
class Part:
    """The blobs of one key, on their way through ``foldby``."""

    position: int
    group: Group
    lease: Lease
    progress: ProgressFile

    def begin(self) -> None:
        """This key is being worked on: the one to blame from here on."""
        self.progress.turn_to(self.position, REDUCE)
        self.lease.subject = self

    def claim(self) -> bool:
        """Whether it may still be reduced here."""
        return self.progress.begin(self.position)

    @property
    def offset(self) -> int:
        return self.position - self.lease.start

    @property
    def inp(self) -> Any:
        return self.group.key

    def values(self, combined: bool) -> Iterator[Any]:
        """From each piece: its list of values, its combined value, or a Failure."""
        for blob in self.group.blobs:
            if not isinstance(blob, tuple):
                yield self._value(blob)
            elif combined:
                yield from array(*blob)
            else:
                yield array(*blob).tolist()

    def _value(self, blob: bytes | Place) -> Any:
        try:
            return blob.load() if isinstance(blob, Place) else pickling.loads(blob)
        except BaseException as error:
            return from_exception(self.position, "reduce", error)


@dataclass(slots=True)
class Total:
    """The result of ``foldby`` for one key: a list of values, or one combined value."""

    part: Part | None = None
    value: Any = None


@dataclass(slots=True)
class Reduced:
    """The result of one key, or its Failure; not `started` when time was up before it."""

    position: int
    value: Any
    started: bool = True

    def pickled(self) -> bytes | Failure:
        """The value on its way to the driver, or why there is none."""
        if isinstance(self.value, Failure):
            self.value.position = self.position
            return self.value
        try:
            return pickling.dumps(self.value)
        except BaseException as error:
            return from_exception(self.position, "reduce", error)


class Fold:
    """The functions of the reducing bag, guarded.

    Parameters
    ----------
    reduce_fn, combine_fn
        As given to ``run``; one of them is ``None``.
    """

    def __init__(
        self,
        reduce_fn: Callable[[list[Any]], Any] | None,
        combine_fn: Callable[[Any, Any], Any] | None,
    ) -> None:
        self.reduce_fn = reduce_fn
        self.combine_fn = combine_fn

    def __dask_tokenize__(self) -> object:
        """As with ``Steps``: the functions are not to be pickled for a name."""
        return id(self)

    def bag(self, parts: Bag) -> Bag:
        """Parts in, one Reduced a key out, lazily."""
        folded: Bag = parts.foldby(
            key=_position,
            binop=self.add,
            initial=Total,
            combine=self.merge,
            combine_initial=Total,
        )
        reduced: Bag = folded.map(self.finish)
        return reduced

    def add(self, total: Total, part: Part) -> Total:
        part.begin()  # the combiner runs in here
        values = part.values(self.combine_fn is not None)
        value = next(values) if total.part is None else total.value
        for more in values:
            value = self._join(value, more)
        return Total(part, value)

    def merge(self, total: Total, other: Total) -> Total:
        if total.part is None:
            return other
        return Total(total.part, self._join(total.value, other.value))

    def _join(self, value: Any, more: Any) -> Any:
        if self.combine_fn is not None:
            return combine(self.combine_fn, value, more)
        if type(value) is Failure or type(more) is Failure:
            return value if type(value) is Failure else more
        value.extend(more)
        return value

    def finish(self, folded: tuple[int, Total]) -> Reduced:
        position, total = folded
        assert total.part is not None
        if not total.part.claim():
            return Reduced(position, None, started=False)
        total.part.begin()
        value = total.value
        if self.reduce_fn is not None and not isinstance(value, Failure):
            try:
                value = self.reduce_fn(value)
                refuse_awaitable(value, "reduce_fn")
            except BaseException as error:
                value = from_exception(position, "reduce", error)
        return Reduced(position, value)


def _position(part: Part) -> int:
    return part.position
