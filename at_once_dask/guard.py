"""In each nanny: enforces the time limit, and tells the driver how a worker died, and over what.

A nanny outlives its worker, and is on the same host. Those of the own cluster are in the driver.
"""

from __future__ import annotations

import time
from typing import Any

from distributed import NannyPlugin
from tornado.ioloop import PeriodicCallback

from at_once_dask import journal
from at_once_dask.crumb import Trail
from at_once_dask.processes import end_tree

LOOK_SECONDS = 0.1  # how often the time of the running inputs is looked at


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

    def _look(self) -> None:
        """End the worker when an input of it has run for longer than it may."""
        pid, worker = self._nanny.pid, self._nanny.worker_address
        if pid is None or worker is None or self._overdue is not None:
            return
        now = time.monotonic()
        for id, position, since in Trail(self._base, self.run, worker).current():
            if self.timeout is not None and now - since > self.timeout:
                self._overdue = id, position
                end_tree(pid)
                return

    def _ended(self, exit: int) -> None:
        """The process has gone: tell what is known before the next one starts."""
        overdue, self._overdue = self._overdue, None
        worker = self._nanny.worker_address
        if worker is not None:
            trail = Trail(self._base, self.run, worker)
            news = {
                "worker": worker,
                "at": time.monotonic(),
                "epoch": time.time() - time.monotonic(),
                "exit": exit,
                "traces": trail.traces(),
                "overdue": overdue,
                "timeout": self.timeout,
            }
            trail.clear()
            self._nanny.log_event(journal.topic(self.run), {"died": news})
        self._tell_exit(exit)
