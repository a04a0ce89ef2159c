"""The process that forks the workers, with what they need imported."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal

from at_once_dask import processes

PRELOADED = ["at_once_dask.preload"]

# So that libraries do not start a thread a core in every worker; the driver's own settings win.
THREAD_LIMITS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# As Dask gives it to workers, with the same hashes in each; but without its
# ``MALLOC_TRIM_THRESHOLD_``, which has them give memory back at once: each new megabyte would cost
# 250 page faults.
ENVIRONMENT = THREAD_LIMITS | {"PYTHONHASHSEED": "6640"}


def start() -> None:
    """Start it, unless it runs; it imports by itself, nobody waits for it here.

    It stays for as long as this process, and ends with it.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    # A Ctrl-C is for the driver. The fork server, and workers until they have a group of their
    # own, would get it too, and die of it in the middle of an import. (The resource tracker comes
    # first: to start it takes the block away. And it must not have the mark: it tidies up behind
    # a driver that was killed.)
    multiprocessing.resource_tracker.ensure_running()
    missing |= dict([processes.mark()])
    os.environ.update(missing)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in missing:
            del os.environ[name]
