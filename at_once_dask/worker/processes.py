"""Ending processes: SIGKILL, for nothing gentler reaches a C call that holds the GIL."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import multiprocessing.process
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psutil

_MARK = "AT_ONCE_DASK_DRIVER"  # in the environment of all that the own cluster starts
_WORKER_MARK = "AT_ONCE_DASK_WORKER"  # in that of what the inputs of one worker start

_secret = secrets.token_hex(8)


def mark() -> tuple[str, str]:
    """Name and value of the environment variable that tells this driver's processes."""
    return _MARK, f"{os.getpid()}-{_secret}"


def mark_as_worker() -> None:
    """What this process starts from now on can be told from what other workers start."""
    name, _, value = worker_mark(os.environ[_MARK], os.getpid()).partition("=")
    os.environ[name] = value


def worker_mark(driver: str, pid: int) -> str:
    """What is in the environment of all that a worker starts; `driver` is the driver's mark."""
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


def _forget() -> None:
    """In a child that was forked: nobody holds a lock any more, and nobody here wants the codes."""
    global _reading, _counting, _readers
    _reading, _counting, _readers = threading.Lock(), threading.Lock(), 0
    _count(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _class_of_forked() -> Any:
    """None where nothing can be forked: there are no exit codes to be read."""
    try:
        from multiprocessing import popen_forkserver
    except ImportError:
        return None
    return popen_forkserver.Popen


_Popen = _class_of_forked()
_read_exit_code: Any = getattr(_Popen, "poll", None)
_AT_ONCE = getattr(os, "WNOHANG", 1)
_reading = threading.Lock()  # whoever comes second finds the code
_readers = 0  # those who want it so: the own cluster, and nanny plugins of borrowed ones
_counting = threading.Lock()


def _poll(self: Any, flag: int = _AT_ONCE) -> int | None:
    if self.returncode is None:
        timeout = 0 if flag == _AT_ONCE else None
        if not multiprocessing.connection.wait([self.sentinel], timeout):
            return None
    with _reading:
        code: int | None = _read_exit_code(self, _AT_ONCE)
        return code


@contextlib.contextmanager
def exit_codes_read_once() -> Iterator[None]:
    """Exit codes of forked workers are right while this lasts, for whoever asks.

    The fork server sends each code once, and `multiprocessing` has no lock around reading it. When
    one thread waits for a worker's end while another one starts a process, which looks after all
    others, both may read; the second one finds nothing there, and puts 255 in the code's place.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


@contextlib.contextmanager
def may_be_started() -> Iterator[None]:
    """Also by a process that `multiprocessing` lets have no children, for nobody would end them.

    Those of a Pool are such, and Dask's workers. The own cluster's watchdog ends what they start.
    """
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    daemonic = config.get("daemon")
    if daemonic:
        config["daemon"] = False
    try:
        yield
    finally:
        if daemonic:
            config["daemon"] = daemonic


def _count(more: int) -> None:
    global _readers
    with _counting:
        _readers += more
        if _Popen is not None:
            _Popen.poll = _poll if _readers else _read_exit_code
