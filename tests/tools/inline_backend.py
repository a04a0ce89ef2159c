"""This process in place of the workers: the dispatcher, the bag and the reduction, no cluster."""

from __future__ import annotations

from collections import deque

from at_once_dask.cluster.own import Worker
from at_once_dask.driver.backend import Delivered, Event
from at_once_dask.driver.blame import Death
from at_once_dask.driver.packing import PackedJob
from at_once_dask.driver.workers_seen import BLINK_SECONDS
from at_once_dask.logs.log_file import RunLog
from at_once_dask.protocol.lease import forget
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.task import Job, Partition
from at_once_dask.user_code.main_module import Main
from at_once_dask.worker.bag import Bags
from at_once_dask.worker.partition_run import work


class InlineBackend:
    """The only worker: a partition is worked on when its outcome is asked for."""

    sees_progress = False

    def __init__(self, job: PackedJob, run_log: RunLog, threads: int = 1) -> None:
        self._bags = Bags(Job(*Main().fill(job.pickled, job.buffers)))
        self._run_log = run_log
        self._threads = threads
        self._waiting: deque[Partition] = deque()

    def __enter__(self) -> InlineBackend:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._waiting.clear()
        forget(self._run_log.run)

    def workers(self) -> dict[str, Worker]:
        return {"inline": Worker(self._threads, paused=False, scratch="", nanny=None)}

    def send(self, worker: str, partition: Partition) -> None:
        self._waiting.append(partition)

    def unstarted(self, worker: str, id: str) -> int | None:
        return None

    def take_back(self, worker: str, id: str, start: int) -> int | None:
        return None

    def reclaim(self, worker: str, wanted: list[tuple[str, int]], stopping: bool) -> None:
        """Nothing runs between two calls of `next`, so nothing needs to come back."""

    def next(self, timeout: float) -> Event | None:
        if not self._waiting:
            return None
        partition = self._waiting.popleft()
        outcome = work(lambda: self._bags, self._run_log, partition, "inline")
        return Delivered(partition.id, outcome)

    @property
    def patience(self) -> float:
        return BLINK_SECONDS

    @property
    def is_connected(self) -> bool:
        return True

    def want(self, seconds: float | None) -> None:
        """Nobody asks for workers."""

    def drop(self, id: str, worker: str) -> None:
        """Nothing dies here."""

    def end(self, workers: set[str]) -> None:
        self._waiting.clear()

    def progress_folder(self, worker: str) -> ProgressFolder | None:
        return None

    def keep_values(self) -> str | None:
        return None

    def unreported_death(self, worker: str, directory: str) -> Death:
        return Death(worker, directory=directory)
