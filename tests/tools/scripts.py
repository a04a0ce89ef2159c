"""Programs of users in processes of their own, and all processes that come of them."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from helpers import poll_for

import at_once_dask

ROOT = str(Path(at_once_dask.__file__).parents[1])
SOON = 5.0  # seconds, for a run to stop and for all of it to be gone
PATIENCE = 60.0  # seconds, for a script to come as far as it should, where the machine is busy
MARK = "AT_ONCE_TEST_SCRIPT"  # in the environment of a script and of all that comes of it


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT, "PYTHONWARNINGS": "error"}


class Script:
    """A running program, and all processes that come of it.

    Parameters
    ----------
    text : str
        The program; `arguments` are its ``sys.argv[1:]``.
    folder : Path
        Its current directory; its temporary one is made there.
    """

    def __init__(self, text: str, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._token = secrets.token_hex(8)
        # Sockets lie there: their paths must be short.
        self.temporary = Path(tempfile.mkdtemp(prefix="", dir=folder))
        self._out, self._err = folder / f"{self._token}.out", folder / f"{self._token}.err"
        with open(self._out, "w") as out, open(self._err, "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", text, *arguments],
                cwd=folder,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        return {**environment(), MARK: self._token, "TMPDIR": str(self.temporary)}

    @property
    def out(self) -> list[str]:
        """The whole lines that it has printed."""
        return self._out.read_text().split("\n")[:-1]

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until `condition()` is true; it may not have ended before, nor take for ever."""
        end = time.monotonic() + PATIENCE
        while not condition():
            ended = self.process.poll() is not None
            if (ended and not condition()) or time.monotonic() > end:
                raise AssertionError(f"{what}: not so; {ended=}, {self.out}\n{self.err}")
            time.sleep(0.01)

    def wait_for_file(self, *names: str) -> None:
        for name in names:
            self.wait_for((self.folder / name).exists, f"{name} is there")

    def send(self, number: int) -> None:
        """As `kill` does it: to this process only."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """As a terminal does it: to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def alive(self) -> list[psutil.Process]:
        """All processes that came of it and run, it among them."""
        return alive(self._token)

    def check_all_gone(self, since: float) -> None:
        """No process, and no folder of the cluster, `SOON` after the moment `since`."""
        poll_for(lambda: not self.alive(), "processes are left", lambda: told(self.alive()))
        poll_for(lambda: not self.clusters(), "the cluster's folder is left", self.clusters)
        assert time.monotonic() - since < SOON

    def clusters(self) -> list[Path]:
        """The folders of own clusters."""
        return list(self.temporary.glob("at_once_dask-*"))

    def end(self) -> None:
        """SIGKILL for all that is left."""
        while left := self.alive():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(10)


@contextlib.contextmanager
def started(text: str, folder: Path, *arguments: str) -> Iterator[Script]:
    script = Script(text, folder, *arguments)
    try:
        yield script
    finally:
        script.end()


def alive(token: str) -> list[psutil.Process]:
    """The processes with this `token` for their mark; those that have ended show none."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == token:
                found.append(process)
    return found


def told(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found.append(f"{process.pid}: {' '.join(process.cmdline())}")
    return found


def seeded() -> random.Random:
    """Other moments in each session; pytest shows the seed when the test fails."""
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def pause(seconds: float) -> None:
    """Not to wait for something: to be somewhere in the middle."""
    time.sleep(seconds)


# The inputs that are named on the command line hang, with processes of their own.
HANGING = """
import ctypes, json, os, subprocess, sys, time
import at_once_dask

children = []

def start_children():
    for in_session in False, True:
        child = subprocess.Popen(["sleep", "600"], start_new_session=in_session)
        children.append(child)

def process_inp(inp):
    if inp.isdigit():
        return
    start_children()
    open(f"{inp} hangs", "w").close()
    if inp == "Python":
        time.sleep(600)
    if inp == "C":
        ctypes.PyDLL(None).sleep(600)

inputs = [*map(str, range(5)), *sys.argv[1:], *map(str, range(5))]
at_once_dask.start(2, dashboard_address="127.0.0.1:0")
"""


def end_with(script: Script, number: int) -> float:
    """Send a signal, as Ctrl-C or `kill` would; returns when, after the script has ended."""
    before = time.monotonic()
    if number == signal.SIGINT:
        script.press_ctrl_c()
    else:
        script.send(number)
    script.process.wait(SOON)
    return before
