"""Where the call stands: script, `-c`, standard input, REPL, notebook; what workers know of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from helpers import poll_for, typed
from nbclient import NotebookClient
from scripts import environment

SCRIPT = """
import functools, os, sys
import at_once_dask
import beside

with open("executions", "a") as file:
    file.write("once\\n")
factor = 10

class Scaler:
    def __init__(self, by):
        self.by = by
    def scale(self, n):
        return {"method": n * self.by}

def closure(by):
    def scale(n):
        return {"closure": n * by}
    return scale

def scale(n):
    return {"main": n * factor}

def scale_by(by, n):
    return {"partial": n * by}

kinds = [
    scale,
    lambda n: {"lambda": n * factor},
    closure(3),
    functools.partial(scale_by, 4),
    Scaler(5).scale,
    beside.scale,
]
client = at_once_dask.start(2, dashboard_address="127.0.0.1:0")
for kind in kinds:
    print(dict(at_once_dask.run(range(100), None, kind, reduce_fn=sum, progress=False)))
factor = 20
print(dict(at_once_dask.run(range(100), None, scale, reduce_fn=sum, progress=False)))
"""

BESIDE = """
def scale(n):
    return {"module": n * 6}
"""

EXPECTED = [
    {name: 4950 * by}
    for name, by in [
        ("main", 10), ("lambda", 10), ("closure", 3), ("partial", 4), ("method", 5), ("module", 6),
        ("main", 20),
    ]
]  # fmt: skip


@pytest.fixture
def script(folder: Path) -> Path:
    (folder / "beside.py").write_text(BESIDE)
    path = folder / "script.py"
    path.write_text(SCRIPT)
    return path


OTHER_WAYS = ("-c", "stdin", "-m")


def check(out: str, err: str, folder: Path) -> None:
    assert err == ""
    assert [line for line in out.splitlines() if line] == [str(row) for row in EXPECTED]
    assert (folder / "executions").read_text() == "once\n"


@pytest.mark.parametrize(
    "how", ["file", *(pytest.param(how, marks=pytest.mark.thorough) for how in OTHER_WAYS)]
)
def test_without_a_main_guard(script: Path, how: str) -> None:
    command = {
        "file": [str(script)],
        "-c": ["-c", SCRIPT],
        "stdin": ["-"],
        "-m": ["-m", "script"],
    }[how]
    done = subprocess.run(
        [sys.executable, *command],
        input=SCRIPT if how == "stdin" else None,
        cwd=script.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    check(done.stdout, done.stderr, script.parent)
    assert done.returncode == 0


@pytest.mark.thorough
def test_from_a_repl(script: Path) -> None:
    """Typed into an interactive Python on a pseudo-terminal."""
    lines = [
        f"import pathlib; exec(pathlib.Path({str(script)!r}).read_text())",
        "print('ready', flush=True)",
        "def cube(n): return {'typed': n ** 3}",
        "",
        "print(dict(at_once_dask.run(range(4), None, cube, reduce_fn=sum, progress=False)))",
        "run = at_once_dask.run",
        "print(dict(run([3], None, lambda n: {'t': n}, combine_fn=max, progress=False)))",
        "exit()",
    ]
    out, err = typed(lines, script.parent, environment())
    printed = [line for line in out.splitlines() if line.startswith(("{", "ready"))]
    assert printed == [
        *map(str, EXPECTED), "ready", "{'typed': 36}", "{'t': 3}",
    ]  # fmt: skip
    assert "Traceback" not in err
    assert (script.parent / "executions").read_text() == "once\n"


def test_from_a_notebook(folder: Path, script: Path) -> None:
    cells = [
        *SCRIPT.split("\nkinds = "),
        "import asyncio; asyncio.get_running_loop()",
        "def last(n):\n    return {'cell': n + factor}",
        "print(dict(at_once_dask.run([1], None, last, reduce_fn=sum, progress=False)))",
    ]
    cells[1] = "kinds = " + cells[1]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    kernel = {"env": environment() | {"PYTHONWARNINGS": ""}}  # what Jupyter warns of is not ours
    done: Any = NotebookClient(notebook, timeout=60).execute(cwd=str(folder), **kernel)
    printed = "".join(
        output["text"]
        for cell in done.cells
        for output in cell.outputs
        if output["output_type"] == "stream" and output["name"] == "stdout"
    )
    assert printed.splitlines() == [*map(str, EXPECTED), "{'cell': 21}"]
    assert (folder / "executions").read_text() == "once\n"


SURROUNDINGS = """
import importlib, os, sys
import at_once_dask
import helper, outer

at_once_dask.start(2, dashboard_address="127.0.0.1:0")

def look(n):
    import inner
    return {
        "helper": helper.answer(),
        "outer": outer.answer(),
        "inner": inner.answer(),
        "directory": os.getcwd(),
        "variable": os.environ.get("AT_ONCE_TEST"),
        "gone": os.environ.get("AT_ONCE_GONE"),
    }

