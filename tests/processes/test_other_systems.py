"""Where the own cluster cannot be: one sentence says what works, and all else does.

Another system is pretended: what Linux alone has is taken away before the package is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from dask_processes import dask_command

import at_once_dask

pytestmark = pytest.mark.thorough
PRETEND = """
import faulthandler, multiprocessing.popen_forkserver, os, signal, sys
import distributed, pandas, psutil, tornado.ioloop, tqdm.auto  # these ask for the system themselves

for module, names in {
    os: "posix_fallocate pidfd_open uname register_at_fork killpg setpgid fork WNOHANG sysconf",
    signal: "sigtimedwait pthread_sigmask SIGUSR1 SIGUSR2 SIGBUS",
}.items():
    for name in names.split():
        delattr(module, name)
sys.modules["resource"] = sys.modules["fcntl"] = None
sys.modules["multiprocessing.popen_forkserver"] = None
del sys.modules["multiprocessing"].popen_forkserver
sys.platform = sys.argv[1]
"""


def run_there(system: str, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRETEND + textwrap.dedent(text), system, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(at_once_dask.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_the_first_call_says_what_works(system: str) -> None:
    done = run_there(
        system,
        """
        import at_once_dask
        for call in (
            lambda: at_once_dask.start(2),
            lambda: at_once_dask.run([1], None, abs, progress=False),
            lambda: at_once_dask.plan([1], None, progress=False),
        ):
            try:
                call()
            except at_once_dask.AtOnceError as error:
                print(type(error).__name__, error)
        """,
    )
    sentence = (
        "AtOnceError at_once_dask starts workers of its own on Linux only, and this is"
        f" {system}: there is no /proc, by which it ends what they leave; run it in a Linux"
        " container or in WSL, or pass a Client of a Dask cluster, as in run(inp_list, check_inp,"
        " process_inp, client=client)\n"
    )
    assert done.stdout == 3 * sentence
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_what_is_plain_python_works(system: str, folder: Path) -> None:
    """All modules, wrong arguments, the log, an empty run and its report."""
    done = run_there(
        system,
        """
        import importlib, pkgutil
        import at_once_dask
        for module in pkgutil.walk_packages(at_once_dask.__path__, "at_once_dask."):
            if module.name != "at_once_dask.__main__":
                importlib.import_module(module.name)
        try:
            at_once_dask.run({1: 2}, None, abs)
        except at_once_dask.InputError:
            print("refused")
        at_once_dask.log("a record")
        print(at_once_dask.read_log()["msg"].tolist())
        report = at_once_dask.run([], None, abs, report_path="report.html", progress=False)
        print(report.ok, len(report.failures))
        at_once_dask.close()
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "refused\n['a record']\nTrue 0\n"
    assert "Finished" in (folder / "report.html").read_text("utf-8")


def test_the_cluster_of_others_works(folder: Path) -> None:
    path = folder / "scheduler.json"
    with (
        dask_command("scheduler", path, "--port", "0"),
        dask_command("worker", path, "--nthreads", "1"),
    ):
        done = run_there(
            "darwin",  # as win32 Dask itself would wait for ever
            """
            import at_once_dask
            client = distributed.Client(scheduler_file=sys.argv[2], set_as_default=False)
            client.wait_for_workers(1, timeout=30)
            def check(n):
                return [n < 3, None]
            plan = at_once_dask.plan(range(8), check, client=client, progress=False)
            print(plan.n_done, plan.pending)
            print(at_once_dask.run(
                range(8), None, lambda n: {n % 2: n}, reduce_fn=sum, client=client, progress=False
            ))
            client.close()
            """,
            str(path),
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 [3, 4, 5, 6, 7]\n{0: 12, 1: 16}\n"
