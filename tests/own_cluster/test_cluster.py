"""The own cluster: who can reach it, when it starts, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.popen_forkserver
import multiprocessing.spawn
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy
import psutil
import pytest
import traces
from dask.system import CPU_COUNT
from distributed import Client, WorkerPlugin, get_worker
from distributed.security import Security
from helpers import poll_for
from scripts import ROOT
from traces import (
    ANY_PORT,
    is_alive,
    pids_of,
    poll_until_same,
    run_a_few,
    snapshot,
    sockets_of,
    start_run_close,
)

import at_once_dask
from at_once_dask.cluster import connect, driver_watchdog, own
from at_once_dask.driver import workers_seen
from at_once_dask.options import ClusterSettings


def poll_until_gone(pids: list[int]) -> None:
    poll_for(
        lambda: not any(map(is_alive, pids)),
        "processes are left",
        lambda: [psutil.Process(pid).cmdline() for pid in pids if is_alive(pid)],
    )


@contextlib.contextmanager
def listening(address: str = ANY_PORT) -> Iterator[str]:
    """A port that is taken, by us or by somebody else already."""
    host, port = address.split(":")
    with socket.socket() as sock:
        with contextlib.suppress(OSError):
            sock.bind((host, int(port)))
            sock.listen()
            port = str(sock.getsockname()[1])
        yield f"{host}:{port}"


# ----- who can reach it


def test_every_port_is_on_loopback(cluster: Client) -> None:
    driver = psutil.Process()
    found = {p.pid: sockets_of(p) for p in [driver, *driver.children(recursive=True)]}
    assert len(found[driver.pid]) >= 4  # scheduler, dashboard, two nannies
    workers = list(pids_of(cluster).values())
    assert len(workers) == 2
    assert all(found[pid] for pid in workers)
    assert {s.laddr.ip for sockets in found.values() for s in sockets} == {"127.0.0.1"}


def ports_of(client: Client) -> dict[str, int]:
    """The ports that take orders: of the scheduler, and of a worker and its nanny."""
    worker, described = client.scheduler_info(n_workers=-1)["workers"].popitem()
    assert client.cluster is not None
    addresses = {
        "scheduler": client.cluster.scheduler_address,
        "worker": worker,
        "nanny": described["nanny"],
    }
    assert all(address.startswith("tls://127.0.0.1:") for address in addresses.values())
    return {name: int(address.rpartition(":")[2]) for name, address in addresses.items()}


def greeting(port: int, context: ssl.SSLContext | None) -> bytes:
    """What a port says first, to somebody who does not care whom he speaks to."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        if context is None:
            plain.sendall(b"\0" * 64)
            return plain.recv(1)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as secure:
            return secure.recv(1)


def test_strangers_are_refused(cluster: Client) -> None:
    own = cluster.security.get_connection_args("client")["ssl_context"]
    other = Security.temporary().get_connection_args("client")["ssl_context"]
    without = ssl.create_default_context()
    for port in ports_of(cluster).values():
        assert greeting(port, own) != b""
        for context in (other, without, None):
            with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                assert greeting(port, context) == b""


@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_a_stranger_with_dask_is_refused(cluster: Client, protocol: str) -> None:
    address = f"{protocol}://127.0.0.1:{ports_of(cluster)['scheduler']}"
    security = Security.temporary() if protocol == "tls" else None

    async def knock() -> None:  # Dask leaves a thread behind where this fails in a plain Client
        await Client(address, security=security, timeout=1, asynchronous=True, set_as_default=False)

    with pytest.raises(OSError, match=r"Timed out|closed|TLS certificate does not match"):
        asyncio.run(knock())
    assert run_a_few().ok


# ----- when it starts


def test_the_second_run_reuses_the_cluster(cluster: Client) -> None:
    before = pids_of(cluster)
    assert run_a_few().ok
    assert run_a_few().ok
    assert pids_of(cluster) == before


def test_the_own_client_is_nobodys_default(cluster: Client) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="No client"):
            Client.current()
        assert dask.config.get("scheduler", None) is None
        assert run_a_few().ok


def test_the_own_client_may_be_passed(cluster: Client) -> None:
    assert run_a_few(client=cluster).ok
    assert cluster.status == "running"


