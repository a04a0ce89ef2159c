"""How the own cluster starts where little is as usual, and what is said where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import pytest
from helpers import poll_for

import at_once_dask
from at_once_dask.cluster import connect, machine, own

pytestmark = pytest.mark.thorough
ROOT = str(Path(at_once_dask.__file__).parents[1])
NAMESPACES = pytest.mark.skipif(
    os.getuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-mpn", "--fork", "true"], check=False).returncode != 0,
    reason="takes root, for namespaces of its own",
)

JOB = """
import os
import sys
import at_once_dask

def process_inp(n):
    assert "PYTHONSAFEPATH" not in os.environ
    return {"sum": n}

print(dict(at_once_dask.run(range(100), None, process_inp, reduce_fn=sum, progress=False)))
"""
TOTAL = "{'sum': 4950}\n"


def run_job(
    folder: Path,
    *options: str,
    before: str = "",
    within: Sequence[str] = (),
    shell: str = "",
    cwd: Path | None = None,
    **environment: str,
) -> tuple[int, str, str]:
    """Exit code, output and errors of a script with `before` in front of the job."""
    (folder / "job.py").write_text(textwrap.dedent(before) + JOB)
    command = [*within, sys.executable, *options, str(folder / "job.py")]
    if shell:
        command = ["sh", "-c", f'{shell} "$@"', "sh", *command]
    done = subprocess.run(
        command,
        cwd=cwd or folder,
        env=os.environ | {"PYTHONPATH": ROOT} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def error_of(outcome: tuple[int, str, str]) -> str:
    """The one line of the error: one traceback of the driver, and nothing of Dask's."""
    code, out, errors = outcome
    assert (code, out) == (1, "")
    assert errors.count("Traceback") == 1
    assert "distributed" not in errors
    last = errors.strip().rpartition("\n")[2]
    assert last.startswith("at_once_dask.AtOnceError: ")
    return last


# ----- what can work does


@pytest.mark.parametrize("name", ["für die Zwischen dateien", "x" * 180])
def test_any_temporary_folder(folder: Path, name: str) -> None:
    """In a long one there is no room for the name of a socket."""
    temporary = folder / name
    temporary.mkdir()
    assert run_job(folder, TMPDIR=str(temporary)) == (0, TOTAL, "")
    assert list(temporary.iterdir()) == []


def test_a_path_object_in_the_import_path(folder: Path) -> None:
    before = """
        import sys
        from pathlib import Path
        sys.path.insert(0, Path(__file__).parent / "lib")
    """
    assert run_job(folder, before=before) == (0, TOTAL, "")


def test_in_the_debugger(folder: Path) -> None:
    """Its ``__main__`` has no ``__spec__``."""
    code, out, errors = run_job(folder, "-m", "pdb", "-c", "continue", "-c", "quit")
    assert TOTAL in out
    assert (code, errors) == (0, "")


def test_files_of_the_current_directory_are_not_run(folder: Path) -> None:
    """The script is elsewhere, and would not import them either."""
    data = folder / "data"
    data.mkdir()
    for name in ("random", "queue", "calendar", "socket", "html", "toolz", "signal", "threading"):
        (data / f"{name}.py").write_text(f"open({name!r}, 'w').close()\n")
    before = sorted(path.name for path in data.iterdir())
    assert run_job(folder, cwd=data) == (0, TOTAL, "")
    assert sorted(path.name for path in data.iterdir()) == before


@pytest.mark.parametrize(
    "closed",
    ["<&- >&- 2>&-", *(pytest.param(c, marks=pytest.mark.slow) for c in ("<&-", ">&- 2>&-"))],
)
def test_closed_streams(folder: Path, closed: str) -> None:
    """Their numbers are not those of pipes into which inputs would print."""
    (folder / "closed.py").write_text(
        textwrap.dedent("""
        import os, sys
        import at_once_dask

        def process_inp(n):
            print("printed", n)
            os.write(1, b"written")
            return {"sum": n, "streams": all(os.fstat(number) for number in range(3))}

        result = at_once_dask.run(range(9), None, process_inp, reduce_fn=sum)
        log = at_once_dask.read_log(run=result.report.run)
        open("told", "w").write(f"{dict(result)} {log['msg'].str.startswith('printed').sum()}")
        """)
    )
    subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" closed.py {closed}'],
        env=os.environ | {"PYTHONPATH": ROOT},
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (folder / "told").read_text() == "{'sum': 36, 'streams': 9} 9"


def test_few_descriptors_are_made_more(folder: Path) -> None:
    assert run_job(folder, shell="ulimit -Sn 24; exec") == (0, TOTAL, "")


