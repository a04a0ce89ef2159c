"""Where a process was when it died: of real processes, read back from what they wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import poll_for

from at_once_dask.worker import last_stack

BEGIN = """
import ctypes, os, sys, threading, time
from at_once_dask.worker import last_stack

file = open("stack", "w")
assert last_stack.begin(file)
"""

SEGFAULT = f"""{BEGIN}
def dies():
    ctypes.string_at(0)

dies()
"""

CHILD = f"""{BEGIN}
def child_dies():
    ctypes.string_at(0)

if os.fork() == 0:
    child_dies()
os.wait()
os._exit(3)
"""

THREADS = f"""{BEGIN}
def hangs():
    time.sleep(600)

def waits():
    time.sleep(600)

for function in (waits, hangs, waits):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    open(function.__name__, "w").write(str(thread.ident))
open("ready", "w").close()
waits()
"""

RECURSION = f"""{BEGIN}
sys.setrecursionlimit(10**6)

def deep(n):
    if n == 0:
        os.abort()
    deep(n - 1)

deep(5000)
"""


@pytest.fixture
def script(folder: Path) -> Path:
    return folder / "script.py"


def end_of(script: Path, code: str) -> tuple[str, int]:
    """What a process wrote, and its exit code."""
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], timeout=60, check=False)
    return Path("stack").read_text(), done.returncode


def test_a_segfault(script: Path) -> None:
    written, exit = end_of(script, SEGFAULT)
    assert exit == -signal.SIGSEGV
    found = last_stack.read(written, exit, None)
    line = SEGFAULT.splitlines().index("    ctypes.string_at(0)") + 1
    assert found.where == f"{script}:{line} in dies"
    assert "    ctypes.string_at(0)\n" in found.text
    assert found.text.endswith("Fatal Python error: Segmentation fault")


def test_the_death_of_a_child_is_its_own(script: Path) -> None:
    written, exit = end_of(script, CHILD)
    assert exit == 3
    assert last_stack.read(written, exit, None) == last_stack.NOWHERE


def test_a_deep_stack_is_cut(script: Path) -> None:
    written, exit = end_of(script, RECURSION)
    found = last_stack.read(written, exit, None)
    assert found.where.endswith("in deep")
    assert found.text.count(" in deep") <= 100


def test_a_process_that_is_ended_tells_of_the_thread_asked_for(script: Path) -> None:
    script.write_text(THREADS)
    with subprocess.Popen([sys.executable, str(script)]) as process:
        poll_for(Path("ready").exists, "the threads do not start")
        os.kill(process.pid, last_stack.ASK)
        # "Current thread" comes last or first; all are there when the main one's end is.
        poll_for(lambda: Path("stack").read_text().count("most recent call first") == 4, "no stack")
        poll_for(lambda: "<module>" in Path("stack").read_text(), "no stack of the main thread")
        process.kill()
    written = Path("stack").read_text()
    found = last_stack.read(written, -signal.SIGKILL, int(Path("hangs").read_text()))
    assert found.where.endswith("in hangs")
    assert "Fatal" not in found.text
    assert last_stack.read(written, -signal.SIGKILL, None) == last_stack.NOWHERE


def test_a_stack_is_written_when_the_next_one_has_begun(script: Path) -> None:
    script.write_text(THREADS)
    with subprocess.Popen([sys.executable, str(script)]) as process:
        poll_for(Path("ready").exists, "the threads do not start")
        thread = int(Path("hangs").read_text())
        os.kill(process.pid, last_stack.ASK)
        poll_for(lambda: last_stack.is_written(Path("stack").read_text(), thread), "no stack")
        process.kill()
    written = Path("stack").read_text()
    whole = last_stack.read(written, -signal.SIGKILL, thread)
    first = next(end for end in range(len(written)) if last_stack.is_written(written[:end], thread))
    assert last_stack.read(written[:first], -signal.SIGKILL, thread) == whole
    assert whole.where.endswith("in hangs")
    assert not last_stack.is_written(written, None)


def test_of_a_thread_that_was_asked_twice_the_last_stack_counts() -> None:
    asked = "".join(
        f'Thread 0x1 (most recent call first):\n  File "s.py", line {line} in f\n\n'
        for line in (1, 2)
    )
    assert last_stack.read(asked, -signal.SIGKILL, 1).where == "s.py:2 in f"


def test_nothing_was_written() -> None:
    assert last_stack.read("", -signal.SIGSEGV, None) == last_stack.NOWHERE


def test_whoever_was_there_before_is_left_alone(folder: Path) -> None:
    code = """
import faulthandler, sys
faulthandler.enable()
from at_once_dask.worker import last_stack
assert not last_stack.begin(sys.stderr)
assert faulthandler.is_enabled()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
