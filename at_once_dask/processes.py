"""Ending processes: SIGKILL, for nothing gentler reaches a C call that holds the GIL."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil


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


def end_tree(pid: int) -> None:
    """`pid`, its group when it leads one, and what it started; some may have left the group."""
    found = descendants(pid)
    end_group(pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        end([psutil.Process(pid)])
    end(found)
