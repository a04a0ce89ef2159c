"""In each nanny: enforces the time limit, and tells the driver how a worker died, and over what.

A nanny outlives its worker, and is on the same host. Those of the own cluster are in the driver.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from distributed import NannyPlugin
from tornado.ioloop import PeriodicCallback

from at_once_dask import journal
from at_once_dask.crumb import Trail
from at_once_dask.processes import end_tree
from at_once_dask.stack import ASK

LOOK_SECONDS = 0.1  # how often the time of the running inputs is looked at
STACK_SECONDS = 0.05  # for a worker to write down where it is


class Guard(NannyPlugin):
    """Watches the worker of one nanny for one run; crosses to each nanny, later ones too.

    Parameters
    ----------
    run : str
    timeout : float or None
        Seconds an input may take.
    """

    def __init__(self, run: str, timeout: float | None) -> None:
        self.run = run
        self.timeout = timeout
        self._overdue: tuple[str, int] | None = None
        self._told: set[str] = set()  # partitions: of those that had the same address before, too
        self._trails: dict[str, Trail] = {}  # of workers that died

    def setup(self, nanny: Any) -> None:
        self._nanny = nanny
        self._base: str = nanny.local_directory
        self._tell_exit = nanny._on_worker_exit_sync
        # For the processes to come, and for the one that runs.
        nanny._on_worker_exit_sync = self._ended
        if nanny.process is not None:
            nanny.process.on_exit = self._ended
        self._looker = PeriodicCallback(self._look, LOOK_SECONDS * 1000)
        if self.timeout is not None:
            self._looker.start()

    def teardown(self, nanny: Any) -> None:
        self._looker.stop()
        nanny._on_worker_exit_sync = self._tell_exit
        if nanny.process is not None:
            nanny.process.on_exit = self._tell_exit
        for trail in self._trails.values():
            trail.clear()

    def _look(self) -> None:
        """End the worker when an input of it has run for longer than it may."""
        pid, worker = self._nanny.pid, self._nanny.worker_address
        if pid is None or worker is None or self._overdue is not None:
            return
        now = time.monotonic()
        for id, position, since in Trail(self._base, self.run, worker).current():
            if id in self._told:  # of the process before; until it is replaced, the address stays
                continue
            if self.timeout is not None and now - since > self.timeout:
                self._overdue = id, position
                self._end(pid, worker)
                return

    def _end(self, pid: int, worker: str) -> None:
        """SIGKILL, after a moment in which it writes down where it is, if it can."""
        if os.path.exists(Trail(self._base, self.run, worker).stack):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, ASK)
            self._nanny.loop.call_later(STACK_SECONDS, self._end_really, pid)
        else:
            end_tree(pid)

    def _end_really(self, pid: int) -> None:
        if self._nanny.pid == pid:
            end_tree(pid)

    def _ended(self, exit: int) -> None:
        """The process has gone: tell what is known before the next one starts."""
        overdue, self._overdue = self._overdue, None
        worker = self._nanny.worker_address
        if worker is not None:
            trail = Trail(self._base, self.run, worker)
            traces = {id: left for id, left in trail.traces().items() if id not in self._told}
            self._told.update(traces)
            self._trails[worker] = trail
            news = {
                "worker": worker,
                "at": time.monotonic(),
                "epoch": time.time() - time.monotonic(),
                "exit": exit,
                "traces": traces,
                "overdue": overdue,
                "timeout": self.timeout,
                "stack": trail.read_stack(),
            }
            self._nanny.log_event(journal.topic(self.run), {"died": news})
        self._tell_exit(exit)