@NAMESPACES
def test_no_zombies_where_python_is_process_1(folder: Path) -> None:
    before = """
        import subprocess, time

        def states():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/stat") as stat:
                        found.append(stat.read().rpartition(")")[2].split()[0])
                except OSError:
                    pass
            return found

        def process_inp(n):
            subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"])

        def work():
            at_once_dask.run(range(20), None, process_inp, progress=False)
            end = time.monotonic() + 10
            while "Z" in states() and time.monotonic() < end:
                time.sleep(0.02)
            print(os.getpid(), states().count("Z"))
    """
    (folder / "reap.py").write_text(
        "import os\nimport at_once_dask\n" + textwrap.dedent(before) + "\nwork()\n"
    )
    done = subprocess.run(
        ["unshare", "-p", "--fork", "--mount-proc", sys.executable, "reap.py"],
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 0\n", "")


# ----- what cannot is one error


def test_too_few_descriptors(folder: Path) -> None:
    said = error_of(run_job(folder, shell="ulimit -n 50; exec"))
    assert "open files and sockets in this process, and it may have 50; allow it more" in said
    assert "ulimit -n 4096" in said


@NAMESPACES
@pytest.mark.parametrize(
    ("options", "said"),
    [("ro", "no locks between processes can be made in"), ("size=4k", "has 4,096 bytes left")],
)
def test_no_shared_memory(folder: Path, options: str, said: str) -> None:
    mounted = f"mount -t tmpfs -o {options} none /dev/shm && exec"
    within = ["unshare", "-m", "sh", "-c", f'{mounted} "$@"', "sh"]
    told = error_of(run_job(folder, within=within))
    assert said in told
    assert "/dev/shm" in told
    assert "docker run --shm-size" in told


@NAMESPACES
def test_no_loopback_device(folder: Path) -> None:
    told = error_of(run_job(folder, within=["unshare", "-n"]))
    assert "cannot connect to itself on 127.0.0.1" in told
    assert "ip link set lo up" in told


def test_a_folder_too_long_for_a_socket_and_no_short_one(
    folder: Path,
) -> None:
    temporary = folder / ("x" * 180)
    temporary.mkdir()
    before = """
        from at_once_dask.cluster import forkserver
        forkserver.SHORT_FOLDERS = ("/nowhere",)
    """
    told = error_of(run_job(folder, before=before, TMPDIR=str(temporary)))
    assert "is too long for a socket; name a shorter one before Python starts, as with" in told


def test_any_other_failure_of_the_start(folder: Path) -> None:
    """Dask's and asyncio's own tracebacks are not shown."""
    before = """
        from at_once_dask.cluster import own

        def refuse(*args, **kwargs):
            raise OSError(28, "No space left on device")

        own.OwnNanny.__init__ = refuse
    """
    told = error_of(run_job(folder, before=before))
    assert "the cluster cannot be started: OSError: [Errno 28] No space left on device; see" in told


def test_workers_that_no_limit_lets_start() -> None:
    """A run may be faster than the nanny's look; so this waits for the deaths."""
    at_once_dask.close()
    client = at_once_dask.start(1, memory_limit="60 MiB", dashboard_address="127.0.0.1:0")
    try:
        poll_for(
            lambda: len(client.get_events(own.MEMORY_TOPIC)) >= own.MEMORY_DEATHS,
            "its worker is not ended",
        )
        with pytest.raises(at_once_dask.AtOnceError, match="ended for memory before it") as failed:
            connect.Cluster(client, connect._own).check_starts(since=0.0)
        assert "may hold 60.00 MiB; allow more" in str(failed.value)
    finally:
        at_once_dask.close()


def test_as_few_workers_as_descriptors_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allow_descriptors", lambda n: 200)
    with pytest.raises(at_once_dask.AtOnceError) as failed:
        machine.check_descriptors(64)
    fewer = int(str(failed.value).partition("start(n_workers=")[2].rstrip(")"))
    assert 1 <= fewer <= 10
    machine.check_descriptors(fewer)


# ----- its link


@pytest.fixture
def in_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "jupyter_server_proxy.py").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")


def test_a_link_that_leads_nowhere_ends_nothing(cluster: Any) -> None:
    with dask.config.set({"distributed.dashboard.link": "/{NOSUCH}/{port}/status"}):
        report = at_once_dask.run(range(4), None, print, progress=True)
    assert (report.ok, report.dashboard_link) == (True, None)


def test_the_link_of_a_hub(in_hub: None) -> None:
    at_once_dask.close()
    client = at_once_dask.start(1, dashboard_address="127.0.0.1:0")
    try:
        port = client.cluster.scheduler.http_server.port  # type: ignore[union-attr]
        report = at_once_dask.run(range(4), None, abs, progress=False)
        assert report.dashboard_link == f"/user/me/proxy/{port}/status"
    finally:
        at_once_dask.close()
