"""Sixty-four workers on few cores: late answers are no deaths, and nothing runs twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import poll_for

N_WORKERS, N = 64, 2_560
STOPPED_SECONDS = 15

# Each input notes that it begins; every 500th of the deadly ones is a segfault.
SCRIPT = """
import ctypes, json, os, sys, time
import at_once_dask

deadly = sys.argv[1] == "segfaults"

def process(inp):
    file = os.open("begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{inp}\\n".encode())
    os.close(file)
    if deadly and inp % 500 == 250:
        ctypes.string_at(0)
    time.sleep(0.1)
    return {inp % 10: inp}

at_once_dask.start({N_WORKERS}, memory_limit="1 GiB", dashboard_address="127.0.0.1:0")
result = at_once_dask.run(
    range({N}), None, process, reduce_fn=sum, on_error="return", progress=False
)
failures = result.report.failures
print(json.dumps([sorted(result.items()), failures["input"].tolist(), failures["exit"].tolist()]))
""".replace("{N_WORKERS}", str(N_WORKERS)).replace("{N}", str(N))


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """Meanwhile so many processes keep cores busy."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["quiet", "busy", "stopped", "segfaults"])
def test_all_is_right_and_nothing_ran_twice(folder: Path, how: str) -> None:
    cores = os.cpu_count() or 1
    with busy(2 * cores if how == "busy" else 0):
        driver = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, how], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        if how == "stopped":
            begun = folder / "begun"
            poll_for(
                lambda: begun.exists() and begun.read_text().count("\n") > 500,
                "the inputs do not begin",
                seconds=60,
            )
            driver.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)  # what is tested, and nothing that is waited for
            driver.send_signal(signal.SIGCONT)
        out, _ = driver.communicate(timeout=250)

    guilty = set(range(250, N, 500)) if how == "segfaults" else set()
    pairs, failed, exits = json.loads(out.splitlines()[-1])
    expected = {key: sum(n for n in range(key, N, 10) if n not in guilty) for key in range(10)}
    assert dict(pairs) == expected
    assert sorted(map(int, failed)) == sorted(guilty)
    assert set(exits) <= {"SIGSEGV"}
    times = Counter(map(int, (folder / "begun").read_text().split()))
    assert set(times) == set(range(N))
    if not guilty:
        assert set(times.values()) == {1}
    assert max(times.values()) <= 2
