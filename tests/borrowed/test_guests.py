"""What a cluster of others is like for us, and we for it: versions, what is left, connections."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
from dask_processes import by_value, client_of, dask_command
from distributed import Client
from helpers import meanwhile, poll_for

import at_once_dask
from at_once_dask.worker.scheduler_plugin import ABSENT_SECONDS

HERE = Path(at_once_dask.__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    with by_value(helpers, sys.modules[__name__]):
        yield


def nap(n: int) -> dict[str, int]:
    time.sleep(0.02)
    return {"sum": n}


def summed(client: Client, n: int = 100, **options: Any) -> Any:
    return at_once_dask.run(
        range(n), None, nap, reduce_fn=sum, client=client, progress=False, **options
    )


# ----- versions


# Where the package is installed to be edited, Python finds it by one of these.
WITHOUT = """
import os, sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in str(f) + str(type(f))]
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, "at_once_dask"))]
"""

OF_ANOTHER_PYTHON = """
import distributed.versions
tell = distributed.versions.get_system_info
distributed.versions.get_system_info = lambda: tell() | {"python": "3.99.1.final.0"}
"""


def path_with(folder: Path, customised: str) -> str:
    """An import path on which Python finds this as its first module."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(customised)
    return str(folder)


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """The environment of processes where at_once_dask is not installed."""
    path = path_with(tmp_path / "without", WITHOUT)
    return {"PYTHONPATH": path}


@pytest.fixture
def older(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that have another version of it."""
    shutil.copytree(HERE, tmp_path / "older" / HERE.name)
    names = tmp_path / "older" / HERE.name / "__init__.py"
    version = at_once_dask.__version__
    names.write_text(names.read_text("utf-8").replace(f'"{version}"', '"0.0.9"'), "utf-8")
    return {"PYTHONPATH": str(tmp_path / "older")}


def can_import(dask_worker: Any = None, dask_scheduler: Any = None) -> bool:
    import importlib

    with contextlib.suppress(ImportError):
        importlib.import_module("at_once_dask")
        return True
    return False


def test_where_it_is_not_installed_it_is_sent_along(
    tmp_path: Path, without: dict[str, str], folder: Path
) -> None:
    """To the scheduler, to workers and their nannies, to those that come later."""
    path = tmp_path / "scheduler.json"

    def work(n: int) -> dict[str, int]:
        at_once_dask.log(n)
        if n == 50 and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(3)
        return nap(n)

    with (
        dask_command("scheduler", path, "--port", "0", **without),
        dask_command("worker", path, "--nthreads", "1", "--nworkers", "2", **without),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        assert set(client.run(can_import).values()) == {False}
        assert client.run_on_scheduler(can_import) is False
        result = at_once_dask.run(
            range(200), None, work, reduce_fn=sum, client=client, progress=False, retries=1
        )
        assert result == {"sum": sum(range(200))}
        log = at_once_dask.read_log(run=result.report.run)
        assert any("exit 3" in str(msg) for msg in log["msg"])
        assert set(range(200)) <= set(log["msg"])


def test_another_version_of_it(tmp_path: Path, older: dict[str, str]) -> None:
    path = tmp_path / "scheduler.json"
    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, "--nthreads", "1"),
        dask_command("worker", path, "--nthreads", "1", **older),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        versions = client.run(lambda: __import__("at_once_dask").__version__)
        (other,) = [worker for worker, version in versions.items() if version == "0.0.9"]
        with pytest.raises(at_once_dask.InputError) as refused:
            summed(client)
    python = ".".join(map(str, sys.version_info[:2]))
    assert str(refused.value).startswith(
        f"this process has Python {python} and at_once_dask {at_once_dask.__version__}, and the"
        f" worker {other} has at_once_dask 0.0.9; "
    )
    assert str(refused.value).endswith("and call run() again")


def test_another_version_of_it_on_the_scheduler(tmp_path: Path, older: dict[str, str]) -> None:
    path = tmp_path / "scheduler.json"
    with (
        dask_command("scheduler", path, "--port", "0", **older),
        client_of(path, set_as_default=False) as client,
        pytest.raises(at_once_dask.InputError, match=r"the scheduler has Python .* 0\.0\.9, and"),
    ):
        summed(client)


def test_another_python(tmp_path: Path) -> None:
    """Functions cross as bytecode: nothing runs there, which would end in segfaults."""
    path = tmp_path / "scheduler.json"
    root = str(HERE.parent)
    other = {"PYTHONPATH": f"{path_with(tmp_path / 'other', OF_ANOTHER_PYTHON)}:{root}"}
    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, "--nthreads", "1", **other),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=30)
        with pytest.raises(at_once_dask.InputError, match=r"and the worker tcp\S+ has Python 3.99"):
            summed(client)


def test_a_worker_of_another_version_that_comes_later_gets_nothing(
    tmp_path: Path, older: dict[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once; Dask may use it for others."""
    path, said = tmp_path / "scheduler.json", []

    def work(n: int) -> None:
        poll_for((folder / "go").exists, "nobody comes", seconds=60)

    def is_said() -> bool:
        said.append(capsys.readouterr().err)
        return "goes on without the worker" in "".join(said)

    def come(over: threading.Event) -> None:
        with (
            dask_command("worker", path, "--nthreads", "1", "--nworkers", "2", **older),
            client_of(path, set_as_default=False) as other,
        ):
            poll_for(is_said, "nobody says so", lambda: said, seconds=30)
            (folder / "go").touch()
            over.wait()
            assert len(set(other.run(os.getpid).values())) == 3

    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, "--nthreads", "1"),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=30)
        (good,) = client.nthreads()
        with meanwhile(come):
            report = at_once_dask.run(range(8), None, work, client=client)
    assert report.ok
    assert set(report.items["worker"]) == {good}
    assert " ".join(report.summary().split()).count("it has at_once_dask 0.0.9; functions") == 1


