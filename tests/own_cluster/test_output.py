"""Output of the items: printed lines and `logging` records are in the log, with their input."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import pty
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client
from helpers import poll_for
from tqdm import tqdm

import at_once_dask
from at_once_dask.logs import log_file, logging_records, streams
from at_once_dask.protocol import lease
from at_once_dask.protocol.progress_file import ProgressFile

ROOT = str(Path(at_once_dask.__file__).parents[1])


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


def said_by(function: Callable[[], object]) -> list[tuple[str, str]]:
    """Level and text of what `function` leaves in the log, as an input's work."""
    report = at_once_dask.run([1], None, lambda n: function() and None, progress=False)
    found = records(report.run)
    assert {inp for _, inp, _ in found} <= {"1"}
    return [(level, text) for level, _, text in found]


def printed_by(function: Callable[[], object]) -> list[str]:
    """The same, where all is of stdout."""
    found = said_by(function)
    assert {level for level, _ in found} <= {"STDOUT"}
    return [text for _, text in found]


# ----- with the input they belong to


def test_what_all_functions_print(cluster: Client) -> None:
    def check(inp: str) -> list[Any]:
        print("check", inp)
        return [False, None]

    def work(inp: str) -> dict[str, int]:
        print("work", inp, file=sys.stderr)
        return {f"key of {inp}": 1}

    def reduce(values: list[int]) -> int:
        print("reduce", values)
        return sum(values)

    result = at_once_dask.run(["a", "b"], check, work, reduce_fn=reduce, progress=False)
    log = at_once_dask.read_log(run=result.report.run)
    assert log["worker"].isin(cluster.nthreads()).all()
    assert (log["pid"] != os.getpid()).all()
    for index, inp in enumerate("ab"):
        mine = log[log["index"] == index].drop_duplicates("msg")
        assert list(mine["input"]) == [f"'{inp}'"] * 2
        assert list(mine["msg"]) == [f"check {inp}", f"work {inp}"]
        assert list(mine["level"]) == ["STDOUT", "STDERR"]
    reducing = log[log["msg"] == "reduce [1]"]
    assert set(reducing["input"]) == {"'key of a'", "'key of b'"}
    assert reducing["index"].isna().all()
    assert len(log) in (7, 8)  # one or two inputs are asked again, to be compared


def test_combine_fn_prints_with_the_key(cluster: Client) -> None:
    def add(a: int, b: int) -> int:
        print("adding")
        return a + b

    report = at_once_dask.run(
        range(4), None, lambda n: {"k": n}, combine_fn=add, progress=False
    ).report
    found = records(report.run)
    assert len(found) == 3
    assert {text for _, _, text in found} == {"adding"}


def test_a_plan_prints_nothing_either(cluster: Client) -> None:
    at_once_dask.plan([1, 2], lambda n: [print("looking at", n), None], progress=False)
    assert sorted(records()) == [
        ("STDOUT", "1", "looking at 1"),
        ("STDOUT", "2", "looking at 2"),
    ]


class Opened:
    """Prints when a worker unpickles it."""

    def __call__(self, n: int) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        print("opened")

    def __getstate__(self) -> object:
        return "something"


def test_what_the_functions_print_when_they_are_unpickled(cluster: Client) -> None:
    """As their modules do when they are imported: it is of no input."""
    report = at_once_dask.run(range(2), None, Opened(), progress=False)
    assert set(records(report.run)) == {("STDOUT", None, "opened")}


def test_threads_of_an_input(cluster: Client) -> None:
    def talk(n: int) -> None:
        def within() -> None:
            print("a", end="")
            print("b", end="")

        thread = threading.Thread(target=within)
        print("mine", end="")
        thread.start()
        thread.join()
        print(" too")

    report = at_once_dask.run(range(8), None, talk, progress=False)
    found = sorted(records(report.run))
    assert found == sorted(
        ("STDOUT", str(n), text) for n in range(8) for text in ("mine too", "ab")
    )


