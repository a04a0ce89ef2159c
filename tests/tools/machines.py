"""Machines that come and go: each is a ``dask worker`` with all its processes, lost at once.

Also a killer that loses one after another, a count of how often each input was begun, and the
number of workers over time, from which follows what a run could have reached at best.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psutil
from distributed import Client

import at_once_dask

ROOT = str(Path(at_once_dask.__file__).parents[1])
ENDS_SECONDS = 10.0  # within which a machine that is told to go is gone, or it is killed


class Machine:
    """A ``dask worker`` in a session of its own, with a folder of its own.

    Parameters
    ----------
    scheduler_file : Path
        Of the scheduler; folders and logs of machines lie beside it.
    name : str
        Of the folder and of the log; Dask gives the worker a name of its own.
    *options : str
        More of the command line, as ``"--no-nanny"``.
    private : bool
        Nobody else sees the folder, as on another host: a file system in memory lies over it, in a
        mount namespace of the machine's own. Needs root; see `can_be_private`.
    python : str
        The interpreter.
    """

    def __init__(
        self,
        scheduler_file: Path,
        name: str,
        *options: str,
        private: bool = False,
        python: str = sys.executable,
    ) -> None:
        self.name = name
        self.scratch = scheduler_file.parent / name
        self.log = scheduler_file.parent / f"{name}.log"
        self.scratch.mkdir(exist_ok=True)
        command = [
            *(python, "-m", "distributed.cli.dask_worker"),
            *("--scheduler-file", str(scheduler_file), "--host", "127.0.0.1", "--no-dashboard"),
            *("--nthreads", "1", "--local-directory", str(self.scratch), *options),
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                hidden(command, self.scratch) if private else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=scheduler_file.parent,
                env=os.environ | {"PYTHONPATH": ROOT},
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """All its processes, the first one (the nanny, where there is one) first.

        Workers have process groups of their own, so these are the processes of its session.
        """
        return [pid for pid in sorted(psutil.pids()) if self.has(pid) and is_alive(pid)]

    def signal(self, number: int) -> None:
        """To all its processes, as a batch system does it."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def lose(self) -> None:
        """It vanishes with all that runs on it: nobody is left that could tell of it."""
        self.process.kill()  # the nanny must not see its worker die
        while self.pids():
            self.signal(signal.SIGKILL)
            self.process.poll()
            time.sleep(0.001)
        self.process.wait()

    def terminate(self) -> None:
        """It is told to go: SIGTERM to all its processes."""
        self.signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait until it is gone, for a while; then it is lost."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_SECONDS)
        self.lose()

    def address(self, client: Client) -> str | None:
        """Of its worker, while the scheduler knows that."""
        pids = client.run(os.getpid, on_error="ignore")
        return next((address for address, pid in pids.items() if self.has(pid)), None)

    def has(self, pid: int) -> bool:
        return session(pid) == self.process.pid


def is_alive(pid: int) -> bool:
    """Not one that has ended and that its parent, the first process, has not noticed yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def hidden(command: Sequence[str], folder: Path) -> list[str]:
    """`command`, for which another, empty folder is in the place of `folder`."""
    mount = f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}"
    return ["unshare", "-m", "sh", "-c", f"{mount} && exec {shlex.join(command)}"]


def can_be_private() -> bool:
    """Whether this user may make mount namespaces."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


