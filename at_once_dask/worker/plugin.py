"""Runs in the worker processes: keeps the run's job, and works on its partitions."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pickle import dumps
from typing import Any

from distributed import WorkerPlugin, get_worker
from distributed.core import Status
from tornado.ioloop import PeriodicCallback

from at_once_dask.logs import log_file, streams
from at_once_dask.logs.descriptors import Descriptors
from at_once_dask.logs.log_file import RunLog
from at_once_dask.protocol import events, lease
from at_once_dask.protocol.events import Running, WorkerLeft
from at_once_dask.protocol.progress_folder import ProgressFolder
from at_once_dask.protocol.shared_file import Copies, OnHost, Parts
from at_once_dask.protocol.task import Job, Outcome, Partition
from at_once_dask.user_code import pickling
from at_once_dask.user_code.main_module import Main
from at_once_dask.user_code.text import safe_repr
from at_once_dask.worker import dask_internals, last_stack, processes
from at_once_dask.worker.bag import Bags
from at_once_dask.worker.environment import (
    Environment,
    InterpreterSettings,
    computing_in_place,
    give_event_loop,
)
from at_once_dask.worker.partition_run import work

REPORT_SECONDS = 1.0  # how often a worker reports what runs long
_AT_WORK = {"executing", "long-running", "cancelled", "resumed"}  # states in which a task may run
TIDY_SECONDS = 0.5  # how often it looks after output that nobody brings to the log


class OwnWorkerPlugin(WorkerPlugin):
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


class _SealedJob:
    """A job as it came: opened by the first partition, by one thread, once a process."""

    def __init__(self, run: RunPlugin, job: Parts | Copies, folder: str) -> None:
        self.run = run
        self._main = Main(folder)
        self._sealed = job
        self._bags: Bags | None = None
        self._lock = threading.Lock()

    def open(self) -> Bags:
        """The functions; from now on ``__main__`` is that of their run."""
        with self._lock:
            self._main.take_place()
            if self._bags is None:
                stream, *buffers = self._sealed.open()
                self._bags = Bags(Job(*self._main.fill(stream, buffers)))
                self._sealed = Copies(())
                pickling.share(vars(self._main))
            return self._bags

    def close(self) -> None:
        self._main.leave()


_JOBS: dict[str, _SealedJob] = {}  # of this process, by run
_while_there_are_jobs = contextlib.ExitStack()


class RunPlugin(WorkerPlugin):
    """Brings a run to every worker once, to later ones and replacements too.

    Parameters
    ----------
    run : str
    job : Parts, OnHost or Copies
        The pickled Job, and the large arrays that are not in the pickle.
    run_log : RunLog
        Where the log goes.
    environment : Environment or None
        What the worker adopts first; nothing on a borrowed cluster.
    settings : InterpreterSettings or None
        What the threads that run inputs adopt; nothing on a borrowed cluster.
    values_folder : str or None
        A folder for large values, where all workers see it; None: they cross to the driver.
    """

    def __init__(
        self,
        run: str,
        job: Parts | OnHost | Copies,
        run_log: RunLog,
        environment: Environment | None = None,
        settings: InterpreterSettings | None = None,
        values_folder: str | None = None,
    ) -> None:
        self.run = run
        self.job = job
        self.run_log = run_log
        self.environment = environment
        self.settings = settings
        self.values_folder = values_folder

    def setup(self, worker: Any) -> None:
        if self.environment is not None:
            self.environment.adopt()
        log_file.report_by(worker.log_event)
        self.run_log = self.run_log.here()
        self.progress = ProgressFolder(
            os.path.dirname(worker.local_directory), self.run, worker.address
        )
        job = self.job.at(self.progress.job) if isinstance(self.job, OnHost) else self.job
        self._take_job(job, os.path.join(worker.local_directory, f"main-{self.run}"))
        self.progress.open()
        at_work = worker.state.executing | worker.state.long_running
        self._beside: set[Any] = {task.key for task in at_work if self.run not in str(task.key)}
        self._beside_file = self.progress.open_beside()
        os.pwrite(self._beside_file, b"%8d" % len(self._beside), 0)
        self._stack = self.progress.open_stack()
        self._writes_stack = last_stack.begin(self._stack)
        if not self._writes_stack:
            os.unlink(self.progress.stack)  # so nobody asks for it
        self._callbacks = [
            PeriodicCallback(lambda: streams.tidy(self.run), TIDY_SECONDS * 1000),
            PeriodicCallback(lambda: self._report(worker), REPORT_SECONDS * 1000),
        ]
        for callback in self._callbacks:
            callback.start()
        self._descriptors = self._captured_descriptors(worker)
        streams.begin(self.run_log, self._descriptors)

    def _take_job(self, job: Parts | Copies, folder: str) -> None:
        if not _JOBS:
            _while_there_are_jobs.enter_context(computing_in_place())
            _while_there_are_jobs.enter_context(dask_internals.may_be_started())
        _JOBS[self.run] = _SealedJob(self, job, folder)
        self.job = Copies(())

    def _captured_descriptors(self, worker: Any) -> Descriptors | None:
        """In an own worker: in a borrowed one others write, too."""
        if self.environment is None or not (self.run_log.captures and self.run_log.is_near):
            return None
        try:
            return Descriptors(self.run_log, worker.address, self.progress)
        except OSError:  # the disk is full, or the kernel cannot tell of changes
            return None

    def _report(self, worker: Any) -> None:
        """Report what runs long; from the own cluster's workers the driver knows it."""
        if self.environment is not None:
            return
        found = lease.longest_running(self.run)
        if found is not None and found[0] > events.LONG_SECONDS:
            seconds, stage, inp = found
            event = Running(worker.address, seconds, stage, safe_repr(inp))
            worker.log_event(events.topic(self.run), events.message(event))

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Note how many tasks of others this process works on: one of them may end it."""
        if self.run in str(key) or not {start, finish} & _AT_WORK:
            return
        if finish in _AT_WORK:
            self._beside.add(key)
        else:
            self._beside.discard(key)
        with contextlib.suppress(OSError):  # the disk is full
            os.pwrite(self._beside_file, b"%8d" % len(self._beside), 0)

    def teardown(self, worker: Any) -> None:
        for callback in self._callbacks:
            callback.stop()
        if worker.status in (Status.closing, Status.closing_gracefully):
            self._take_leave(worker)
        streams.end(self.run_log)
        if self._descriptors is not None:
            self._descriptors.close()
        if self._writes_stack:
            last_stack.end()
        self._stack.close()
        os.close(self._beside_file)
        _JOBS.pop(self.run).close()
        if not _JOBS:
            _while_there_are_jobs.close()
        lease.forget(self.run)
        self.progress.clear()

    def _take_leave(self, worker: Any) -> None:
        """Tell the driver how far this has come: it is closed before the run is over.

        Where only the run were over, the worker would not be closing.
        """
        lease.take_back([(id, 0) for id in list(lease.LEASES) if id.startswith(self.run)], True)
        now = time.monotonic()
        event = WorkerLeft(
            worker=worker.address,
            directory=worker.local_directory,
            at=now,
            epoch=time.time() - now,
            progress=self.progress.contents(),
        )
        worker.log_event(events.topic(self.run), events.message(event))


def run_partition(partition: Partition) -> Outcome | None:
    """The one task that Dask sees; None where its outcome lies in a file for the driver."""
    job = _JOBS[partition.run]
    run = job.run
    try:
        worker = get_worker().address
        give_event_loop()
        if run.settings is not None:
            run.settings.adopt()
        with streams.of_run(run.run_log, worker):
            outcome = work(
                job.open, run.run_log, partition, worker, run.progress, run.values_folder
            )
        if run.values_folder is not None and run.progress.leave(partition.id, dumps(outcome)):
            return None
        return outcome
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error  # or the worker would end