def test_a_line_is_in_the_log_before_the_process_dies(cluster: Client) -> None:
    def die(n: int) -> None:
        print("last words of", n)
        logging.getLogger("mine").warning("and these")
        if n == 3:
            ctypes.string_at(0)

    report = at_once_dask.run(range(6), None, die, on_error="return", progress=False)
    assert list(report.failures.index) == [3]
    log = at_once_dask.read_log(run=report.run)
    mine = log[log["index"] == 3]
    assert list(mine["msg"])[:2] == ["last words of 3", "mine: and these"]
    assert list(mine["level"]) == ["STDOUT", "WARNING", "ERROR"]


def test_what_an_input_printed_comes_before_its_failure(cluster: Client) -> None:
    def fail(n: int) -> None:
        print("half a line", end="")
        raise ValueError

    report = at_once_dask.run([1], None, fail, on_error="return", progress=False)
    assert [level for level, _, _ in records(report.run)] == ["STDOUT", "ERROR"]


def test_a_repr_that_prints_does_not_matter(cluster: Client) -> None:
    class Loud:
        def __repr__(self) -> str:
            print("I am shown")
            logging.getLogger("loud").warning("again")
            return "loud"

    report = at_once_dask.run([Loud()], None, lambda loud: print("working"), progress=False)
    assert records(report.run) == [("STDOUT", "loud", "working")]


