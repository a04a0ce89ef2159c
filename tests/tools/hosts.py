"""Many hosts on one machine: each has its own network, host name, `/tmp` and processes.

A host is a process with namespaces of its own (network, mounts, host name, process ids, System V
IPC), made by ``unshare``; commands enter it by ``nsenter``. Each host's network device is a TAP at
a port of ``switch.py``, which can delay frames and drop those of a host. This process, the driver,
has a port, too, and keeps its own `/tmp`. Pipes hold the hosts: they go when this process does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import switch
from helpers import poll_for

import at_once_dask

DRIVER = 0  # its number; the hosts have 1, 2, ...
MTU = 16_000  # few frames for much data: the switch is written in Python
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
ROOT = Path(at_once_dask.__file__).resolve().parents[1]

# The first process of a host: $1 is its name, the others are folders below /tmp that it shall see.
# It prints its process id outside, and lives as long as its standard input.
INIT = """
set -e
read -r pid _ < /proc/self/stat
mount -t proc proc /proc
echo "$1" > /proc/sys/kernel/hostname
shift
mount -t tmpfs -o mode=1777 tmpfs /mnt
for folder; do
    mkdir -p "/mnt/${folder#/tmp/}"
    mount --bind "$folder" "/mnt/${folder#/tmp/}"