def seen(function=look):
    result = at_once_dask.run(range(40), None, function, reduce_fn=set, progress=False)
    return {key: sorted(map(str, values)) for key, values in result.items()}

def edit(name, answer):
    with open(os.path.join(here, name + ".py"), "w") as file:
        file.write(f"def answer(): return {answer!r}\\n")

here = os.getcwd()
os.environ["AT_ONCE_GONE"] = "here"
print(seen())
edit("helper", "helper, edited")
edit("inner", "inner, edited too")
importlib.reload(helper)
importlib.reload(outer)
os.mkdir("elsewhere")
os.chdir("elsewhere")
os.environ["AT_ONCE_TEST"] = "set"
del os.environ["AT_ONCE_GONE"]
print(seen())
print(seen())
os.mkdir("library")
with open("library/fresh.py", "w") as file:
    file.write("def answer(): return 'fresh'")
sys.path.append(os.path.abspath("library"))

def look_fresh(n):
    import fresh
    return {"fresh": fresh.answer()}

print(seen(look_fresh))
"""


def test_surroundings_and_edited_modules(folder: Path) -> None:
    """Each `run()` has the driver's directory, environment, import path, and code as it is now."""
    (folder / "helper.py").write_text("def answer(): return 'helper'\n")
    (folder / "inner.py").write_text("def answer(): return 'inner'\n")
    (folder / "outer.py").write_text(
        "from helper import answer as asked\ndef answer(): return 'outer of ' + asked()\n"
    )
    (folder / "script.py").write_text(SURROUNDINGS)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    first = {
        "helper": ["helper"],
        "outer": ["outer of helper"],
        "inner": ["inner"],
        "directory": [str(folder)],
        "variable": ["None"],
        "gone": ["here"],
    }
    second = {
        "helper": ["helper, edited"],
        "outer": ["outer of helper, edited"],
        "inner": ["inner, edited too"],
        "directory": [str(folder / "elsewhere")],
        "variable": ["set"],
        "gone": ["None"],
    }
    expected = [first, second, second, {"fresh": ["fresh"]}]
    assert done.stdout.splitlines() == [str(row) for row in expected]
    assert done.returncode == 0


LEGACY = """
import at_once_dask as at_once

at_once.logfile = "my_log.jsonl"

def check_inp(inp):
    return [inp == 2, {"n": 2}]

def process_inp(inp):
    at_once.log(f"working on {inp}")
    return {"n": inp}

def reduce_fn(values):
    return sum(values)

at_once.run([1, 2, 3], check_inp, process_inp)
at_once.run([1, 2, 3], check_inp, process_inp, do_shuffle=True)
print(at_once.run([1, 2, 3], check_inp, process_inp, reduce_fn=reduce_fn) == {"n": 6})
print(at_once.run([1, 2, 3], check_inp, process_inp, False, reduce_fn))
"""


def test_programs_of_the_older_library_go_on_working(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEGACY],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["True", "{'n': 6}"]
    assert (folder / "my_log.jsonl").read_text().count("working on 3") == 4
    assert done.returncode == 0


@pytest.mark.parametrize(
    "seconds", [0, 0.1, 0.3, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.01, 1.2))]
)
def test_ctrl_c_while_the_cluster_starts(folder: Path, seconds: float) -> None:
    """As from a terminal, to the whole process group, at a moment of the start."""
    script = """
import time
import at_once_dask
at_once_dask.run(range(1000), None, lambda n: time.sleep(0.1), progress=False)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    poll_for(lambda: psutil.Process(process.pid).children(), "the run has begun nothing")
    time.sleep(seconds)  # not to wait for something: to be somewhere in the middle
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "\nKeyboardInterrupt: Interrupted: Ctrl-C.\n" in err
    assert "forkserver" not in err
    assert "Exception ignored" not in err
    poll_for(lambda: not group(process.pid), "processes are left behind")


def test_ctrl_c_between_the_imports_and_the_run(folder: Path) -> None:
    """There it once found Python's own handler: the end told nothing."""
    script = """
import importlib.machinery, os, signal, sys
import at_once_dask

class Pressing:
    def find_spec(self, name, path=None, target=None):
        if name != "at_once_dask.call":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def pressed(module):
            execute(module)
            os.kill(os.getpid(), signal.SIGINT)
        spec.loader.exec_module = pressed
        return spec

sys.meta_path.insert(0, Pressing())
at_once_dask.run(range(1000), None, print, progress=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGINT
    _, _, told = done.stderr.partition("\nKeyboardInterrupt: ")
    assert told.splitlines()[0] == "Interrupted: Ctrl-C."
    assert told.splitlines()[-1].startswith("Next: run the same again to go on")
    assert done.stdout == ""


def group(pgid: int) -> list[psutil.Process]:
    """The processes of a process group, those excepted that have ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