def test_a_module_that_is_missing_there_is_named_with_the_line_that_sends_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there" / "scheduler.json"
    path.parent.mkdir()
    (folder / "sent_later.py").write_text("def nothing(n): pass")
    monkeypatch.syspath_prepend(folder)

    def work(n: int) -> None:
        import sent_later  # type: ignore[import-not-found]

        sent_later.nothing(n)

    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, "--nthreads", "1"),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=30)
        report = at_once_dask.run(
            range(8), None, work, client=client, progress=False, on_error="return"
        )
        note = (
            "the workers cannot import sent_later, which is here; send it there with"
            f" client.upload_file('{folder / 'sent_later.py'}')"
        )
        assert note in " ".join(report.summary().split())
        client.upload_file(str(folder / "sent_later.py"))
        assert at_once_dask.run(range(8), None, work, client=client, progress=False).ok


# ----- what is left


DRIVER = """
import sys, time
from pathlib import Path
import at_once_dask
from distributed import Client

def work(n):
    Path(sys_argv[2]).touch()
    time.sleep(0.02)

sys_argv = sys.argv
with Client(scheduler_file=sys.argv[1]) as client:
    at_once_dask.run(range(100_000), None, work, progress=False)
"""


@pytest.mark.thorough
def test_nothing_is_left_of_a_driver_that_was_killed(tmp_path: Path, folder: Path) -> None:
    """New workers get nothing of it either."""

    def traces(dask_scheduler: Any = None) -> list[str]:
        state = dask_scheduler
        names = [*state.plugins, *state.worker_plugins, *state._broker._topics, *state.tasks]
        return [str(name) for name in names if "at_once" in str(name) or "work-" in str(name)]

    def of_server(dask_worker: Any = None) -> list[str]:
        return [
            *(name for name in dask_worker.plugins if "at_once" in name),
            *(name for name in os.listdir(scratch) if "at_once" in name),
            *(["stdout"] if type(sys.stdout).__module__.startswith("at_once") else []),
        ]

    path = tmp_path / "scheduler.json"
    scratch = str(tmp_path / "scratch")
    os.mkdir(scratch)
    (folder / "driver.py").write_text(DRIVER)
    options = "--nthreads", "1", "--local-directory", scratch
    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, *options),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=30)
        scratch += "/dask-scratch-space"
        with subprocess.Popen(
            [sys.executable, "driver.py", str(path), str(folder / "begun")],
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        ) as driver:
            poll_for((folder / "begun").exists, "it does not begin", seconds=30)
            assert client.run_on_scheduler(traces)
            assert all(client.run(of_server).values())
            driver.kill()

        def left() -> list[Any]:
            found = [client.run_on_scheduler(traces)]
            for nanny in (False, True):
                found += client.run(of_server, nanny=nanny).values()
            return [names for names in found if names]

        poll_for(lambda: not left(), "something is left", left, seconds=ABSENT_SECONDS + 15)
        with dask_command("worker", path, *options[:2]):
            client.wait_for_workers(2, timeout=30)
            assert not any(client.run(of_server).values())