def test_start_close_and_run_in_any_order() -> None:
    at_once_dask.close()
    client = at_once_dask.start(1, memory_limit="300 MiB", dashboard_address=ANY_PORT)
    try:
        again = at_once_dask.start(1, memory_limit="300 MiB", dashboard_address=ANY_PORT)
        assert again is client
        limits = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
        assert list(limits.values()) == [300 * 2**20]
        with pytest.raises(at_once_dask.InputError, match=r"call at_once_dask\.close\(\) first"):
            at_once_dask.start(2, memory_limit="300 MiB", dashboard_address=ANY_PORT)
        with pytest.raises(at_once_dask.InputError, match=r"n_workers=1.*is running"):
            at_once_dask.start()
        assert run_a_few().ok
        at_once_dask.close()
        at_once_dask.close()
        assert client.status == "closed"

        assert run_a_few().ok  # with a cluster of the default settings
        assert list(at_once_dask.start().nthreads().values()) == [1] * CPU_COUNT
    finally:
        at_once_dask.close()


def test_the_client_closed_behind_our_back() -> None:
    """The next run starts a cluster with the same settings, the explicit port too."""
    at_once_dask.close()
    with listening() as address:
        pass
    settings: dict[str, Any] = {"n_workers": 1, "dashboard_address": address}
    client = at_once_dask.start(**settings)
    try:
        for close in (Client.close, Client.shutdown, lambda client: client.cluster.close()):
            workers = list(pids_of(client).values())
            close(client)
            assert run_a_few().ok
            assert at_once_dask.start(**settings) is not client
            client = at_once_dask.start(**settings)
            assert client.dashboard_link == f"http://{address}/status"
            assert len(client.nthreads()) == 1
            poll_until_gone(workers)
    finally:
        at_once_dask.close()


def test_the_default_port_gives_way_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    at_once_dask.close()
    with listening(ClusterSettings.dashboard_address):
        try:
            client = at_once_dask.start(1)
            assert client.dashboard_link.startswith("http://127.0.0.1:")
            assert ":8787" not in client.dashboard_link
        finally:
            at_once_dask.close()
    assert capfd.readouterr() == ("", "")


def test_an_explicit_port_does_not() -> None:
    at_once_dask.close()
    with listening() as address:
        with pytest.raises(at_once_dask.InputError) as refused:
            at_once_dask.start(1, dashboard_address=address)
    assert str(refused.value) == (
        f"dashboard_address '{address}' is taken; close what listens there, or let any port be"
        ' used with start(dashboard_address="127.0.0.1:0")'
    )


def test_another_host_than_loopback_is_a_warning() -> None:
    at_once_dask.close()
    try:
        with pytest.warns(UserWarning, match="it has no login, and everybody who") as warned:
            client = at_once_dask.start(1, dashboard_address="0.0.0.0:0")
        assert warned[0].filename == __file__
        others = [s.laddr.port for s in sockets_of(psutil.Process()) if s.laddr.ip != "127.0.0.1"]
        assert len(others) == 1
        assert f":{others[0]}/" in client.dashboard_link
    finally:
        at_once_dask.close()


def test_workers_draw_different_numbers(cluster: Client, folder: Path) -> None:
    """Though NumPy was imported before they were forked."""

    def draw(n: int) -> None:
        (folder / f"{os.getpid()}.pid").touch()
        poll_for(lambda: len(list(folder.glob("*.pid"))) == 2, "the other worker does nothing")
        at_once_dask.log([random.random(), float(numpy.random.random())])

    assert all(cluster.run(lambda: "numpy" in sys.modules).values())
    at_once_dask.run(range(2), None, draw, progress=False)
    log = at_once_dask.read_log()
    assert log["pid"].nunique() == len(log) == 2
    for numbers in zip(*log["msg"], strict=True):
        assert len(set(numbers)) == 2


# ----- that nothing is left of it


