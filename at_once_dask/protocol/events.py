"""Reports of workers and nannies between outcomes: Dask events, on a topic a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

LONG_SECONDS = 2.0  # an input that has run for less is not called long


def topic(run: str) -> str:
    """The topic of a run: no other driver receives what is reported on it."""
    return f"at_once_dask-{run}"


@dataclass(frozen=True, slots=True)
class LogLines:
    """Lines for the log, from a host that does not see the file."""

    lines: str


@dataclass(frozen=True, slots=True)
class Running:
    """An input runs long on a borrowed cluster, whose workers may be on other hosts."""

    worker: str
    seconds: float
    stage: str
    inp: str


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The end of a worker process, as its nanny saw it.

    Attributes
    ----------
    worker : str
        The address.
    at, epoch : float
        When (``time.monotonic`` of its host), and that clock's zero since 1970-01-01 UTC.
    exit : int
        The exit code, minus the number of a signal.
    progress : dict of str to bytes, or None
        Its progress files, by partition; None where they could not be read.
    overdue : (str, int) or None
        Partition and position that it was ended for, past the time limit.
    timeout : float or None
        That limit, in seconds.
    stack : str
        What `faulthandler` wrote.
    last_words : str
        What was written to its file descriptors last.
    beside : int
        How many tasks of others it was working on.
    host : str
        The name of its host.
    """

    worker: str
    at: float
    epoch: float
    exit: int
    progress: dict[str, bytes] | None
    overdue: tuple[str, int] | None
    timeout: float | None
    stack: str
    last_words: str
    beside: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker was told to go, and has said so: `at`, `epoch` and `progress` as of WorkerDied."""

    worker: str
    directory: str
    at: float
    epoch: float
    progress: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class WorkerMet:
    """The scheduler has brought the run to a worker and its nanny; or why that cannot be.

    Attributes
    ----------
    worker, directory : str
        The address, and the directory of the process there.
    version : str or None
        What it has where that does not fit the driver's: ``Python 3.12``, ``at_once_dask 0.2``.
    error : str or None
        What else hinders it.
    """

    worker: str
    directory: str
    version: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker is gone, and nobody is left who could say more of it."""

    worker: str
    directory: str


Event = LogLines | Running | WorkerDied | WorkerLeft | WorkerMet | WorkerGone

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def message(event: Event) -> dict[str, Any]:
    """`event` as Dask's connections take it: with msgpack, tuples become lists."""
    return {"kind": type(event).__name__, **asdict(event)}


def read(message: dict[str, Any]) -> Event:
    """The event that `message` was made of; Dask may have added to it who sent it."""
    kind = _KINDS[message["kind"]]
    return kind(*(message[field.name] for field in fields(kind)))
