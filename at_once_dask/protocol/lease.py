"""What this process is working on: a Lease for each partition it was given.

A lease is shared between the thread that runs the partition and the worker's event loop, where
the driver's questions arrive. Both sides need one attribute each, and no lock (see `reclaim`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from at_once_dask.protocol.progress_file import CURRENT, STOP, Crumb
from at_once_dask.protocol.status import BEGUN, FAILED, stage
from at_once_dask.user_code.text import safe_repr

if TYPE_CHECKING:
    from at_once_dask.logs.log_file import Book

NO_LIMIT = sys.maxsize
PROCESS_SECONDS = 0.0005  # no process is started and gone in less


class Subject(Protocol):
    """What is being worked on: an input, or a key."""

    @property
    def offset(self) -> int:
        """How far it is from the first of its partition."""

    @property
    def inp(self) -> Any: ...


class Lease:
    """One partition in one worker: how far it is, and how far it may go.

    Attributes
    ----------
    id : str
        The partition's; it starts with the run's.
    start : int
        Position, in the order of use, of the first input.
    head, marks, states
        Of the partition's Crumb, from `enter` on.
    limit : int
        No input at or behind this position may be started.
    deadline : float
        No further input is started past it (``time.monotonic``), except the first.
    entered : bool
        A thread has taken it up; its first input counts as begun, even while it is unpickled.
    subject : Subject or None
        The current input (or key), from when it is drawn; None when it is about none, or all.
        In a forked child it stays what it was, while the head goes on with that of the worker.
    indices : sequence of int or None
        Positions in the list as given; None for keys, which have none.
    book : journal.Book or None
        Where records of this partition are logged.
    worker : str
        The worker's address.
    """

    __slots__ = (
        "book", "deadline", "entered", "head", "id", "indices", "limit", "marks", "start", "states",
        "subject", "worker",
    )  # fmt: skip

    def __init__(self, id: str, start: int) -> None:
        self.id = id
        self.start = start
        self.limit = NO_LIMIT
        self.deadline = float("inf")
        self.entered = False
        self.subject: Subject | None = None
        self.indices: Sequence[int] | None = None
        self.book: Book | None = None
        self.worker = ""

    def enter(self, crumb: Crumb) -> None:
        """Claim the first input before it is unpickled: that may take its time."""
        self.head, self.marks, self.states = crumb.head, crumb.marks, crumb.states
        self.entered = True

    @property
    def current(self) -> int:
        """The position being worked on; ``start - 1`` before the first."""
        return self.head[CURRENT] if self.entered else self.start - 1

    @property
    def named(self) -> tuple[int | None, Any]:
        """The offset of the current input, and that input; None when there is none.

        Of one moment: between the two Python lets no other thread run.
        """
        subject = self.subject
        return (None, None) if subject is None else (subject.offset, subject.inp)

    def index(self, offset: int | None) -> int | None:
        """Position in the list as given."""
        return None if self.indices is None or offset is None else self.indices[offset]

    @property
    def stage(self) -> str:
        """What is being done with the current input."""
        return stage(self.states[self.head[CURRENT] - self.start])

    @property
    def seconds(self) -> float:
        """For how long the current input has been worked on."""
        return time.monotonic() - self.marks[self.head[CURRENT] - self.start]

    def begin(self, position: int) -> bool:
        """Claim the input at `position`; False when it was taken back or time is up.

        The order matters: claim first, look at the limit second. `reclaim` does the opposite.
        """
        now = time.monotonic()
        self.marks[position - self.start] = now  # before it is the current one: a guard may look
        self.head[CURRENT] = position
        if position < self.limit and (now < self.deadline or position == self.start):
            self.states[position - self.start] = BEGUN
            return True
        self.head[STOP] = position
        return False

    def claims(self, n: int, ended: Callable[[], None]) -> Iterator[int]:
        """Claim `n` inputs, each when it is drawn: how far they are from the first.

        `ended` is called when one has ended that took long enough to have started a process.

        As `begin`, and `end` behind the last. But that would cost an input that does nothing a
        fifth of its time, for the call and for looking up what is here at hand.
        """
        head, marks, states, start = self.head, self.marks, self.states, self.start
        monotonic, deadline, late = time.monotonic, self.deadline, float("inf")
        for offset in range(n):
            marks[offset] = now = monotonic()
            if now > late:
                ended()
            late = now + PROCESS_SECONDS
            head[CURRENT] = position = start + offset
            if position >= self.limit or (now >= deadline and offset):
                head[STOP] = position
                return
            states[offset] = BEGUN
            yield offset
        self.end(start + n)

    def turn_to(self, position: int, state: int) -> None:
        """Begin what is not asked for: the parts of a key are folded before it is begun."""
        offset = position - self.start
        if self.head[CURRENT] != position:
            self.marks[offset] = time.monotonic()
        self.states[offset] = state
        self.head[CURRENT] = position

    def stage_is(self, state: int) -> None:
        """Note what is being done with the current input."""
        self.states[self.head[CURRENT] - self.start] = state

    def end(self, stop: int) -> None:
        """The input before position `stop` was the last; `begin` has said so when it said no."""
        self.marks[stop - self.start] = time.monotonic()
        self.head[STOP] = stop

    def reclaim(self) -> int:
        """Take back all that has not begun; returns the first position taken back.

        The limit is set before the claim is read again. So either this sees the claim and moves
        behind it, or the claim came after the limit and `begin` says no. When both happen at
        once the partition may end earlier than told here, never later: the outcome says how far
        it came, and the driver trusts the outcome.

        A second question changes nothing: what was given back once may be running elsewhere.
        """
        if self.limit != NO_LIMIT:
            return self.limit
        self.limit = self.current + 1
        while self.limit <= self.current:
            self.limit = self.current + 1
        return self.limit


LEASES: dict[str, Lease] = {}  # of this process, by partition id
_ended: set[str] = set()  # ids of partitions of the runs that go on
_lock = threading.Lock()  # between beginning, ending and taking back; not between inputs
_here = threading.local()


def take(id: str, start: int) -> Lease:
    """The lease of partition `id`; made here, or earlier by a question that overtook it."""
    with _lock:
        return LEASES.setdefault(id, Lease(id, start))


def end(id: str) -> None:
    """Partition `id` is done with: what it has not handled, its outcome tells."""
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
        begun = running()
        return begun[0] if len(begun) == 1 else None
    return lease


def own() -> Lease | None:
    """The lease that this very thread was given."""
    lease: Lease | None = getattr(_here, "lease", None)
    return lease


def running() -> list[Lease]:
    """The leases that are being worked on in this process."""
    return [lease for lease in list(LEASES.values()) if lease.entered]


def reclaim_all(wanted: list[tuple[str, int]], stopping: bool = False) -> dict[str, int]:
    """Take back what has not begun of these partitions (`id`, `start`); the new limits by id.

    A partition that has ended, though its outcome may still be on its way, gives nothing back.
    Nor does one that nothing here keeps from beginning, unless the run is `stopping`: it is on its
    way, and where it went next it would only be asked back again.
    """
    with _lock:
        busy = any(lease.entered for lease in LEASES.values())
        return {
            id: LEASES.setdefault(id, Lease(id, start)).reclaim()
            for id, start in wanted
            if id not in _ended and (busy or stopping)
        }


def forget(run: str) -> None:
    """Drop what is kept of a run that is over."""
    with _lock:
        for id in [id for id in LEASES if id.startswith(run)]:
            del LEASES[id]
        _ended.difference_update([id for id in _ended if id.startswith(run)])


def longest_running(run: str) -> tuple[float, str, str] | None:
    """Of the inputs of `run` in this process the one that runs longest: seconds, stage, input."""
    mine = [lease for lease in running() if lease.id.startswith(run)]
    begun = [(lease.seconds, lease.stage, *lease.named) for lease in mine]
    named = [found for found in begun if found[2] is not None]
    if not named:
        return None
    seconds, stage, _, inp = max(named, key=lambda found: found[0])
    return seconds, stage, safe_repr(inp)


def failing(run: str) -> dict[str, int]:
    """How many inputs have failed by now in the partitions of `run` that go on here."""
    mine = [lease for lease in running() if lease.id.startswith(run)]
    failed = {lease.id: lease.states.tobytes().count(FAILED) for lease in mine}
    return {id: n for id, n in failed.items() if n}
