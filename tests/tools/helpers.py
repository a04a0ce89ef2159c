"""What several test modules use: a bounded wait, a prompt, and the oracle in plain Python."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def poll_for(
    condition: Callable[[], object],
    failure: str,
    details: Callable[[], object] = lambda: "",
    *,
    seconds: float = 10,
) -> None:
    """Wait until `condition()` is true; after `seconds` fail with a sentence."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{failure} after {seconds:g} s: {details()}")
        time.sleep(0.01)


def typed(lines: Sequence[str], folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What an interactive Python on a pseudo-terminal writes to stdout and stderr for `lines`."""
    driver, terminal = pty.openpty()
    with open(driver, "w") as keyboard:
        process = subprocess.Popen(
            [sys.executable, "-q", "-i"],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**environment, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"},
            text=True,
        )
        os.close(terminal)
        keyboard.write("\n".join(lines) + "\n")
        keyboard.flush()
        return process.communicate(timeout=60)


def oracle(
    inputs: Iterable[Any],
    pairs_of: Callable[[Any], Iterable[tuple[Hashable, Any]]],
    reduce_fn: Callable[[list[Any]], Any],
) -> dict[Any, Any]:
    """Map-reduce in plain Python; an input whose `pairs_of` raises counts as failed."""
    groups: dict[Any, list[Any]] = {}
    for inp in inputs:
        try:
            pairs = list(pairs_of(inp))
        except Exception:
            continue
        for key, value in pairs:
            groups.setdefault(key, []).append(value)
    return {key: reduce_fn(values) for key, values in groups.items()}


def same(result: dict[Any, Any], expected: dict[Any, Any]) -> bool:
    """Equal, in the same order, with keys of the same types."""
    return [(type(k), k, v) for k, v in result.items()] == [
        (type(k), k, v) for k, v in expected.items()
    ]


def statuses(report: Any) -> Sequence[str]:
    """What became of each input, in the order of the list."""
    return list(report.items["status"])


def mapped_from(array: Any) -> str:
    """The name of the file that the memory of `array` is mapped from, in this process."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return "".join(name)
    return "nowhere"


@contextlib.contextmanager
def meanwhile(function: Callable[[threading.Event], None]) -> Iterator[None]:
    """`function` runs in a thread; it gets an Event that is set at the end."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, over)
        try:
            yield
        finally:
            over.set()
            future.result()