# ----- the connection of the driver


class Proxy:
    """Passes on what comes to it, until it is cut; a context manager."""

    def __init__(self, to: str) -> None:
        host, port = to.rpartition("://")[2].rsplit(":", 1)
        self._to = host, int(port)
        self._open: list[socket.socket] = []
        self._listen(0)

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                self._open.append(near)
                far = socket.create_connection(self._to)
                self._open.append(far)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """All connections end, and nobody listens."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def mend(self) -> None:
        self._listen(self.port)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *raised: object) -> None:
        self.cut()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Proxy]:
    """The way to a cluster of two workers."""
    path = tmp_path / "scheduler.json"
    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, "--nthreads", "1", "--nworkers", "2"),
        client_of(path, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        address = str(client.scheduler.address)  # type: ignore[union-attr]
        with Proxy(address) as proxy:
            yield proxy


def test_a_connection_that_is_lost_for_a_second(behind: Proxy, folder: Path) -> None:
    def work(n: int) -> dict[str, int]:
        (folder / f"begun {n}").touch()
        return nap(n)

    def cut(over: threading.Event) -> None:
        poll_for(lambda: len(list(folder.glob("begun *"))) > 50, "nothing happens")
        behind.cut()
        over.wait(1.0)
        behind.mend()

    with Client(f"tcp://127.0.0.1:{behind.port}", set_as_default=False) as client, meanwhile(cut):
        result = at_once_dask.run(
            range(400), None, work, reduce_fn=sum, client=client, progress=False
        )
    assert result == {"sum": sum(range(400))}


def test_a_connection_that_does_not_come_back(behind: Proxy, folder: Path) -> None:
    def work(n: int) -> dict[str, int]:
        (folder / f"begun {n}").touch()
        return nap(n)

    def cut(over: threading.Event) -> None:
        poll_for(lambda: len(list(folder.glob("begun *"))) > 150, "nothing happens")
        behind.cut()

    client = Client(f"tcp://127.0.0.1:{behind.port}", set_as_default=False)
    since = time.monotonic()
    with meanwhile(cut), pytest.raises(at_once_dask.AtOnceError) as lost:
        at_once_dask.run(range(2_000), None, work, reduce_fn=sum, client=client, progress=False)
    assert time.monotonic() - since < 20
    assert str(lost.value) == (
        "the connection to the Dask scheduler is lost; see that it runs and can be reached, and run"
        " the same again with a new Client: what is done is skipped then"
    )
    report = lost.value.report  # type: ignore[attr-defined]
    assert report.n_processed > 0
    assert report.n_left > 0
    behind.mend()
    client.close()


def test_the_driver_is_told_to_go_while_the_scheduler_cannot_be_reached(
    behind: Proxy, folder: Path
) -> None:
    """Where Dask's client waits for it, too."""

    def work(n: int) -> None:
        (folder / f"begun {n}").touch()
        nap(n)

    since = 0.0

    def cut(over: threading.Event) -> None:
        nonlocal since
        poll_for(lambda: len(list(folder.glob("begun *"))) > 50, "nothing happens")
        behind.cut()
        since = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)

    client = Client(f"tcp://127.0.0.1:{behind.port}", set_as_default=False)
    with meanwhile(cut), pytest.raises(SystemExit) as ended:
        at_once_dask.run(range(2_000), None, work, client=client, progress=False)
    assert time.monotonic() - since < 5
    assert ended.value.code == 143
    behind.mend()
    client.close()
