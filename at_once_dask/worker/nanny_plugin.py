"""In each nanny: enforces the time limit, and tells the driver how a worker died, and over what.

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
from at_once_dask.protocol.progress_file import Trail
from at_once_dask.worker.last_stack import ASK, is_written
from at_once_dask.worker.processes import end_tree, exit_codes_read_once

_GUARDS = "at_once_dask_guards"  # an attribute of a nanny
_READING = "at_once_dask_reading"  # another one: what is undone when the last guard leaves
LOOK_SECONDS = 0.1  # how often the time of the running inputs is looked at
STACK_SECONDS = 2  # a worker has at most this long to write down where it is: a machine may be busy
STACK_LOOK_SECONDS = 0.01  # how often it is looked whether it has


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
        _guards(nanny)[self.run] = self
        self._looker = PeriodicCallback(self._look, LOOK_SECONDS * 1000)
        if self.timeout is not None:
            self._looker.start()

    def teardown(self, nanny: Any) -> None:
        self._looker.stop()
        guards = _guards(nanny)
        guards.pop(self.run, None)
        if not guards:
            _leave(nanny)
        for trail in self._trails.values():
            trail.clear()

    def _look(self) -> None:
        """End the worker when an input of it has run for longer than it may."""
        pid, worker = self._nanny.pid, self._nanny.worker_address
        if pid is None or worker is None or self._overdue is not None:
            return
        trail = Trail(self._base, self.run, worker)
        self._overdue = self._find_overdue(trail)
        if self._overdue is None:
            return
        if os.path.exists(trail.stack):
            thread = trail.thread_of(self._overdue[0])
            self._nanny.loop.add_callback(self._ask_and_end, pid, trail, thread)
        else:
            self._end(pid, trail)

    def _find_overdue(self, trail: Trail) -> tuple[str, int] | None:
        assert self.timeout is not None
        latest = time.monotonic() - self.timeout
        for id, position, since in trail.current():
            # Those told were of the process before: until it is replaced, the address stays.
            if since < latest and id not in self._told:
                return id, position
        return None

    async def _ask_and_end(self, pid: int, trail: Trail, thread: int | None) -> None:
        """End it when it has written down where it is: on a busy machine that takes a while."""
        before = len(trail.read_stack())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, ASK)
        latest = time.monotonic() + STACK_SECONDS
        while time.monotonic() < latest and not is_written(trail.read_stack()[before:], thread):
            await asyncio.sleep(STACK_LOOK_SECONDS)
        self._end(pid, trail)

    def _end(self, pid: int, trail: Trail) -> None:
        """SIGKILL, unless it went on in that moment: then the next input is innocent."""
        if self._nanny.pid != pid:
            return
        if self._find_overdue(trail) == self._overdue:
            end_tree(pid)
        else:
            self._overdue = None

    async def _tell(self, news: dict[str, Any], trail: Trail) -> None:
        with contextlib.suppress(OSError):  # the scheduler is gone, and nobody wants to know
            await self._nanny.scheduler.log_event(topic=events.topic(self.run), msg={"died": news})
            trail.forget(tuple(news["traces"] or ()))

    def ended(self, exit: int) -> None:
        """The process has gone: tell what is known before the next one starts."""
        overdue, self._overdue = self._overdue, None
        worker = self._nanny.worker_address
        if worker is not None:
            trail = Trail(self._base, self.run, worker)
            traces = None
            if trail.is_open():  # else somebody has taken the folder away
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
                "last_words": last_words(trail),
            }
            self._nanny.loop.add_callback(self._tell, news, trail)


def _guards(nanny: Any) -> dict[str, Guard]:
    """The guards of a nanny, by run: several drivers may share it. Each is told of a death."""
    if not hasattr(nanny, _GUARDS):
        guards: dict[str, Guard] = {}
        setattr(nanny, _GUARDS, guards)
        reading = contextlib.ExitStack()
        reading.enter_context(exit_codes_read_once())
        setattr(nanny, _READING, reading)
        tell_exit = nanny._on_worker_exit_sync

        def ended(exit: int) -> None:
            for guard in list(guards.values()):
                guard.ended(exit)
            tell_exit(exit)

        nanny._on_worker_exit_sync = ended  # for the processes to come
        if nanny.process is not None:
            nanny.process.on_exit = ended  # for the one that runs
    found: dict[str, Guard] = getattr(nanny, _GUARDS)
    return found


def _leave(nanny: Any) -> None:
    """The nanny is as it was."""
    delattr(nanny, _GUARDS)
    getattr(nanny, _READING).close()
    delattr(nanny, _READING)
    del nanny._on_worker_exit_sync
    if nanny.process is not None:
        nanny.process.on_exit = nanny._on_worker_exit_sync