class Loud:
    """Prints and logs when it is pickled, and when it is unpickled."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        return f"loud {self.n}"

    def __getstate__(self) -> int:
        print("pickled", self.n)
        at_once_dask.log("pickled")
        return self.n

    def __setstate__(self, n: int) -> None:
        print("unpickled", n)
        at_once_dask.log("unpickled")
        if n == 3 and Path("once").exists():
            Path("once").unlink()
            os._exit(3)
        self.n = n


def of_input(record: dict[str, Any]) -> bool:
    """Whether it names an input; `index` and `input` never disagree."""
    if record["index"] is None:
        assert record["input"] is None
        return False
    assert record["input"] == f"loud {record['index']}"
    return True


def records_of(report: at_once_dask.Report) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in Path(report.logfile).read_text().splitlines()]
    return [record for record in found if record["worker"] != "driver"]


@pytest.mark.parametrize("singly", [False, True])
def test_what_pickling_says_is_of_no_input(cluster: Client, singly: bool) -> None:
    """Together; and one by one, after a worker has died of them."""

    def work(loud: Loud) -> dict[str, Loud]:
        print("at work", loud.n)
        return {"key": loud}

    if singly:
        Path("once").touch()
    inputs = [Loud(n) for n in range(8)]
    result = at_once_dask.run(inputs, None, work, reduce_fn=len, progress=False)
    assert result == {"key": 8}
    found = [record for record in records_of(result.report) if record["input"] != "'key'"]
    pickling = [record for record in found if "pickled" in record["msg"]]
    assert not any(map(of_input, pickling))
    at_work = {record["msg"] for record in found if of_input(record)}
    assert at_work == {f"at work {n}" for n in range(8)}


def test_a_forked_child_stays_with_its_input(cluster: Client, folder: Path) -> None:
    """The worker goes on meanwhile, and what it notes is in memory that the child shares."""

    def work(loud: Loud) -> None:
        if loud.n == 0 and os.fork() == 0:
            poll_for((folder / "last").exists, "the worker does not go on")
            print("from the child")
            at_once_dask.log("from the child")
            os._exit(0)
        if loud.n == 5:
            (folder / "last").touch()
            text = "from the child"
            poll_for(lambda: (folder / "log.jsonl").read_text().count(text) == 2, "nothing")

    report = at_once_dask.run(map(Loud, range(6)), None, work, progress=False)
    said = [record for record in records_of(report) if record["msg"] == "from the child"]
    assert [record["index"] for record in said] == [0, 0]
    assert all(map(of_input, said))


# ----- lines


def write(text: str) -> Callable[[], object]:
    def writing() -> None:
        sys.stdout.write(text)

    return writing


def test_lines(cluster: Client) -> None:
    assert printed_by(write("one\ntwo\n\nfour")) == ["one", "two", "", "four"]
    assert printed_by(write("")) == []
    assert printed_by(write("windows\r\n")) == ["windows"]
    assert printed_by(lambda: [print(n, end="") for n in range(5)]) == ["01234"]
    assert printed_by(lambda: print("naïve 漢 \ud800 \x00")) == ["naïve 漢 \\ud800 \x00"]
    assert printed_by(lambda: print("flushed", end="", flush=True)) == ["flushed"]
    assert printed_by(lambda: sys.stdout.writelines(["a", "b\n", "c"])) == ["ab", "c"]


def test_a_line_without_an_end_ends_with_its_input(cluster: Client) -> None:
    report = at_once_dask.run(range(6), None, lambda n: print(n, end=""), progress=False)
    assert sorted(records(report.run)) == [("STDOUT", str(n), str(n)) for n in range(6)]


def test_a_line_without_an_end_does_not_wait_for_the_next_input(
    cluster: Client, folder: Path
) -> None:
    """Of the same partition, which prints nothing."""
    (folder / "log.jsonl").touch()

    def work(n: int) -> None:
        if n % 2 == 0:
            print(f"end of {n}", end="")
        else:
            text = f"end of {n - 1}"
            poll_for(lambda: text in (folder / "log.jsonl").read_text(), "not logged")

    assert at_once_dask.run(range(8), None, work, progress=False).ok


def test_of_a_progress_bar_the_last_state_stays(cluster: Client) -> None:
    def before() -> None:
        for n in range(101):
            sys.stdout.write(f"\r{n} %")
            sys.stdout.flush()

    def behind() -> None:
        for n in range(101):
            print(f"{n} %", end="\r")

    def wiped() -> None:
        before()
        print("\r     ", end="\r")

    def bar() -> None:
        for _ in tqdm(range(1000), mininterval=0, ascii=True, ncols=40):
            pass

    def fleeting() -> None:
        for _ in tqdm(range(1000), mininterval=0, leave=False):
            pass

    assert printed_by(before) == ["100 %"]
    assert printed_by(behind) == ["100 %"]
    assert printed_by(write("\r1 %\r2 %\n")) == ["2 %"]
    assert printed_by(wiped) == []
    ((level, text),) = said_by(bar)
    assert (level, text[:4]) == ("STDERR", "100%")
    assert said_by(fleeting) == []


def test_a_long_line_is_cut(cluster: Client) -> None:
    def endless() -> None:
        for _ in range(100_000):
            sys.stdout.write("x" * 100)
        print("\nnext")

    long, after = printed_by(endless)
    assert long == "x" * 9_999 + "…"
    assert after == "next"
    assert [len(text) for text in printed_by(write("y" * 10_000_000))] == [10_000]


@pytest.mark.thorough
def test_many_lines_fill_no_memory(cluster: Client) -> None:
    def flood(n: int) -> dict[str, int]:
        if n:
            return {"others": 1}
        before = psutil.Process().memory_info().rss
        sys.stdout.write("a line\n" * 200_000)
        for line in range(10_000):
            print(line)
        return {"grown": psutil.Process().memory_info().rss - before}

    result = at_once_dask.run(range(100), None, flood, reduce_fn=sum, progress=False)
    assert result["grown"] < 20 * 2**20
    assert result["others"] == 99
    assert len(at_once_dask.read_log(run=result.report.run)) == 210_000


def test_a_full_disk_fails_no_input(cluster: Client) -> None:
    at_once_dask.logfile = "/dev/full"

    def work(n: int) -> None:
        print("nowhere to go", end="")
        print()
        logging.getLogger().warning("nor has this")

    assert at_once_dask.run(range(6), None, work, progress=False).n_processed == 6


# ----- the streams


def test_the_streams_are_as_others(cluster: Client, folder: Path) -> None:
    def look() -> None:
        out = sys.stdout
        assert (out.isatty(), out.encoding, out.writable()) == (False, "utf-8", True)
        assert (out.closed, out.readable(), out.errors) == (False, False, "backslashreplace")
        assert out.name == "<stdout>"
        assert isinstance(out.fileno(), int)
        assert isinstance(out, io.TextIOBase)
        assert pickle.loads(pickle.dumps(out)) is out
        assert out.write("four") == 4
        out.reconfigure(encoding="latin-1")
        out.close()
        print()
        with pytest.raises(TypeError, match="must be str, not int"):
            out.write(4)
        with pytest.raises(TypeError):
            out.buffer.write(4)
        with contextlib.redirect_stdout(io.StringIO()) as mine:
            print("only here")
        assert mine.getvalue() == "only here\n"

    assert printed_by(look) == ["four"]


def test_bytes(cluster: Client) -> None:
    def write_bytes() -> None:
        data = "é\n".encode()
        assert sys.stdout.buffer.write(data[:1]) == 1
        sys.stdout.buffer.write(memoryview(data)[1:])
        sys.stdout.buffer.write(b"\xff\n")
        assert sys.stdout.buffer.mode == "wb"
        sys.stdout.buffer.flush()
        with io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", write_through=True) as wrapped:
            print("wrapped", file=wrapped)
        print("goes on")

    assert printed_by(write_bytes) == ["é", "\\xff", "wrapped", "goes on"]


def test_warnings(cluster: Client) -> None:
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("beware", stacklevel=1)

    first, *_ = said_by(warn)
    assert first[0] == "STDERR"
    assert first[1].endswith("UserWarning: beware")


def test_a_forked_child(cluster: Client) -> None:
    def child() -> None:
        print("child")
        print("without end", end="")
        logging.getLogger("child").error("has failed")

    def fork() -> None:
        print("parent", end="")
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
        print(" too")

    assert sorted(said_by(fork)) == sorted(
        [
            ("STDOUT", "child"),
            ("STDOUT", "without end"),
            ("ERROR", "child: has failed"),
            ("STDOUT", "parent too"),
        ]
    )


def seen_in_worker() -> tuple[bool, bool, int]:
    """Whether the streams are ours, whether logging is, and the root logger's level."""
    ours = [type(stream).__module__ == streams.__name__ for stream in (sys.stdout, sys.stderr)]
    assert ours[0] == ours[1]
    notes_records = logging.Logger.callHandlers.__code__.co_filename == logging_records.__file__
    return ours[0], notes_records, logging.getLogger().level


