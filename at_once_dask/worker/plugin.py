"""What runs in the worker processes: the run's job, kept; its partitions, worked on."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
from typing import Any

from distributed import WorkerPlugin, get_worker
from tornado.ioloop import PeriodicCallback

from at_once_dask.logs import log_file, streams
from at_once_dask.logs.descriptors import Descriptors
from at_once_dask.logs.log_file import Book
from at_once_dask.protocol import events, lease
from at_once_dask.protocol.progress_file import OVERDUE, Trail
from at_once_dask.protocol.task import Job, Outcome, Partition
from at_once_dask.user_code import pickling
from at_once_dask.user_code.main_module import Main
from at_once_dask.worker import environment, last_stack, processes
from at_once_dask.worker.environment import Settings, Surroundings
from at_once_dask.worker.partition_run import work

TELL_SECONDS = 1.0  # how often a worker tells what it is working on
COUNT_SECONDS = 0.4  # how often it looks whether something has failed
TIDY_SECONDS = 0.5  # how often it looks after output that nobody brings to the log
LOOK_SECONDS = 0.1  # how often the time of the running inputs is looked at, without a nanny
LONG_SECONDS = 2.0  # when an input counts as one that runs long


class OwnWorker(WorkerPlugin):
    """Prepares each process of the own cluster, replacements too.

    Parameters
    ----------
    groups : str
        The folder for the file of its group.
    """

    def __init__(self, groups: str) -> None:
        self.groups = groups

    def setup(self, worker: Any) -> None:
        # A group of its own: it ends as one, and the terminal's Ctrl-C reaches the driver only.
        os.setpgid(0, 0)
        # For the watchdog: where somebody else had started the fork server, this has no mark.
        held = processes.group_file(self.groups, os.getpid())
        os.open(held, os.O_WRONLY | os.O_CREAT, 0o600)
        while signal.sigtimedwait({signal.SIGINT}, 0) is not None:
            pass  # it came while this was still in the driver's group
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see forkserver
        # Forked from a process in which NumPy is imported, all would draw the same numbers.
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()

    def teardown(self, worker: Any) -> None:
        processes.end(processes.descendants(os.getpid()))


class _Sealed:
    """A job as it came: opened by the first partition, by one thread, once a process."""

    def __init__(
        self,
        job: bytes | str,
        book: Book,
        trail: Trail,
        shelves: str | None,
        folder: str,
        settings: Settings | None,
    ) -> None:
        self.settings = settings
        self.book = book
        self.trail = trail
        self.shelves = shelves
        self._main = Main(folder)
        self._sealed = job
        self._job: Job | None = None
        self._lock = threading.Lock()

    def open(self) -> Job:
        """The job; from now on ``__main__`` is that of its run."""
        with self._lock:
            self._main.take_place()
            if self._job is None:
                self._job = Job(*self._main.fill(self._unsealed()))
                self._sealed = b""
                pickling.share(vars(self._main))
            return self._job

    def _unsealed(self) -> bytes | mmap.mmap:
        if isinstance(self._sealed, bytes):
            return self._sealed
        with open(self._sealed, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def close(self) -> None:
        self._main.leave()


_JOBS: dict[str, _Sealed] = {}  # of this process, by run
_while_there_are_jobs = contextlib.ExitStack()


class RunPlugin(WorkerPlugin):
    """Brings a run to every worker once, to later ones and replacements too.

    Parameters
    ----------
    run : str
    job : bytes or str
        The pickled Job, or the path of a file with it.
    book : Book
        Where the log goes.
    surroundings : Surroundings or None
        What to adopt first; nothing on a borrowed cluster.
    timeout : float or None
        Seconds an input may take. A nanny sees to it; where there is none, the worker ends itself,
        if it can: not while C code holds the GIL.
    settings : Settings or None
        Of the driver, for the threads that run inputs; nothing on a borrowed cluster.
    shelves : str or None
        A folder for large values, where all workers see it; None: they cross to the driver.
    """

    def __init__(
        self,
        run: str,
        job: bytes | str,
        book: Book,
        surroundings: Surroundings | None,
        timeout: float | None = None,
        shelves: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.run = run
        self.settings = settings
        self.shelves = shelves
        self.job = job
        self.book = book
        self.surroundings = surroundings
        self.timeout = timeout

    def setup(self, worker: Any) -> None:
        if self.surroundings is not None:
            self.surroundings.adopt()
        log_file.tell_by(worker.log_event)
        self.book = self.book.here()
        self._trail = Trail(os.path.dirname(worker.local_directory), self.run, worker.address)
        folder = os.path.join(worker.local_directory, f"main-{self.run}")
        if not _JOBS:
            _while_there_are_jobs.enter_context(environment.computing_in_place())
            _while_there_are_jobs.enter_context(processes.may_be_started())
        _JOBS[self.run] = _Sealed(
            self.job, self.book, self._trail, self.shelves, folder, self.settings
        )
        self.job = b""
        self._trail.open()
        self._stack = self._trail.open_stack()
        self._writes_stack = last_stack.begin(self._stack)
        if not self._writes_stack:
            os.unlink(self._trail.stack)  # so nobody asks for it
        self._failing: dict[str, int] = {}
        self._callbacks = [
            PeriodicCallback(lambda: self._tell(worker), TELL_SECONDS * 1000),
            PeriodicCallback(lambda: self._tell_failing(worker), COUNT_SECONDS * 1000),
            PeriodicCallback(lambda: streams.tidy(self.run), TIDY_SECONDS * 1000),
        ]
        if worker.nanny is None and self.timeout is not None:
            self._callbacks.append(PeriodicCallback(self._end_when_overdue, LOOK_SECONDS * 1000))
        for callback in self._callbacks:
            callback.start()
        self._descriptors = self._captured_descriptors(worker)
        streams.begin(self.book, self._descriptors)

    def _captured_descriptors(self, worker: Any) -> Descriptors | None:
        """In an own worker: in a borrowed one others write, too."""
        if self.surroundings is None or not (self.book.captures and self.book.is_near):
            return None
        try:
            return Descriptors(self.book, worker.address, self._trail)
        except OSError:  # the disk is full, or the kernel cannot tell of changes
            return None

    def _end_when_overdue(self) -> None:
        assert self.timeout is not None
        for mine in lease.running():
            if mine.id.startswith(self.run) and mine.seconds > self.timeout:
                mine.head[OVERDUE] = 1
                os.kill(os.getpid(), signal.SIGKILL)

    def _tell(self, worker: Any) -> None:
        found = lease.longest_running(self.run)
        if found is not None and found[0] > LONG_SECONDS:
            worker.log_event(events.topic(self.run), {"running": found, "worker": worker.address})

    def _tell_failing(self, worker: Any) -> None:
        """A failure counts at once in the progress, however long its partition goes on."""
        before, self._failing = self._failing, lease.failing(self.run)
        if self._failing != before and self._failing:
            worker.log_event(events.topic(self.run), {"failing": self._failing})

    def teardown(self, worker: Any) -> None:
        for callback in self._callbacks:
            callback.stop()
        streams.end(self.book)
        if self._descriptors is not None:
            self._descriptors.close()
        if self._writes_stack:
            last_stack.end()
        self._stack.close()
        _JOBS.pop(self.run).close()
        if not _JOBS:
            _while_there_are_jobs.close()
        lease.forget(self.run)
        self._trail.clear()


def run_partition(partition: Partition) -> Outcome:
    """The one task that Dask sees."""
    sealed = _JOBS[partition.run]
    try:
        worker = get_worker().address
        environment.give_event_loop()
        if sealed.settings is not None:
            sealed.settings.adopt()
        with streams.of_run(sealed.book, worker):
            return work(sealed.open, sealed.book, partition, worker, sealed.trail, sealed.shelves)
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error  # or the worker would end
