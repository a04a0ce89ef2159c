"""The time limit of inputs: the nanny ends a worker that is past it, and learns where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Container
from typing import Any

from tornado.ioloop import PeriodicCallback

from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.worker.last_stack import ASK, is_written
from at_once_dask.worker.processes import end_tree

LOOK_SECONDS = 0.1  # how often the time of the running inputs is looked at
STACK_SECONDS = 2  # a worker has at most this long to write down where it is: a machine may be busy
STACK_LOOK_SECONDS = 0.01  # how often it is looked whether it has


class TimeLimit:
    """Holds the worker of one nanny to the time that its inputs may take.

    Parameters
    ----------
    nanny : distributed.Nanny
    run : str
    seconds : float
    reported : container of str
        Partitions that do not count. They are of the process before: until it is replaced, the
        address stays, and so do its files.
    """

    def __init__(self, nanny: Any, run: str, seconds: float, reported: Container[str]) -> None:
        self._nanny = nanny
        self._run = run
        self._seconds = seconds
        self._reported = reported
        self._overdue: tuple[str, int] | None = None
        self._looker = PeriodicCallback(self._look, LOOK_SECONDS * 1000)
        self._looker.start()

    def stop(self) -> None:
        self._looker.stop()

    def take_overdue(self) -> tuple[str, int] | None:
        """Partition and position that the worker was ended for; the next one starts afresh."""
        overdue, self._overdue = self._overdue, None
        return overdue

    def _look(self) -> None:
        """End the worker when an input of it has run for longer than it may."""
        pid, worker = self._nanny.pid, self._nanny.worker_address
        if pid is None or worker is None or self._overdue is not None:
            return
        progress_folder = ProgressFolder(self._nanny.local_directory, self._run, worker)
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
        latest = time.monotonic() - self._seconds
        for id, reached, since in progress_folder.running():
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
