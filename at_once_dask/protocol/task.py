"""The forms that cross: a run's functions, a partition of its inputs, and its outcome."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.shared_file import Parts
from at_once_dask.user_code import pickling

SLICE_SECONDS = 0.5  # a partition returns what it has past this, so that none holds others back


def host_of(worker: str) -> str:
    """The host in a worker's address.

    >>> host_of("tls://10.0.0.1:40123")
    '10.0.0.1'
    """
    return worker.rpartition("://")[2].rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Piece:
    """The pairs that one partition gives to the reduction; crosses to the driver in one piece.

    Attributes
    ----------
    keys : bytes
        The keys in order of first appearance, a pickled list. A key may repeat, each time with a
        value of its own.
    sizes : array of int
        How many bytes of `data` belong to each key.
    data : bytes or str
        For each key, pickled: the list of its values in input order; with a combiner the
        combined value; or the Failure of the combiner for this key. A str is the path of a file
        with all that, where all workers are on the driver's host: large values need not cross.
    code : str
        Of the array that `data` is in place of pickles, where all values are ``int``, or all are
        ``float``: to pickle them key by key would take longer than to make them.
    """

    keys: bytes
    sizes: array[int]
    data: bytes | str
    code: str = ""

    @property
    def n_bytes(self) -> int:
        """The size of all values together."""
        return sum(self.sizes)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file one key's pickled values lie; crosses in their stead."""

    path: str
    offset: int
    size: int

    def load(self) -> Any:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return pickling.load(file)


# One key's values of an array: its type code, and the bytes. A tuple is what pickles fastest.
Numbers = tuple[str, bytes]


class Group(NamedTuple):
    """One key as an input of the reduction: the key and the blobs of its pieces, in order."""

    key: Any
    blobs: list[bytes | Place | Numbers]

    @property
    def n_bytes(self) -> int:
        return sum(map(_size, self.blobs))


def _size(blob: bytes | Place | Numbers) -> int:
    if isinstance(blob, Place):
        return blob.size
    return len(blob[1]) if isinstance(blob, tuple) else len(blob)


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
    def reducing(self) -> bool:
        return self.reduce_fn is not None or self.combine_fn is not None


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
    filed : Parts or None
        Where the packs are instead, when they are large and the worker is on this host.
    indices : array of int or None
        Positions in the list as given, when that is not the order of use.
    singly : bool
    reducing : bool
        Whether the inputs are Groups of the reduction.
    careful : bool
        What an input gives is put where a death cannot take it, before the next one starts.
    attempt, attempts : int
        Which attempt this is for each input, from 1, and how many it gets.
    allowed : int or None
        It ends when so many inputs have failed for good: the run may have to stop then.
    seconds : float
        No further input is started when it has run so long; the rest goes back.
    delivered : tuple of str
        Partitions of this worker that have reached the driver: their progress files may go.
    compare : bool
        Whether the first input that can be compared is: what `check_inp` says after it, with what
        `process_inp` gave.
    """

    id: str
    run: str
    start: int
    n: int
    packs: tuple[bytes, ...]
    filed: Parts | None = None
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
    """The result of a partition; crosses to the driver as soon as it is there.

    Attributes
    ----------
    stop : int
        Position behind the last input that was handled; the rest is for others to do.
    worker : str
        The worker's address.
    states : bytearray
        For each handled input SKIPPED, PROCESSED, FAILED or PENDING (see ``status``).
    marks : array of float
        When each of them started and the last one ended, in seconds since `epoch`.
    epoch : float
        The zero of `marks`, in seconds since 1970-01-01 UTC.
    failures : list of Failure
    unreadable : bool
        The pack could not be unpickled and nothing was done.
    """

    stop: int
    worker: str = ""
    states: bytearray = field(default_factory=bytearray)
    marks: array[float] = field(default_factory=lambda: array("d"))
    epoch: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    unreadable: bool = False

    @property
    def n_bytes(self) -> int:
        """How many bytes of values the inputs gave, where that counts."""
        return 0


@dataclass(slots=True)
class MapOutcome(Outcome):
    """The result of a partition of inputs.

    Attributes
    ----------
    piece : Piece or None
        The pairs of all inputs together, where they are wanted.
    apart : list of (int, bytes)
        Position and pickled Piece of each input whose pairs are not in `piece`.
    compared : bool
        Whether it was possible to compare.
    difference : Failure or None
        What came of it: the input's value is among the others all the same.
    returned : (int, str) or None
        Map-only: position and repr of the first value that was returned, and dropped.
    note : str or None
        What somebody should know.
    """

    piece: Piece | None = None
    apart: list[tuple[int, bytes]] = field(default_factory=list)
    compared: bool = False
    difference: Failure | None = None
    returned: tuple[int, str] | None = None
    note: str | None = None

    @property
    def n_bytes(self) -> int:
        return 0 if self.piece is None else self.piece.n_bytes


@dataclass(slots=True)
class ReduceOutcome(Outcome):
    """The result of a partition of keys.

    Attributes
    ----------
    values : list of (int, bytes)
        Position of each key that was reduced, and its pickled value.
    """

    values: list[tuple[int, bytes]] = field(default_factory=list)
