"""What a cluster, or a program, could leave behind."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import multiprocessing.spawn
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import dask
import psutil
from distributed import Client
from helpers import poll_for

import at_once_dask

ANY_PORT = "127.0.0.1:0"


def nothing(inp: object) -> None:
    """The smallest `process_inp`."""


def run_a_few(**run_kwargs: Any) -> at_once_dask.Report:
    report: at_once_dask.Report = at_once_dask.run(
        range(4), None, nothing, progress=False, **run_kwargs
    )
    return report


def pids_of(client: Client) -> dict[str, int]:
    pids: dict[str, int] = client.run(os.getpid)
    return pids


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may stay in the table as a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def sockets_of(process: psutil.Process) -> list[Any]:
    """What waits for others, TCP or UDP, in the operating system's table."""
    waiting = (psutil.CONN_LISTEN, psutil.CONN_NONE)
    return [c for c in process.net_connections(kind="inet") if c.status in waiting]


def snapshot() -> dict[str, Any]:
    """All of this process that a cluster could leave changed."""
    stay = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
    children = psutil.Process().children(recursive=True)
    environment = dict(os.environ)
    environment.pop("__DASK_PARENT_PID", None)  # Dask's note for the names of processes
    return {
        "processes": [c for c in map(command, children) if not any(name in c for name in stay)],
        # But the one that Dask starts once in a process and keeps.
        "threads": sorted(t.name for t in threading.enumerate() if "Dask-Offload" not in t.name),
        "sockets": [s.laddr for s in sockets_of(psutil.Process())],
        "files": sorted(f for f in os.listdir(tempfile.gettempdir()) if not f.startswith("pymp-")),
        "config": copy.deepcopy(dask.config.config),
        "preparation": multiprocessing.spawn.get_preparation_data,
        "filters": list(warnings.filters),
        "environment": environment,
        "path": list(sys.path),
        "directory": os.getcwd(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
    }


def command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


def poll_until_same(before: dict[str, Any]) -> None:
    def changed() -> dict[str, Any]:
        return {name: value for name, value in snapshot().items() if value != before[name]}

    poll_for(lambda: not changed(), "something is left", changed)


def start_run_close() -> None:
    """Seconds that `close` takes are few."""
    client = at_once_dask.start(2, dashboard_address=ANY_PORT)
    workers = list(pids_of(client).values())
    assert run_a_few().ok
    begun = time.monotonic()
    at_once_dask.close()
    assert time.monotonic() - begun < 3
    assert not any(map(is_alive, workers))