class Machines:
    """Several machines of one kind; what was lost is followed by a new one.

    Use it as a context manager: at its end all are gone.
    """

    def __init__(
        self, scheduler_file: Path, n: int, *options: str, prefix: str = "machine", **more: Any
    ) -> None:
        self._scheduler_file, self._prefix = scheduler_file, prefix
        self._options, self._more = options, more
        self._n_made = 0
        self._leaving: list[Machine] = []
        self.all = [self._new() for _ in range(n)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for machine in [*self.all, *self._leaving]:
            machine.lose()

    def replace(self, machine: Machine, number: int = signal.SIGKILL) -> None:
        """Lose it, or tell it to go, and start a new one at once."""
        if number == signal.SIGKILL:
            machine.lose()
        else:
            machine.signal(number)
            self._leaving.append(machine)
            threading.Thread(target=machine.end, daemon=True).start()
        self.all[self.all.index(machine)] = self._new()

    def of(self, pid: int) -> Machine | None:
        """The one on which this process runs."""
        return next((machine for machine in self.all if machine.has(pid)), None)

    def _new(self) -> Machine:
        self._n_made += 1
        name = f"{self._prefix}{self._n_made}"
        return Machine(self._scheduler_file, name, *self._options, **self._more)


class Killer:
    """While it is entered, one machine after another goes, and new ones come.

    Parameters
    ----------
    machines : Machines
    every : float
        Seconds from one to the next.
    number : int
        The signal that all processes of the machine get.
    seed : int
        Which ones: the same each time.
    """

    def __init__(
        self, machines: Machines, every: float, number: int = signal.SIGKILL, seed: int = 0
    ) -> None:
        self.n = 0
        self._machines, self._every, self._number = machines, every, number
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._future = self._pool.submit(self._kill)
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self._future.result()

    def _kill(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(begin + (self.n + 1) * self._every - time.monotonic()):
            self._machines.replace(self._random.choice(self._machines.all), self._number)
            self.n += 1


class Attempts:
    """How often each input was begun, and when: in a file to which all workers append.

    It goes to the workers with the function that uses it. A line goes there in one write: those of
    processes that write at once neither mix nor get lost, whoever dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @contextlib.contextmanager
    def of(self, inp: int) -> Iterator[None]:
        """Around what is done for `inp`."""
        self._append("begun", inp)
        yield
        self._append("ended", inp)

    def _append(self, what: str, inp: int) -> None:
        file = os.open(self.path, os.O_APPEND | os.O_WRONLY)
        try:
            os.write(file, f"{what} {inp} {os.getpid()} {time.time()}\n".encode())
        finally:
            os.close(file)

    def lines(self) -> list[list[str]]:
        """Those that are whole; another may be on its way."""
        return [line.split() for line in self.path.read_text().split("\n")[:-1]]

    def begun(self) -> Counter[int]:
        return Counter(int(inp) for what, inp, *_ in self.lines() if what == "begun")

    def pid_of(self, inp: int, number: int) -> int | None:
        """The process in which `inp` was begun for the `number`-th time, from 0."""
        pids = [int(line[2]) for line in self.lines() if line[:2] == ["begun", str(inp)]]
        return pids[number] if number < len(pids) else None

    def last(self) -> float:
        """When an input ended for the last time, as of ``time.time()``."""
        return max((float(line[3]) for line in self.lines() if line[0] == "ended"), default=0.0)


class Watch:
    """How many workers there are, over time, by a Client of its own.

    Parameters
    ----------
    client_of : Callable[[], Client]
        Makes that Client; it is closed in the end.
    """

    EVERY_SECONDS = 0.1

    def __init__(self, client_of: Callable[[], Client]) -> None:
        self.samples: list[tuple[float, int]] = []  # seconds since it was entered, and workers
        self._client_of = client_of
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._client = self._client_of()
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()

    @property
    def most(self) -> int:
        return max((n for _, n in self.samples), default=0)

    def ideal(self, work: float) -> float | None:
        """Seconds after which the workers there were could have done `work` seconds of work."""
        done, before = 0.0, 0.0
        for at, n in self.samples:
            if n and done + n * (at - before) >= work:
                return before + (work - done) / n
            done, before = done + n * (at - before), at
        return None

    def _look(self) -> None:
        while not self._over.wait(self.EVERY_SECONDS):
            with contextlib.suppress(OSError, TimeoutError):  # the scheduler may be gone
                n = len(self._client.nthreads())
                self.samples.append((time.monotonic() - self._since, n))
