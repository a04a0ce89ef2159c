"""One own cluster for the session; after each test nothing is left that was not there before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client
from helpers import poll_for

import at_once_dask


@pytest.fixture(scope="session", autouse=True)
def _at_the_end() -> Iterator[None]:
    yield
    at_once_dask.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the test, with the log in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(at_once_dask, "logfile", tmp_path / "log.jsonl")
    return tmp_path


@pytest.fixture
def cluster() -> Client:
    """The own cluster with two workers: started by the first test that needs it, then kept."""
    client = at_once_dask.start(2, dashboard_address="127.0.0.1:0")
    client.wait_for_workers(2, timeout=30)
    at_once_dask.run(range(4), None, print_nothing, progress=False)
    return client


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest, folder: Path) -> Iterator[None]:
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster")
    processes, threads, ports = _processes(), _threads(), _ports()
    yield
    poll_for(lambda: len(_processes()) <= len(processes), "processes are left behind", _processes)
    poll_for(lambda: len(_threads()) <= len(threads), "threads are left behind", _threads)
    poll_for(lambda: len(_ports()) <= len(ports), "ports are left listening", _ports)


def print_nothing(inp: object) -> None:
    """The smallest `process_inp`."""


def _processes() -> list[psutil.Process]:
    """All below this one, but the fork server and the resource tracker, which stay.

    And those of a browser that a module's tests share: they come and go as it likes.
    """
    if not _has_children():
        return []  # most tests have none, and to look at all processes takes milliseconds
    stay = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            forked = process.ppid() != os.getpid()
            if process.name().startswith("chrom"):
                continue
        except psutil.NoSuchProcess:
            continue
        if forked or not any(name in command for name in stay):
            found.append(process)
    return found


def _has_children() -> bool:
    """Where the kernel does not say, it may be so."""
    try:
        found = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    except OSError:  # a thread that has just ended
        return True
    return not found or any(found)


def _threads() -> list[threading.Thread]:
    """All but the one that Dask starts once in a process and keeps."""
    return [thread for thread in threading.enumerate() if "Dask-Offload" not in thread.name]


def _ports() -> list[int]:
    connections = psutil.Process().net_connections(kind="tcp")
    return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]