def test_the_streams_are_put_back(cluster: Client) -> None:
    seen = at_once_dask.run(
        [1], None, lambda n: {"during": seen_in_worker()}, reduce_fn=list, progress=False
    )
    assert seen == {"during": [(True, True, logging.WARNING)]}
    after = cluster.run(seen_in_worker)
    assert set(after.values()) == {(False, False, logging.WARNING)}


# ----- logging


def test_logging(cluster: Client) -> None:
    def work() -> None:
        mine = logging.getLogger("mine.too")
        mine.setLevel(logging.DEBUG)
        mine.debug("%s of %s", 1, 2)
        mine.log(35, "odd")
        logging.getLogger("others").info("not asked for")
        logging.getLogger("others").warning("two\nlines")
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger().exception("it broke")
        mine.setLevel(logging.NOTSET)

    *found, last = said_by(work)
    assert found == [
        ("DEBUG", "mine.too: 1 of 2"),
        ("Level 35", "mine.too: odd"),
        ("WARNING", "others: two\nlines"),
    ]
    assert last[0] == "ERROR"
    assert last[1].startswith("root: it broke\nTraceback (most recent call last):\n")
    assert last[1].endswith("\nValueError: inner")


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


def test_a_functions_own_configuration(cluster: Client, folder: Path) -> None:
    """Its level counts; what its handlers print is in the log already, once."""

    def work() -> None:
        with as_before():
            logging.basicConfig(level=logging.INFO)
            logging.getLogger("mine").info("once")
            logging.getLogger().addHandler(logging.FileHandler(folder / "own.log"))
            logging.getLogger("mine").info("also there")
        alone = logging.getLogger("alone")
        alone.propagate = False
        alone.addHandler(logging.StreamHandler())
        alone.warning("by its own handler")

    assert said_by(work) == [
        ("INFO", "mine: once"),
        ("INFO", "mine: also there"),
        ("STDERR", "by its own handler"),
    ]
    assert (folder / "own.log").read_text() == "also there\n"


