"""When the driver is gone, ends what it has left: workers, fork server, and what inputs started.

A worker notices by itself that its driver is gone, but not while an input holds the GIL in C. So a
process of its own waits for the driver's end, however that comes. It is run as a script and imports
nothing but the standard library: it must start in no time, and does nothing nearly always.

Processes are known by a mark in the environment that they were started with, which the kernel shows
and which children inherit; those that have none, by a file they hold open in the cluster's folder.
What a worker has started without that environment is known by its group: a file in the folder
`GROUPS` is named after it, for the worker itself may be gone by the time somebody looks.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

GROUPS = "groups"  # in the cluster's folder; nothing else lies there

ROUNDS = 100  # of looking for what is left; something may be starting just now
PAUSE_SECONDS = 0.02


def watch(mark: str, folder: str, also: str | None = None) -> subprocess.Popen[bytes]:
    """Start a watchdog for this process; to be killed when there is nothing left to watch.

    Parameters
    ----------
    mark : str
        ``NAME=value``, in the environment of the processes to end.
    folder : str
        Those that hold a file in it open are ended too; removed at the end. It need not be there
        yet.
    also : str, optional
        Another folder to be removed at the end.
    """
    arguments = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark, folder]
    arguments += filter(None, [also])
    return subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )


def end_marked(mark: str, folder: str | None = None) -> bool:
    """SIGKILL for what has `mark`, or a file in `folder` open, with all that it started.

    Returns whether there was anything.
    """
    processes = dict(_processes())
    leading = set() if folder is None else set(groups(os.path.join(folder, GROUPS)))
    found = {
        pid
        for pid, (_, group) in processes.items()
        if group in leading or _has_mark(pid, mark) or (folder is not None and _holds(pid, folder))
    }
    more = found
    while more:  # children that were given another environment, and what shares a worker's group
        more = {pid for pid, (parent, group) in processes.items() if {parent, group} & found}
        more -= found
        found |= more
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Each other process that lives: its number, that of its parent, and that of its group.

    One that has ended may stay listed for ever: where the first process of a container never asks.
    """
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                # Behind the name in parentheses, in which anything may stand.
                state, parent, group = stat.read().rpartition(b")")[2].split()[:3]
                if state not in (b"Z", b"X"):
                    yield int(name), (int(parent), int(group))


def groups(folder: str) -> Iterator[int]:
    """The groups of the workers whose files are in `folder`, or in a folder in it."""
    for _, _, names in os.walk(folder):
        yield from (int(name) for name in names if name.isdigit())


def _has_mark(pid: int, mark: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        return os.fsencode(mark) in environ.read().split(b"\0")
    return False


def _holds(pid: int, folder: str) -> bool:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith(folder + os.sep):
                    return True
    return False


def _wait_for_the_end_of(driver: int) -> None:
    try:
        descriptor = os.pidfd_open(driver)
        if os.getppid() == driver:  # else its number may already be another process's
            select.select([descriptor], [], [])
    except ProcessLookupError:
        return
    except OSError:  # a kernel that cannot
        while os.getppid() == driver:
            time.sleep(0.2)


def main(driver: int, mark: str, *folders: str) -> None:
    _wait_for_the_end_of(driver)
    for _ in range(ROUNDS):
        with contextlib.suppress(Exception):  # whatever it is: the next round may do
            if not end_marked(mark, folders[0]):
                break
        time.sleep(PAUSE_SECONDS)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