done
mount --move /mnt /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
cat /proc/sys/kernel/random/uuid > /tmp/boot_id
mount --bind /tmp/boot_id /proc/sys/kernel/random/boot_id
rm /tmp/boot_id
ip link set lo up
echo "$pid"
trap '' CHLD  # nobody waits for the orphans that it gets
exec cat
"""


def why_not() -> str | None:
    """The reason why this machine cannot have hosts; None: it can."""
    if os.geteuid():
        return "hosts need root, for namespaces"
    missing = [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"hosts need the commands {', '.join(missing)}"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"hosts need TAP devices: {error}"
    mount = ["mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--mount-proc", *mount], capture_output=True, text=True
    )
    return f"hosts need namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Hosts:
    """Hosts 1 to `n`, named ``host1`` and so on, and the driver, which is 0.

    Attributes
    ----------
    shared : Path
        A folder that all hosts see, with what Dask's commands log.
    scheduler_file : Path
        What ``Client(scheduler_file=...)`` needs.
    """

    def __init__(self, n: int, shared: Path, cleanup: contextlib.ExitStack) -> None:
        self.shared = shared
        self.scheduler_file = shared / "scheduler.json"
        self._cleanup = cleanup
        self._inits: dict[int, tuple[subprocess.Popen[str], str]] = {}  # and its process id
        self._switch = cleanup.enter_context(_piped([sys.executable, switch.__file__]))
        device = self._tell("plug", DRIVER)
        self._subnet = f"10.99.{device.partition('_')[0].removeprefix('hosts')}"
        self._set_up(DRIVER, device, [])
        for host in range(1, n + 1):
            self.boot(host)

    def address(self, host: int) -> str:
        """The IP address of a host."""
        return f"{self._subnet}.{host or 254}"

    def boot(self, host: int) -> None:
        """Switch a host on, with an empty `/tmp`; also one that was lost."""
        seen = [path for path in (*_code(), self.shared) if path.is_relative_to("/tmp")]
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "sh", "-c", INIT, "init"]
        init = self._cleanup.enter_context(_piped([*command, f"host{host}", *map(str, seen)]))
        pid = _line(init)
        self._inits[host] = init, pid
        device = self._tell("plug", host)
        _ip([], f"link set {device} netns {pid} name eth0")
        self._set_up(host, "eth0", ["nsenter", "--target", pid, "--net"])

    def start(
        self, host: int, *command: str, environment: Mapping[str, str] | None = None, **kwargs: Any
    ) -> subprocess.Popen[Any]:
        """Start a command in a session of its own, in `/tmp`; it ends with the net at the latest.

        `kwargs` are for ``subprocess.Popen``, and `host` may be ``DRIVER``.
        """
        enter = [] if host == DRIVER else ["nsenter", "--target", self._inits[host][1], *NAMESPACES]
        process = subprocess.Popen(
            [*enter, "env", "--chdir=/tmp", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp", **(environment or {})},
            start_new_session=True,
            **kwargs,
        )
        self._cleanup.callback(_end, process)
        return process

    def scheduler(self, *options: str, host: int = DRIVER, **environment: str) -> None:
        """Start a ``dask scheduler``, and wait for its file."""
        file = self.scheduler_file
        process = self._dask("scheduler", host, ["--port", "0", *options], environment)
        poll_for(lambda: file.exists() or process.poll() is not None, "no scheduler", seconds=30)
        assert process.poll() is None, f"no scheduler: see {self.shared}"

    def worker(
        self, host: int, *options: str, nworkers: int = 1, nthreads: int = 1, **environment: str
    ) -> subprocess.Popen[Any]:
        """Start a ``dask worker``; it has a nanny, unless `options` have ``--no-nanny``.

        ``Client.wait_for_workers`` waits for it.
        """
        sizes = ["--nworkers", str(nworkers), "--nthreads", str(nthreads)]
        return self._dask("worker", host, [*sizes, *options], environment)

    def lose(self, host: int) -> None:
        """A host's power goes: all its processes and its network at once, without a word."""
        self._tell("cut", host)
        init, pid = self._inits.pop(host)
        os.kill(int(pid), signal.SIGKILL)  # and the kernel kills all others in there
        init.wait()
        self._tell("unplug", host)

    def cut(self, host: int) -> None:
        """Pull a host's network cable; its processes go on. A loss that `mend` can undo."""
        self._tell("cut", host)

    def mend(self, host: int) -> None:
        """Put the cable back."""
        self._tell("mend", host)

    def delay(self, seconds: float) -> None:
        """Let each packet between two hosts, or the driver and a host, take so long."""
        self._tell("delay", seconds)

    def _dask(
        self, name: str, host: int, options: list[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[Any]:
        command = [
            *(sys.executable, "-m", f"distributed.cli.dask_{name}"),
            *("--scheduler-file", str(self.scheduler_file), "--host", self.address(host)),
            *("--no-dashboard", *options),
        ]
        with (self.shared / f"{name}-{host}.log").open("a") as log:
            return self.start(host, *command, environment=environment, stdout=log, stderr=log)

    def _set_up(self, host: int, device: str, enter: list[str]) -> None:
        _ip(
            enter,
            f"link set {device} address 02:00:00:00:00:{host:02x} mtu {MTU} addrgenmode none",
            f"addr add {self.address(host)}/24 dev {device}",
            f"link set {device} up",
        )

    def _tell(self, command: str, value: float) -> str:
        assert self._switch.stdin is not None
        self._switch.stdin.write(f"{command} {value}\n")
        self._switch.stdin.flush()
        return _line(self._switch)


@contextlib.contextmanager
def hosts(n: int, shared: Path | None = None) -> Iterator[Hosts]:
    """`n` hosts and a network, for as long as the block lasts.

    They see the folder `shared`, by default a new one, where the driver sees it. Of the driver's
    `/tmp` they see nothing else, but the code if it lies there.
    """
    with contextlib.ExitStack() as cleanup:
        if shared is None:
            shared = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        yield Hosts(n, shared.resolve(), cleanup)


def _code() -> set[Path]:
    """The folders that a worker must see."""
    return {ROOT, *(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))}


def _piped(command: list[str]) -> subprocess.Popen[str]:
    """A process that ends with its standard input, and so at the end of its ``with`` block."""
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} has ended"
    return line.strip()


def _ip(enter: list[str], *lines: str) -> None:
    subprocess.run([*enter, "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _end(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
