"""What is printed and logged where several threads do so at once."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from at_once_dask.logs import log_file, streams
from at_once_dask.protocol import lease
from at_once_dask.protocol.progress_file import ProgressFile


def records(run: str | None = None) -> list[tuple[str, Any, str]]:
    """Level, input and text of each record, as the log has them."""
    log = Path.cwd() / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    found = [json.loads(line) for line in lines]
    return [
        (record["level"], record["input"], record["msg"])
        for record in found
        if run is None or record["run"] == run
    ]


def test_two_runs_at_once_in_a_worker(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever ends first; what somebody else has put in place meanwhile stays."""
    before = sys.stdout, sys.stderr
    books = [log_file.RunLog(name, str(folder / "log.jsonl"), ("", 0, 0)) for name in "ab"]
    for first, second in (books, books[::-1]):
        streams.begin(books[0])
        during = sys.stdout
        streams.begin(books[1])
        assert sys.stdout is during
        streams.end(first)
        assert sys.stdout is during
        streams.end(second)
        assert (sys.stdout, sys.stderr) == before
    streams.begin(books[0])
    with contextlib.redirect_stdout(io.StringIO()) as others:
        streams.end(books[0])
        assert sys.stdout is others
    print("through what is left")
    assert capsys.readouterr().out == "through what is left\n"
    sys.stdout = before[0]


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Forget what an input has configured."""
    root = logging.getLogger()
    level = root.level
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in root.handlers[:]:
            root.removeHandler(handler)


def test_threads_that_are_gone_leave_nothing_open(folder: Path) -> None:
    """Of one of several inputs, nobody knows which: when the run ends is too late."""
    with working():
        lease.take("r-2", 1, ProgressFile(1, 1))
        for n in range(3):
            assert end_all(functools.partial(print, n, end=""))
        streams.tidy("r")
        assert sorted(records()) == [("STDOUT", None, str(n)) for n in range(3)]
        assert not streams._pages


@contextlib.contextmanager
def working() -> Iterator[lease.Lease]:
    """Output is captured in this process: an input is at work, in whatever thread."""
    run_log = log_file.RunLog("r", str(Path.cwd() / "log.jsonl"), ("", 0, 0))
    mine = lease.take("r-1", 0, ProgressFile(0, 1))
    mine.run_log, mine.indices = run_log, range(1)
    streams.begin(run_log)
    with as_before():
        yield mine
    streams.end(run_log)
    lease.forget("r")


def end_all(*functions: Callable[[], object]) -> bool:
    """Each in a thread of its own: whether none of them waits for ever."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("with_handler", [False, True])
def test_a_destructor_that_logs_while_its_thread_writes(
    monkeypatch: pytest.MonkeyPatch, with_handler: bool
) -> None:
    """And another thread writes just then what it logs: neither waits for the other."""
    inside, held, append = threading.Event(), threading.Event(), log_file.append_line

    class Slow:
        def __str__(self) -> str:
            held.set()
            return "slow"

    def destructor_runs(path: str, text: str) -> None:
        monkeypatch.setattr(log_file, "append_line", append)
        inside.set()
        assert held.wait(5)
        print("destroyed", file=sys.stderr)
        logging.getLogger("destructor").warning("unclosed")
        append(path, text)

    def logs() -> None:
        assert inside.wait(5)
        logging.getLogger("mine").warning("%s", Slow())

    monkeypatch.setattr(log_file, "append_line", destructor_runs)
    with working():
        if with_handler:
            logging.getLogger().addHandler(logging.StreamHandler())
        assert end_all(lambda: print("printed"), logs)
    assert sorted(text for _, _, text in records()) == ["mine: slow", "printed"]


def test_a_handler_writes_while_logging_is_configured(folder: Path) -> None:
    """Who configures holds the lock of `logging`, and may wait for that of the handler."""
    with working():
        root = logging.getLogger()
        root.addHandler(logging.StreamHandler())
        assert root.isEnabledFor(logging.WARNING)  # asked for the first time, it takes the lock
        with logging._lock:  # type: ignore[attr-defined]
            assert end_all(lambda: root.warning("hello"))
    assert records() == [("WARNING", None, "root: hello")]
