"""Ending processes: SIGKILL, for nothing gentler reaches a C call that holds the GIL."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal

import psutil

_MARK = "AT_ONCE_DASK_DRIVER"  # in the environment of all that the own cluster starts
_WORKER_MARK = "AT_ONCE_DASK_WORKER"  # in that of what the inputs of one worker start

_secret = secrets.token_hex(8)


def mark() -> tuple[str, str]:
    """Name and value of the environment variable that tells this driver's processes."""
    return _MARK, f"{os.getpid()}-{_secret}"


def mark_as_worker() -> None:
    """Mark all that this process starts from now on as started by this worker."""
    name, _, value = worker_mark(os.environ[_MARK], os.getpid()).partition("=")
    os.environ[name] = value


def worker_mark(driver: str, pid: int) -> str:
    """The mark in the environment of all that a worker starts; `driver` is the driver's mark."""
    return f"{_WORKER_MARK}={driver}-{pid}"


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end_group(pid: int) -> None:
    """The group that `pid` leads, when it leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def group_file(folder: str, pid: int) -> str:
    """Worker `pid` holds it open; it is there while that is alive."""
    return os.path.join(folder, str(pid))


def end_tree(pid: int) -> None:
    """`pid`, its group when it leads one, and what it started; some may have left the group."""
    found = descendants(pid)
    end_group(pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        end([psutil.Process(pid)])
    end(found)
