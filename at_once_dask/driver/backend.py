"""The door between the dispatcher and a cluster: what is sent through it, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from at_once_dask.cluster.own import Worker
from at_once_dask.driver.blame import Death
from at_once_dask.protocol.events import Running
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.task import Outcome, Partition


@dataclass(frozen=True, slots=True)
class Delivered:
    """A partition came back."""

    id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Broken:
    """A partition did not come back: its task failed as a whole, or was lost.

    `here`: with this process's connection to the scheduler; workers have nothing to do with it.
    """

    id: str
    error: BaseException
    here: bool = False


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """Workers gave back what they had not started: new limits by partition id."""

    limits: dict[str, int]


@dataclass(frozen=True, slots=True)
class Died:
    """A worker died."""

    death: Death


@dataclass(frozen=True, slots=True)
class Changed:
    """There are other workers than before, or a connection that was lost is back."""


Event = Delivered | Broken | Reclaimed | Running | Died | Changed


class Backend(Protocol):
    """Workers, as the dispatcher sees them."""

    @property
    def sees_progress(self) -> bool:
        """Whether `unstarted` and `take_back` are known here, without a message."""

    def workers(self) -> dict[str, Worker]:
        """Who lives, by address; what a worker holds is lost only when it is not among them."""

    def send(self, worker: str, partition: Partition) -> None:
        """Lease `partition` to `worker`, and to no other, whatever happens."""

    def reclaim(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        """Ask `worker` for what it has not started of these (id, start); Reclaimed answers."""

    def unstarted(self, worker: str, id: str) -> int | None:
        """How many inputs of this partition have not started; None where it has not itself."""

    def take_back(self, worker: str, id: str, start: int) -> int | None:
        """Take back half of what it has not started, or the whole partition: its new limit."""

    def next(self, timeout: float) -> Event | None:
        """The next event; None when there was none within `timeout` seconds."""

    @property
    def patience(self) -> float:
        """Seconds that a run waits for a worker, when there is none; infinite where others start
        them."""

    @property
    def is_connected(self) -> bool:
        """Whether something can be sent just now."""

    def want(self, seconds: float | None) -> None:
        """So many seconds of work are left for one worker; None: nobody knows."""

    def drop(self, id: str, worker: str) -> None:
        """It is known what became of this partition; should it come back, nobody wants it."""

    def end(self, workers: set[str]) -> None:
        """End these workers, whatever they do; their partitions never come back."""

    def progress_folder(self, worker: str) -> ProgressFolder | None:
        """Where the worker leaves its progress files, when that can be seen from here."""

    def keep_values(self) -> str | None:
        """The folder with large values, which is the caller's to remove from now on."""

    def unreported_death(self, worker: str, directory: str) -> Death:
        """A death that was never reported, as the progress files have it."""
