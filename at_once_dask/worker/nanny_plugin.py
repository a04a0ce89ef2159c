"""In each nanny: reports how a worker died, and over what; has the time limit enforced.

A nanny outlives its worker, and is on the same host. Those of the own cluster are in the driver.
"""

from __future__ import annotations

import contextlib
import platform
import time
from typing import Any

from distributed import NannyPlugin

from at_once_dask.logs.descriptors import last_words
from at_once_dask.protocol import events
from at_once_dask.protocol.events import WorkerDied
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.worker import dask_internals
from at_once_dask.worker.time_limit import TimeLimit


class RunNannyPlugin(NannyPlugin):
    """Watches the worker of one nanny for one run; crosses to each nanny, later ones too.

    Parameters
    ----------
    run : str
    timeout : float or None
        Seconds an input may take.
    shared : int
        Bytes that all own workers hold together; they count in each one's memory.
    """

    def __init__(self, run: str, timeout: float | None, shared: int = 0) -> None:
        self.run = run
        self.timeout = timeout
        self.shared = shared
        # Partitions; of those that had the same address before, too.
        self._reported: set[str] = set()
        self._limit: TimeLimit | None = None
        self._progress_folders: dict[str, ProgressFolder] = {}  # of workers that died

    @property
    def topic(self) -> str:
        """The name of all that belongs to the run."""
        return events.topic(self.run)

    def setup(self, nanny: Any) -> None:
        self._nanny = nanny
        self._base: str = nanny.local_directory
        self._allow(self.shared)
        dask_internals.watch_exits(nanny, self.run, self.ended)
        if self.timeout is not None:
            self._limit = TimeLimit(nanny, self.run, self.timeout, self._reported)

    def teardown(self, nanny: Any) -> None:
        self._allow(-self.shared)
        if self._limit is not None:
            self._limit.stop()
        dask_internals.forget_exits(nanny, self.run)
        for progress_folder in self._progress_folders.values():
            progress_folder.clear()

    def _allow(self, n_bytes: int) -> None:
        if n_bytes and self._nanny.memory_manager.memory_limit:
            self._nanny.memory_manager.memory_limit += n_bytes

    async def _report(self, death: WorkerDied, progress_folder: ProgressFolder) -> None:
        with contextlib.suppress(OSError):  # the scheduler is gone, and nobody wants to know
            await self._nanny.scheduler.log_event(topic=self.topic, msg=events.message(death))
            progress_folder.forget(tuple(death.progress or ()))

    def ended(self, exit: int) -> None:
        """The process has gone: report what is known before the next one starts."""
        overdue = None if self._limit is None else self._limit.take_overdue()
        worker = self._nanny.worker_address
        if worker is None:
            return
        progress_folder = ProgressFolder(self._base, self.run, worker)
        progress = None
        if progress_folder.is_open():  # else somebody has taken the folder away
            contents = progress_folder.contents()
            progress = {id: left for id, left in contents.items() if id not in self._reported}
            self._reported.update(progress)
        self._progress_folders[worker] = progress_folder
        death = WorkerDied(
            worker=worker,
            at=time.monotonic(),
            epoch=time.time() - time.monotonic(),
            exit=exit,
            progress=progress,
            overdue=overdue,
            timeout=self.timeout,
            stack=progress_folder.read_stack(),
            last_words=last_words(progress_folder),
            beside=progress_folder.beside(),
            host=platform.node(),
        )
        self._nanny.loop.add_callback(self._report, death, progress_folder)