def test_who_asks_for_handlers_first_configures_too(cluster: Client) -> None:
    def work() -> None:
        with as_before():
            mine = logging.getLogger("mine")
            if not mine.hasHandlers():
                logging.basicConfig(level=logging.INFO)
            mine.info("once")
            assert mine.hasHandlers()

    assert said_by(work) == [("INFO", "mine: once")]


def test_the_drivers_level_is_the_workers(cluster: Client) -> None:
    def work() -> None:
        logging.getLogger("mine").info("for the curious")

    level = logging.getLogger().level
    assert said_by(work) == []
    logging.getLogger().setLevel(logging.INFO)
    try:
        assert said_by(work) == [("INFO", "mine: for the curious")]
    finally:
        logging.getLogger().setLevel(level)
    assert said_by(work) == []


def test_a_record_that_cannot_be_formatted(cluster: Client) -> None:
    found = said_by(lambda: logging.getLogger("mine").warning("%d", "no number"))
    assert {level for level, _ in found} == {"STDERR"}
    assert "--- Logging error ---" in [text for _, text in found]


class Redacted(logging.Filter):
    """As people write it to keep secrets out of logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = record.getMessage().replace("hunter2", "***")
        record.args = ()
        return "nobody's business" not in record.msg


@pytest.mark.parametrize("where", ["logger", "handler"])
def test_what_filters_change_or_drop(cluster: Client, where: str) -> None:
    """What the handlers get, the log gets."""

    def work() -> None:
        with as_before():
            mine, handler, redacted = logging.getLogger("mine"), logging.StreamHandler(), Redacted()
            logging.getLogger().addHandler(handler)
            changed = mine if where == "logger" else handler
            changed.addFilter(redacted)
            try:
                mine.warning("the password is %s", "hunter2")
                if where == "logger":
                    mine.warning("nobody's business")
            finally:
                changed.removeFilter(redacted)

    assert said_by(work) == [("WARNING", "mine: the password is ***")]


def test_a_logger_that_is_to_be_silent(cluster: Client) -> None:
    """As libraries are silenced."""

    def work() -> None:
        silent = logging.getLogger("silent")
        silent.propagate = False
        silent.addHandler(logging.NullHandler())
        silent.warning("not to be heard")
        logging.getLogger("silent.child").warning("nor this")

    assert said_by(work) == []


def test_records_through_a_queue(cluster: Client) -> None:
    """Copied with ``logging.makeLogRecord``, which makes them empty first; printed by a thread."""

    def work() -> None:
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        queued = logging.getLogger("queued")
        queued.propagate = False
        handler = logging.handlers.QueueHandler(records)
        queued.addHandler(handler)
        copied = logging.makeLogRecord({"name": "made", "msg": "elsewhere", "levelname": "INFO"})
        listener = logging.handlers.QueueListener(records, logging.StreamHandler())
        listener.start()
        queued.warning("through the queue")
        records.put(copied)
        listener.stop()
        queued.removeHandler(handler)

    assert said_by(work) == [("STDERR", "through the queue"), ("STDERR", "elsewhere")]


# ----- what the driver shows


SCRIPT = """
import logging
import sys
import at_once_dask

at_once_dask.capture_output = {capture}


def work(n):
    print("printed", n)
    print("also", n, file=sys.stderr)
    logging.getLogger("mine").warning("logged %s", n)


