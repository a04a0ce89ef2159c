"""What is written to the descriptors 1 and 2, where the kernel or the disk gives little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, resource, subprocess, sys, time
from at_once_dask.logs import descriptors, log_file
from at_once_dask.protocol.progress_folder import ProgressFolder

descriptors._inotify()  # the process keeps it
before = [os.readlink(f"/proc/self/fd/{n}") for n in (1, 2)], len(os.listdir("/proc/self/fd"))
BEFORE
folder = ProgressFolder(os.getcwd(), "run", "worker")
folder.open()
run_log = log_file.open_run_log("run", os.path.abspath("log.jsonl"), True)
captured = descriptors.Descriptors(run_log, "worker", folder)
WRITE
captured.close()
after = [os.readlink(f"/proc/self/fd/{n}") for n in (1, 2)], len(os.listdir("/proc/self/fd"))
assert after == before, (before, after)
print("said aloud")
"""


def run_script(folder: Path, write: str, before: str = "", script: str = SCRIPT) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script.replace("BEFORE", before).replace("WRITE", write)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "said aloud\n"


def messages(folder: Path, write: str, before: str = "") -> list[str]:
    run_script(folder, write, before)
    return [json.loads(line)["msg"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_where_the_kernel_does_not_tell_of_changes(folder: Path) -> None:
    none_left = "descriptors._watch = lambda paths, undo: None"
    write = "os.write(1, b'one\\ntwo')\nos.system('echo three >&2')"
    assert sorted(messages(folder, write, none_left)) == ["one", "three", "two"]


def test_much_on_a_line_without_an_end_takes_little(folder: Path) -> None:
    write = """
for _ in range(512):
    os.write(1, bytes(2**16))
os.write(2, b"".join(b"%d %%\\r" % n for n in range(100_000)) + b"done")
captured.catch_up()
assert time.process_time() < 4
"""
    zeros, state = messages(folder, write)
    assert set(zeros) == {"\0", "…"}
    assert state == "done"


def test_what_is_in_the_log_takes_no_room_any_more(folder: Path) -> None:
    write = """
for n in range(64):
    os.write(1, b"x" * (2**18 - 1) + b"\\n")
captured.catch_up()
found = os.stat(folder.written(1))
assert found.st_size == 2**24, found
assert found.st_blocks * 512 <= 2**23, found.st_blocks
"""
    assert len(messages(folder, write)) == 64


def test_where_one_cannot_be_captured_all_is_as_it_was(folder: Path) -> None:
    trial = """
os.mkdir(folder.written(2))
try:
    descriptors.Descriptors(run_log, "worker", folder)
except IsADirectoryError:
    pass
else:
    raise AssertionError("it was captured")
os.rmdir(folder.written(2))
"""
    script = SCRIPT.replace("captured = ", trial + "captured = ")
    run_script(folder, "os.write(1, b'one')", script=script)