def test_nothing_is_left_in_a_process_that_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once_dask.close()
    (folder / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temp"))
    before = snapshot()
    start_run_close()
    poll_until_same(before)


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temp folder of scripts; its path is short, for there will be sockets in it."""
    with tempfile.TemporaryDirectory() as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


@contextlib.contextmanager
def script(text: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `text`; it can import what this module can."""
    Path("script.py").write_text(text)
    roots = [ROOT, str(Path(traces.__file__).parent)]
    with subprocess.Popen(
        [sys.executable, "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


UNGUARDED = """
from traces import poll_until_same, snapshot, start_run_close
import at_once_dask

before = snapshot()
start_run_close()
poll_until_same(before)
at_once_dask.start(2, dashboard_address="127.0.0.1:0")
at_once_dask.run(range(100), None, lambda n: None, progress=False)
"""


def test_nothing_is_left_of_a_script_that_just_ends(temp: Path) -> None:
    with script(UNGUARDED) as process:
        seen: set[int] = set()
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen |= {p.pid for p in psutil.Process(process.pid).children(recursive=True)}
            time.sleep(0.02)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")
    assert len(seen) >= 6  # fork server, resource tracker, two workers, twice
    poll_until_gone(list(seen))
    poll_for(lambda: not any(temp.iterdir()), "files are left", lambda: list(temp.iterdir()))


# ----- the processes of the inputs


def orphan() -> list[str]:
    """A command whose process ends and leaves another one, which prints its own number."""
    code = """
import os, time
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.close(1)
    time.sleep(600)
os._exit(0)
"""
    return [sys.executable, "-c", code]


def start_four(name: str) -> None:
    """Start processes in four ways; their numbers are in the file when it is there."""
    child = multiprocessing.Process(target=time.sleep, args=(600,))
    child.start()
    detached = subprocess.run(orphan(), stdout=subprocess.PIPE, check=True)
    pids = [
        subprocess.Popen(["sleep", "600"]).pid,
        subprocess.Popen(["sleep", "600"], start_new_session=True).pid,
        child.pid,
        int(detached.stdout),
    ]
    with at_once_dask.atomic_write(name) as file:
        file.write(" ".join(map(str, pids)))


def started(path: Path) -> list[int]:
    return [int(pid) for pid in path.read_text().split()]


def test_processes_of_inputs_end_with_their_worker(folder: Path) -> None:
    """Input 0 is ended with its worker when the run stops; the other worker ends at `close`."""

    def work(n: int) -> None:
        start_four(f"of {n}")
        if n == 0:
            Path("running").touch()
            threading.Event().wait(600)
        poll_for(Path("running").exists, "the other worker does nothing")
        raise ValueError("stop")

    at_once_dask.close()
    try:
        at_once_dask.start(2, dashboard_address=ANY_PORT)
        with pytest.raises(at_once_dask.RunStopped) as stopped:
            at_once_dask.run(range(2), None, work, on_error="stop", progress=False)
        assert (stopped.value.report.n_failed, stopped.value.report.n_left) == (1, 1)
        poll_until_gone(started(folder / "of 0"))
        assert all(map(is_alive, started(folder / "of 1")))
    finally:
        at_once_dask.close()
    poll_until_gone(started(folder / "of 1"))


def test_processes_of_inputs_end_when_the_worker_dies(folder: Path) -> None:
    """Also without our doing."""

    def work(n: int) -> None:
        subprocess.Popen(["sleep", "600"])
        detached = subprocess.run(orphan(), stdout=subprocess.PIPE, check=True)
        Path("pids").write_text(f"{int(detached.stdout)} {os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)

    at_once_dask.close()
    try:
        at_once_dask.start(1, dashboard_address=ANY_PORT)
        with pytest.raises(at_once_dask.RunFailed, match="SIGKILL"):
            at_once_dask.run([1], None, work, progress=False)
        poll_until_gone(started(folder / "pids"))
        assert run_a_few().ok
    finally:
        at_once_dask.close()


class DiesEarly(WorkerPlugin):
    """Once, when a worker is about to be ready; with a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.once, self.pids = folder / "once", folder / "pids"

    def setup(self, worker: Any) -> None:
        if self.once.exists():
            self.once.unlink()
            with at_once_dask.atomic_write(self.pids) as file:
                file.write(f"{subprocess.Popen(['sleep', '600']).pid} {os.getpid()}")
            os._exit(7)


def test_only_living_workers_have_files_for_the_watchdog(folder: Path) -> None:
    """Its own is ended with each that dies, however early."""

    def with_files() -> set[int]:
        running = connect._own
        assert running is not None
        return set(driver_watchdog.groups(str(Path(running.scratch) / driver_watchdog.GROUPS)))

    at_once_dask.close()
    try:
        client = at_once_dask.start(2, dashboard_address=ANY_PORT)
        client.register_plugin(DiesEarly(folder))
        before = set(client.run(os.getpid).values())
        assert with_files() == before
        (folder / "once").touch()
        report = at_once_dask.run(
            range(4),
            None,
            lambda n: os._exit(3) if n == 1 else None,
            on_error="return",
            progress=False,
        )
        assert report.n_failed == 1
        poll_for((folder / "pids").exists, "the replacement has not come")
        poll_until_gone(started(folder / "pids"))
        assert run_a_few().ok
        after = set(client.run(os.getpid).values())
        assert len(before & after) == 1
        assert with_files() == after
    finally:
        at_once_dask.close()


@pytest.mark.thorough
def test_workers_that_cannot_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where their folder should be there is a file. It is said, and nobody waits for ever."""

    def work(n: int) -> None:
        if n == 20:
            scratch = Path(get_worker().local_directory).parent
            scratch.rename(f"{scratch}.gone")
            scratch.touch()
            os._exit(9)

    monkeypatch.setattr(workers_seen, "PATIENCE_SECONDS", 2)
    monkeypatch.setattr(own, "START_SECONDS", 2)
    at_once_dask.close()
    at_once_dask.start(1, dashboard_address=ANY_PORT)
    try:
        with pytest.raises(at_once_dask.RunStopped, match="no worker is left that starts") as run:
            at_once_dask.run(range(200), None, work, progress=False)
        assert run.value.report.n_left + run.value.report.n_failed > 0
        with pytest.raises(at_once_dask.AtOnceError, match=r"call at_once_dask\.close\(\)"):
            run_a_few()
    finally:
        at_once_dask.close()
    assert run_a_few().ok
    at_once_dask.close()


def test_an_exit_code_is_told_to_all_who_ask(cluster: Client) -> None:
    """Two threads that read the one code would otherwise get it, and 255."""
    context = multiprocessing.get_context("forkserver")
    for _ in range(20):
        process = context.Process(target=time.sleep, args=(60,), name="Dask Worker process")
        process.start()
        with ThreadPoolExecutor(16) as threads:
            waiting = [threads.submit(process._popen.wait) for _ in range(16)]  # type: ignore[attr-defined]
            process.kill()
            assert {code.result() for code in waiting} == {-signal.SIGKILL}
        process.join()


def test_a_fork_server_that_cannot_import_us_collects_garbage_all_the_same() -> None:
    """It forks for others, too."""
    lines = (
        "import gc, sys",
        "sys.modules['at_once_dask.worker.plugin'] = None",
        "try:",
        "    import at_once_dask.worker.preload",
        "except ImportError:",
        "    print(gc.isenabled())",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert done.stdout == "True\n"


def test_what_was_sent_is_not_kept(cluster: Client) -> None:
    """Dask keeps its last messages to each worker, for its own developers: few of them here."""
    at_once_dask.run(range(400_000), None, lambda n: None, progress=False)
    scheduler: Any = connect._own._cluster.scheduler  # type: ignore[union-attr]
    comms = scheduler.stream_comms.values()
    assert comms
    assert all(0 < comm.recent_message_log.maxlen <= 16 for comm in comms)


SILENT_UNTIL_LOOKED_AT = """
import sys, time, urllib.request
import at_once_dask

client = at_once_dask.start(1, dashboard_address="127.0.0.1:0")
at_once_dask.run([1], None, print, progress=False)
print("bokeh" in sys.modules, "pandas" in sys.modules)
begun = time.monotonic()
with urllib.request.urlopen(client.dashboard_link) as answer:
    first = answer.read()
print(answer.status, b'http-equiv="refresh"' in first, time.monotonic() - begun < 1)
while b'http-equiv="refresh"' in (page := urllib.request.urlopen(client.dashboard_link).read()):
    assert time.monotonic() < begun + 60
    time.sleep(0.1)
print(b"Bokeh.embed" in page or b"bokeh" in page, "bokeh" in sys.modules)
root = urllib.request.urlopen(client.dashboard_link.replace("/status", "/"))
print(root.url == client.dashboard_link)
at_once_dask.close()
"""


@pytest.mark.thorough
def test_the_dashboard_is_built_when_somebody_looks(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT_UNTIL_LOOKED_AT], capture_output=True, text=True, cwd=folder
    )
    lines = [line for line in done.stdout.splitlines() if line != "1"]
    assert lines == ["False False", "200 True True", "True True", "True"], done.stderr
    assert done.stderr == ""
