"""The driver is a child, or has children: each has its own cluster, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import at_once_dask

HEAD = """
import multiprocessing, os, sys, time
import at_once_dask

def process_inp(n):
    return {"sum": n}

def job(name="child"):
    result = at_once_dask.run(range(50), None, process_inp, reduce_fn=sum, progress=False)
    with open(name, "w") as file:
        file.write(str(dict(result)))

def pids():
    return set(at_once_dask.start().run(os.getpid).values())

def end_of(pid, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    return "hangs"
"""


def run_script(folder: Path, text: str, *arguments: str, is_terminated: bool = False) -> str:
    """What it prints; nothing goes to stderr, and no file of a cluster stays.

    Of a process that `multiprocessing` terminates a folder of its own may stay.
    """
    (folder / "job.py").write_text(HEAD + textwrap.dedent(text))
    (folder / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "job.py", *arguments],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(at_once_dask.__file__).parents[1]),
            "TMPDIR": str(folder / "temporary"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    left = [path.name for path in (folder / "temporary").iterdir()]
    assert [name for name in left if not (is_terminated and name.startswith("pymp-"))] == []
    return done.stdout


NAMES = ("child", "first", "second", "third")


def result_of(folder: Path, name: str = "child") -> str:
    return (folder / name).read_text()


@pytest.mark.thorough
def test_forked_children_leave_all_to_their_parent(folder: Path) -> None:
    """One that only ends, one with a cluster of its own, and one whose parent has closed its."""
    printed = run_script(
        folder,
        """
        job("first")
        before = pids()
        child = os.fork()
        if child == 0:
            sys.exit(7)
        print(end_of(child), before == pids(), flush=True)

        child = os.fork()
        if child == 0:
            job()
            print(len(before & pids()), flush=True)
            sys.exit(0)
        print(end_of(child), before == pids(), flush=True)
        job("second")

        at_once_dask.close()  # the fork server is still the parent's
        child = os.fork()
        if child == 0:
            job("third")
            sys.exit(0)
        print(end_of(child))
        """,
    )
    assert printed == "7 True\n0\n0 True\n0\n"
    assert {result_of(folder, name) for name in NAMES} == {"{'sum': 1225}"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_a_run_in_a_process_of_multiprocessing_ends(folder: Path, method: str) -> None:
    """Before and after the first run of its parent."""
    printed = run_script(
        folder,
        """
        def run_in_child(name):
            child = multiprocessing.get_context(sys.argv[1]).Process(target=job, args=(name,))
            child.start()
            child.join(20)
            print(child.exitcode, flush=True)
            child.kill()

        if __name__ == "__main__":
            run_in_child("child")
            job("first")
            run_in_child("second")
            job("third")
        """,
        method,
    )
    assert printed == "0\n0\n"
    assert {result_of(folder, name) for name in NAMES} == {"{'sum': 1225}"}


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_run_in_a_daemonic_process(folder: Path, method: str) -> None:
    """As those of a Pool are: it may have no children, says `multiprocessing`."""
    printed = run_script(
        folder,
        """
        def job_and_close():
            job()
            at_once_dask.close()
            return multiprocessing.current_process().daemon

        if __name__ == "__main__":
            with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
                print(pool.apply_async(job_and_close).get(30))
        """,
        method,
        is_terminated=True,
    )
    assert printed == "True\n"
    assert result_of(folder) == "{'sum': 1225}"


@pytest.mark.thorough
def test_a_pool_that_the_program_uses_itself(folder: Path) -> None:
    printed = run_script(
        folder,
        """
        job("first")
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map_async(abs, range(-3, 0)).get(15))
        job("second")
        """,
    )
    assert printed == "[3, 2, 1]\n"
    assert result_of(folder, "second") == "{'sum': 1225}"
