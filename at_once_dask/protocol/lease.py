"""The work of this process, and how much of it a driver elsewhere may still take back.

A lease is shared between the thread that runs the partition and the worker's event loop, where
questions arrive from a driver that does not see the progress file.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from at_once_dask.protocol.progress_file import NO_LIMIT, ProgressFile


class Subject(Protocol):
    """The input, or key, that is being worked on."""

    @property
    def offset(self) -> int:
        """How far it is from the first of its partition."""

    @property
    def inp(self) -> Any: ...


class Log(Protocol):
    """Where records of a partition are written; the log of a run is one."""

    @property
    def run(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def captures(self) -> bool:
        """Whether what the functions print goes to it."""

    @property
    def is_near(self) -> bool:
        """Whether `path` is the driver's file here."""

    def write(self, record: dict[str, Any]) -> None: ...
    def send(self, lines: str) -> None: ...


class Lease:
    """One partition in one worker, and how far it may go.

    Attributes
    ----------
    id : str
        The partition's; it starts with the run's.
    start : int
        Position, in the order of use, of the first input.
    progress : ProgressFile or None
        How far it is; None until a thread has taken it up. From then on its first input counts as
        started, even while it is unpickled.
    limit : int
        No input at or behind this position may be started; from then on its progress has the limit.
    subject : Subject or None
        The current input (or key), from when it is drawn; None when it is about none, or all.
        In a forked child it stays what it was, while the progress goes on with the worker's.
    indices : sequence of int or None
        Positions in the list as given; None for keys, which have none.
    run_log : Log or None
        Where records of this partition are logged.
    worker : str
        The worker's address.
    """

    __slots__ = (
        "id", "indices", "limit", "progress", "run_log", "start", "subject", "worker",
    )  # fmt: skip

    def __init__(self, id: str, start: int) -> None:
        self.id = id
        self.start = start
        self.progress: ProgressFile | None = None
        self.limit = NO_LIMIT
        self.subject: Subject | None = None
        self.indices: Sequence[int] | None = None
        self.run_log: Log | None = None
        self.worker = ""

    @property
    def named(self) -> tuple[int | None, Any]:
        """The offset of the current input, and that input; None when there is none.

        Both of one moment: between the two Python lets no other thread run.
        """
        subject = self.subject
        return (None, None) if subject is None else (subject.offset, subject.inp)

    def index(self, offset: int | None) -> int | None:
        """Position in the list as given."""
        return None if self.indices is None or offset is None else self.indices[offset]

    def begin(self, progress: ProgressFile) -> None:
        """A thread takes it up; what was taken back before stays so."""
        if self.limit != NO_LIMIT:
            progress.limit = self.limit
        self.progress = progress

    def take_back(self) -> int:
        """Take back all that has not started; returns the first position taken back."""
        if self.progress is None:
            self.limit = self.start
            return self.start
        return self.progress.take_back()


LEASES: dict[str, Lease] = {}  # of this process, by partition id
_ended: set[str] = set()  # ids of partitions of the runs that go on
_lock = threading.Lock()  # between beginning, ending and taking back; not between inputs
_here = threading.local()


def take(id: str, start: int, progress: ProgressFile) -> Lease:
    """The lease of partition `id`; made here, or earlier by a question that overtook it."""
    with _lock:
        lease = LEASES.setdefault(id, Lease(id, start))
        lease.begin(progress)
        return lease


def end(id: str) -> None:
    """Partition `id` is done with: its outcome says what it has not handled."""
    with _lock:
        _ended.add(id)
        LEASES.pop(id, None)


def enter(lease: Lease | None) -> None:
    """This thread works on `lease` from now on."""
    _here.lease = lease


def here() -> Lease | None:
    """The lease this thread works on.

    Also in a thread that an input started by itself, where only one input is running.
    """
    lease = own()
    if lease is None:
        started = running()
        return started[0] if len(started) == 1 else None
    return lease


def own() -> Lease | None:
    """The lease that this very thread was given."""
    lease: Lease | None = getattr(_here, "lease", None)
    return lease


def running() -> list[Lease]:
    """The leases that are being worked on in this process."""
    return [lease for lease in list(LEASES.values()) if lease.progress is not None]


def take_back(wanted: list[tuple[str, int]], stopping: bool = False) -> dict[str, int]:
    """Take back what has not started of these partitions (`id`, `start`); the new limits by id.

    A partition that has ended, though its outcome may still be on its way, gives nothing back.
    Nor does one that nothing here keeps from starting, unless the run is `stopping`: it is on its
    way, and where it went next it would only be asked back again.
    """
    with _lock:
        busy = bool(running())
        return {
            id: LEASES.setdefault(id, Lease(id, start)).take_back()
            for id, start in wanted
            if id not in _ended and (busy or stopping)
        }


def forget(run: str) -> None:
    """Drop what is kept of a run that is over."""
    with _lock:
        for id in [id for id in LEASES if id.startswith(run)]:
            del LEASES[id]
        _ended.difference_update([id for id in _ended if id.startswith(run)])


def longest_running(run: str) -> tuple[float, str, Any] | None:
    """The input of `run` in this process that runs longest: seconds, stage, input."""
    mine = [(lease.progress, *lease.named) for lease in running() if lease.id.startswith(run)]
    found = [(p.seconds, p.stage, inp) for p, offset, inp in mine if p and offset is not None]
    return max(found, key=lambda one: one[0], default=None)
