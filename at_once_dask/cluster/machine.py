"""Whether this machine can have a cluster: known before anything starts, with what to do about it.

Dask finds out too, with a hundred lines of tracebacks that do not name the cause.
"""

from __future__ import annotations

import multiprocessing
import os
import socket

from at_once_dask.cluster.forkserver import allow_descriptors
from at_once_dask.errors import AtOnceError

SHARED_MEMORY = "/dev/shm"
SEMAPHORES = 6  # of a worker: in the two queues between it and its nanny; a page of memory each
DESCRIPTORS = 16  # of a worker, in this process; 13 were counted
DESCRIPTORS_OF_ALL = 40  # of the scheduler, the dashboard and the client
CONNECT_SECONDS = 5.0

_OR_ELSE = "or pass a Client of another machine's cluster, as in run(..., client=client)"


def check(n_workers: int) -> None:
    """Raise AtOnceError, which names the cause and the remedy, where no cluster can start."""
    check_descriptors(n_workers)
    check_shared_memory(n_workers)
    check_loopback()


def check_descriptors(n_workers: int) -> None:
    others = len(os.listdir("/proc/self/fd")) + DESCRIPTORS_OF_ALL
    needed = others + DESCRIPTORS * n_workers
    allowed = allow_descriptors(needed)
    if allowed < needed:
        fewer = (allowed - others) // DESCRIPTORS
        instead = f", or take fewer workers: at_once_dask.start(n_workers={fewer})"
        raise AtOnceError(
            f"{n_workers} workers take some {needed} open files and sockets in this process, and it"
            f" may have {allowed}; allow it more before it starts, as with `ulimit -Hn 4096; ulimit"
            f" -n 4096` or `docker run --ulimit nofile=4096`{instead if fewer > 0 else ''}"
        )


def check_shared_memory(n_workers: int) -> None:
    """Locks between processes are files in it."""
    try:
        multiprocessing.get_context("forkserver").Lock()
    except (OSError, ImportError) as error:
        raise AtOnceError(
            f"no locks between processes can be made in {SHARED_MEMORY} ({error}); have it mounted"
            f" so that it can be written to, as with `mount -t tmpfs none {SHARED_MEMORY}` or"
            f" `docker run --shm-size=64m`, {_OR_ELSE}"
        ) from None
    needed = SEMAPHORES * n_workers * os.sysconf("SC_PAGE_SIZE")
    found = os.statvfs(SHARED_MEMORY)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # there are those without a limit, and without blocks
        raise AtOnceError(
            f"{SHARED_MEMORY} has {free:,} bytes left, and locks between this process and"
            f" {n_workers} workers take {needed:,}; remove what is in it, or give it more, as with"
            f" `mount -o remount,size=64m {SHARED_MEMORY}` or `docker run --shm-size=64m`,"
            f" {_OR_ELSE}"
        )


def check_loopback() -> None:
    """All of the cluster talks on it."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), CONNECT_SECONDS).close()
    except OSError as error:
        raise AtOnceError(
            f"this process cannot connect to itself on 127.0.0.1 ({error}); bring the loopback"
            f" device up, as with `ip link set lo up`, {_OR_ELSE}"
        ) from None
