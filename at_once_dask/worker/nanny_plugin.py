"""In each nanny: enforces the time limit, and reports how a worker died, and over what.

A nanny outlives its worker, and is on the same host. Those of the own cluster are in the driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from distributed import NannyPlugin
from tornado.ioloop import PeriodicCallback

from at_once_dask.logs.descriptors import last_words
from at_once_dask.protocol import events
from at_once_dask.protocol.events import WorkerDied
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.worker import dask_internals
from at_once_dask.worker.last_stack import ASK, is_written
from at_once_dask.worker.processes import end_tree

LOOK_SECONDS = 0.1  # how often the time of the running inputs is looked at
STACK_SECONDS = 2  # a worker has at most this long to write down where it is: a machine may be busy
STACK_LOOK_SECONDS = 0.01  # how often it is looked whether it has


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
        self._overdue: tuple[str, int] | None = None
        # Partitions; of those that had the same address before, too.
        self._reported: set[str] = set()
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
        self._looker = PeriodicCallback(self._look, LOOK_SECONDS * 1000)
        if self.timeout is not None:
            self._looker.start()

    def teardown(self, nanny: Any) -> None:
        self._allow(-self.shared)
        self._looker.stop()
        dask_internals.forget_exits(nanny, self.run)
        for progress_folder in self._progress_folders.values():
            progress_folder.clear()

    def _allow(self, n_bytes: int) -> None:
        if n_bytes and self._nanny.memory_manager.memory_limit:
            self._nanny.memory_manager.memory_limit += n_bytes

    def _look(self) -> None:
        """End the worker when an input of it has run for longer than it may."""
        pid, worker = self._nanny.pid, self._nanny.worker_address
        if pid is None or worker is None or self._overdue is not None:
            return
        progress_folder = ProgressFolder(self._base, self.run, worker)
        self._overdue = self._find_overdue(progress_folder)
        if self._overdue is None:
            return
        if os.path.exists(progress_folder.stack):
            found = progress_folder.look(self._overdue[0])
            thread = None if found is None else found.thread
            self._nanny.loop.add_callback(self._ask_and_end, pid, progress_folder, thread)
        else:
            self._end(pid, progress_folder)

    def _find_overdue(self, progress_folder: ProgressFolder) -> tuple[str, int] | None:
        assert self.timeout is not None
        latest = time.monotonic() - self.timeout
        for id, reached, since in progress_folder.running():
            # Those reported were of the process before: until it is replaced, the address stays.
            if since < latest and id not in self._reported:
                return id, reached
        return None

    async def _ask_and_end(
        self, pid: int, progress_folder: ProgressFolder, thread: int | None
    ) -> None:
        """End it when it has written down where it is: on a busy machine that takes a while."""
        before = len(progress_folder.read_stack())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, ASK)
        latest = time.monotonic() + STACK_SECONDS
        while time.monotonic() < latest and not is_written(
            progress_folder.read_stack()[before:], thread
        ):
            await asyncio.sleep(STACK_LOOK_SECONDS)
        self._end(pid, progress_folder)

    def _end(self, pid: int, progress_folder: ProgressFolder) -> None:
        """SIGKILL, unless it went on in that moment: then the next input is innocent."""
        if self._nanny.pid != pid:
            return
        if self._find_overdue(progress_folder) == self._overdue:
            end_tree(pid)
        else:
            self._overdue = None

    async def _report(self, death: WorkerDied, progress_folder: ProgressFolder) -> None:
        with contextlib.suppress(OSError):  # the scheduler is gone, and nobody wants to know
            await self._nanny.scheduler.log_event(topic=self.topic, msg=events.message(death))
            progress_folder.forget(tuple(death.progress or ()))

    def ended(self, exit: int) -> None:
        """The process has gone: report what is known before the next one starts."""
        overdue, self._overdue = self._overdue, None
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
        )
        self._nanny.loop.add_callback(self._report, death, progress_folder)