at_once_dask.start(1, dashboard_address="127.0.0.1:0")  # of two, lines could mix
at_once_dask.run(range(20), None, work)
print("done")
"""


def run_script(folder: Path, capture: bool, terminal: int) -> str:
    """What it writes to stdout, while its stderr is a terminal."""
    (folder / "script.py").write_text(SCRIPT.format(capture=capture))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    return done.stdout


def shown(driver: int) -> str:
    os.set_blocking(driver, False)
    text = b""
    with contextlib.suppress(OSError):
        while piece := os.read(driver, 65536):
            text += piece
    return text.decode()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    pair = pty.openpty()
    yield pair
    for end in pair:
        os.close(end)


@pytest.mark.thorough
def test_the_progress_stays_clean(folder: Path, terminal: tuple[int, int]) -> None:
    assert run_script(folder, True, terminal[1]) == "done\n"
    bar = shown(terminal[0])
    assert "20 processed" in bar
    assert "printed" not in bar
    assert "also" not in bar
    assert "logged" not in bar
    log = at_once_dask.read_log(folder / "at_once_log.jsonl")
    assert len(log) == 60
    assert set(log["index"]) == set(range(20))
    assert dict(log["level"].value_counts()) == {"STDOUT": 20, "STDERR": 20, "WARNING": 20}


@pytest.mark.thorough
def test_without_capture_prints_go_where_they_went(folder: Path, terminal: tuple[int, int]) -> None:
    out = run_script(folder, False, terminal[1]).splitlines()
    assert sorted(out) == sorted(["done", *(f"printed {n}" for n in range(20))])
    bar = shown(terminal[0])
    assert all(f"also {n}" in bar and f"logged {n}" in bar for n in range(20))
    assert not (folder / "at_once_log.jsonl").exists()


def test_replay_shows_what_is_printed(cluster: Client, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(n: int) -> None:
        print("about to fail")
        raise ValueError("as planned")

    report = at_once_dask.run([1], None, fail, on_error="return", progress=False)
    with pytest.raises(ValueError, match="as planned"):
        report.replay(0)
    assert capsys.readouterr().out == "about to fail\n"
    assert [text for level, _, text in records() if level == "STDOUT"] == ["about to fail"]


# ----- from another host


@pytest.fixture
def afar(cluster: Client) -> Iterator[Client]:
    """Workers that believe to be on another host."""

    def believe(host: str) -> None:
        log_file._host = lambda: host  # type: ignore[assignment]

    cluster.run(believe, "elsewhere")
    yield cluster
    cluster.run(believe, log_file._host())


def test_from_another_host(afar: Client, folder: Path) -> None:
    report = at_once_dask.run(
        range(30), None, lambda n: print("from afar", n, end=""), progress=False
    )
    log = at_once_dask.read_log(run=report.run)
    assert sorted(log["index"]) == list(range(30))
    assert all(log["msg"] == "from afar " + log["index"].astype(str))


def test_from_another_host_it_comes_while_the_input_runs(afar: Client, folder: Path) -> None:
    (folder / "log.jsonl").touch()

    def work(n: int) -> None:
        print("hello")
        poll_for(lambda: "hello" in (folder / "log.jsonl").read_text(), "nothing came")

    assert at_once_dask.run([1], None, work, progress=False).ok


def test_from_another_host_a_flood_is_bounded(afar: Client, folder: Path) -> None:
    (folder / "log.jsonl").touch()

    def flood(n: int) -> None:
        for line in range(20_000):
            print(line)
        poll_for(lambda: "are missing" in (folder / "log.jsonl").read_text(), "nobody says so")

    report = at_once_dask.run([1], None, flood, progress=False)
    found = records(report.run)
    told = [text for level, _, text in found if level == "WARNING"]
    missing = sum(int(text.split()[0].replace(",", "")) for text in told)
    assert len(found) - len(told) + missing == 20_000
    assert len(found) < 5_000


# ----- while nobody knows of which input


# ----- while other locks are held


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


# ----- what does not come through Python's streams


def of_inputs(log: pd.DataFrame) -> pd.DataFrame:
    """Records that end with the number of an input, beside the input they are said to be of."""
    ends = log["msg"].str.extract(r"^.* (\d+)$")[0]
    return log.assign(ends=ends)[ends.notna()]


@pytest.mark.parametrize("how", ["a subprocess", "the descriptor", "a pool", "to sys.stdout"])
def test_what_is_written_to_the_descriptors_goes_to_the_log(cluster: Client, how: str) -> None:
    def by_a_subprocess(n: int) -> None:
        subprocess.run(
            ["sh", "-c", f"echo out {n}; printf '1 %%\\r2 %%\\rerr {n}' >&2"], check=True
        )

    def by_the_descriptor(n: int) -> None:
        os.write(1, b"out %d\n" % n)
        os.write(2, b"err %d" % n)
        time.sleep(0.002)

    def by_a_pool(n: int) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.map(os.system, [f"echo out {n}", f"echo err {n} >&2"])

    def by_a_stream(n: int) -> None:
        subprocess.run(["echo", f"out {n}"], stdout=sys.stdout, check=True)
        subprocess.run(["sh", "-c", f"echo err {n} >&2"], stderr=sys.stderr, check=True)

    ways = {
        "a subprocess": by_a_subprocess,
        "the descriptor": by_the_descriptor,
        "a pool": by_a_pool,
        "to sys.stdout": by_a_stream,
    }
    n = 3 if how == "a pool" else 30
    report = at_once_dask.run(range(n), None, ways[how], progress=False)
    found = of_inputs(at_once_dask.read_log(run=report.run))
    assert sorted(found["msg"]) == sorted(
        f"{kind} {i}" for i in range(n) for kind in ("out", "err")
    )
    assert (found["level"] == np.where(found["msg"].str[:3] == "out", "STDOUT", "STDERR")).all()
    if how != "the descriptor":  # it may come a moment late: nothing waits there
        assert (found["index"].astype(str) == found["ends"]).all()


def test_the_descriptors_are_as_they_were_after_a_run(cluster: Client) -> None:
    def where(dask_worker: Any) -> tuple[str, str, int]:
        descriptors = len(os.listdir("/proc/self/fd"))
        return os.readlink("/proc/self/fd/1"), os.readlink("/proc/self/fd/2"), descriptors

    before = cluster.run(where)
    for _ in range(3):
        at_once_dask.run(range(4), None, lambda n: os.system("echo hi"), progress=False)
    assert cluster.run(where) == before


def test_capturing_nothing_leaves_the_descriptors_alone(
    cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_once_dask, "capture_output", False)
    where = dict(
        at_once_dask.run(
            range(4),
            None,
            lambda n: {os.readlink("/proc/self/fd/1"): n},
            reduce_fn=sum,
            progress=False,
        )
    )
    assert where.keys() == {os.readlink("/proc/self/fd/1")} or len(where) == 1
    assert not any("at_once_dask-" in path for path in where)


def test_the_last_words_of_a_process_are_in_its_failure(cluster: Client) -> None:
    """The thread that brings them to the log needs the GIL: this death does not let go of it."""

    def dies(n: int) -> None:
        if n == 2:
            libc = ctypes.PyDLL(None)
            libc.write(2, b"free(): invalid pointer\n", 24)
            libc.abort()

    report = at_once_dask.run(range(4), None, dies, on_error="return", progress=False)
    assert report.failures["message"].tolist() == [
        "its worker died: SIGABRT; it wrote: free(): invalid pointer"
    ]


def test_c_code_that_holds_the_gil_and_writes_much_does_not_hang(cluster: Client) -> None:
    def writes(n: int) -> None:
        libc = ctypes.PyDLL(None)
        for _ in range(50):
            libc.write(1, b"x" * 99_999 + b"\n", 100_000)

    report = at_once_dask.run([1], None, writes, timeout=60, progress=False)
    log = at_once_dask.read_log(run=report.run)
    assert len(log) == 50
    assert (log["msg"].str.len() == 10_000).all()
