"""The log: whole lines from every process, every failure in it, torn lines passed over."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from helpers import poll_for

import at_once_dask
from at_once_dask.logs import log_file

FIELDS = ["time", "level", "run", "index", "input", "worker", "pid", "msg"]


def test_records_of_the_workers(cluster: Client, folder: Path) -> None:
    """The path set in the driver reaches the workers, a relative one too."""
    at_once_dask.logfile = "relative.jsonl"

    def check(inp: str) -> list[object]:
        at_once_dask.log(f"checking {inp}")
        return [False, None]

    def work(inp: str) -> dict[str, int]:
        thread = threading.Thread(target=at_once_dask.log, args=(f"in a thread {inp}",))
        thread.start()
        thread.join()
        return {"k": 1}

    def reduce(values: list[int]) -> int:
        at_once_dask.log("reducing")
        return sum(values)

    result = at_once_dask.run(["a", "b", "c" * 500], check, work, reduce_fn=reduce, progress=False)
    log = at_once_dask.read_log()
    assert list(log.columns) == FIELDS
    assert set(log["run"]) == {result.report.run}
    assert result.report.logfile == str(folder / "relative.jsonl")
    assert log["worker"].isin(cluster.nthreads()).all()
    checking = log[log["msg"].str.startswith("checking")]
    assert 3 < len(checking) <= 6  # some inputs are asked again, to be compared
    checking = checking.drop_duplicates("index").sort_values("index")
    assert list(checking["index"]) == [0, 1, 2]
    assert list(checking["input"])[:2] == ["'a'", "'b'"]
    assert len(checking["input"].iloc[2]) == 200
    threads = log[log["msg"].str.startswith("in a thread")]
    assert sorted(threads["index"]) == [0, 1, 2]
    reducing = log[log["msg"] == "reducing"]
    assert list(reducing["input"]) == ["'k'"]
    assert reducing["index"].isna().all()


@pytest.mark.thorough
def test_eight_writers_give_whole_lines(folder: Path) -> None:
    at_once_dask.close()
    at_once_dask.start(8, dashboard_address="127.0.0.1:0")

    def work(writer: int) -> None:
        (folder / f"ready-{writer}").touch()
        while len(list(folder.glob("ready-*"))) < 8:
            pass
        for n in range(1000):
            at_once_dask.log(f"{writer}-{n} " + "x" * (n % 300))

    try:
        at_once_dask.run(range(8), None, work, progress=False)
    finally:
        at_once_dask.close()
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len(lines) == 8000
    records = [json.loads(line) for line in lines]
    assert len({record["pid"] for record in records}) == 8
    said = {record["msg"].split()[0] for record in records}
    assert said == {f"{writer}-{n}" for writer in range(8) for n in range(1000)}


def test_every_failure_is_logged_by_itself(cluster: Client) -> None:
    def work(n: int) -> None:
        if n % 4 == 1:
            raise ValueError(f"bad {n}")

    report = at_once_dask.run(range(40), None, work, on_error="return", progress=False)
    log = at_once_dask.read_log(run=report.run)
    assert sorted(log["index"]) == list(report.failures.index)
    assert set(log["level"]) == {"ERROR"}
    assert log["msg"].str.contains("ValueError in process at .*test_log.py").all()
    assert log["msg"].str.contains("Traceback").all()
    assert set(log["worker"]) <= set(cluster.nthreads())


def test_a_failure_is_logged_as_it_happens(cluster: Client, folder: Path) -> None:
    """The next input of the same partition ends only when it has seen the record."""

    def work(n: int) -> None:
        if n % 2 == 0:
            raise ValueError("soon in the log")
        poll_for(lambda: f'"index": {n - 1}' in (folder / "log.jsonl").read_text(), "not logged")

    report = at_once_dask.run(range(16), None, work, on_error="return", progress=False)
    assert (report.n_failed, report.n_processed) == (8, 8)


def test_torn_lines_are_passed_over(cluster: Client, folder: Path) -> None:
    at_once_dask.log("whole")
    path = folder / "log.jsonl"
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole + whole[:cut])
        assert at_once_dask.read_log()["msg"].tolist() == ["whole"]
    path.write_bytes(whole + "é".encode()[:1])
    assert at_once_dask.read_log()["msg"].tolist() == ["whole"]
    report = at_once_dask.run([1], None, lambda n: at_once_dask.log("behind it"), progress=False)
    assert at_once_dask.read_log()["msg"].tolist() == ["whole", "behind it"]
    assert at_once_dask.read_log(run=report.run)["msg"].tolist() == ["behind it"]


def test_a_run_that_writes_nothing_leaves_no_log(cluster: Client, folder: Path) -> None:
    report = at_once_dask.run(range(100), None, abs, progress=False)
    assert report.ok
    assert list(folder.iterdir()) == []
    assert len(at_once_dask.read_log()) == len(at_once_dask.read_log(run="last")) == 0
    report = at_once_dask.run([1], None, print_it, progress=False)
    log = at_once_dask.read_log(run="last")
    assert list(log["msg"]) == ["printed", "logged"]
    assert set(log["worker"]) <= set(cluster.nthreads())  # they wrote it themselves
    assert set(log["run"]) == {report.run}


def test_a_log_that_is_rotated_goes_on(cluster: Client, folder: Path) -> None:
    """Workers on the driver's host write to the new file themselves, however much it is."""

    def work(n: int) -> None:
        if n == 0:
            (folder / "log.jsonl").rename(folder / "log.jsonl.1")
        else:
            poll_for((folder / "log.jsonl.1").exists, "nobody rotates it")
        for line in range(5_000):
            print("line", line)
        assert (folder / "log.jsonl").read_text().count(f'"index": {n},') == 5_000

    at_once_dask.log("there is something to rotate")
    report = at_once_dask.run(range(2), None, work, progress=False)
    assert len(at_once_dask.read_log(run=report.run)) == 10_000


def test_records_from_another_host_go_through_the_driver(cluster: Client, folder: Path) -> None:
    """A worker whose host is another one sends its records; here it only believes so."""

    def believe(host: str) -> None:
        log_file._host = lambda: host  # type: ignore[assignment]

    cluster.run(believe, "elsewhere")
    try:
        report = at_once_dask.run(
            range(30), None, lambda n: at_once_dask.log(f"from afar {n}"), progress=False
        )
        poll_for(lambda: len(at_once_dask.read_log()) == 30, "records missing")
    finally:
        cluster.run(believe, log_file._host())
    log = at_once_dask.read_log(run=report.run)
    assert sorted(log["index"]) == list(range(30))
    assert all(log["msg"] == "from afar " + log["index"].astype(str))
    assert (log["worker"] != "driver").all()


def test_a_list_that_changes_the_directory(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of a run is where it was when it began."""
    (folder / "elsewhere").mkdir()
    monkeypatch.setattr(at_once_dask, "logfile", "log.jsonl")

    def inputs() -> Iterator[int]:
        os.chdir("elsewhere")
        monkeypatch.setattr(at_once_dask, "capture_output", False)
        yield 1

    report = at_once_dask.run(inputs(), None, print_it, progress=False)
    assert report.logfile == str(folder / "log.jsonl")
    assert list(at_once_dask.read_log(report.logfile)["msg"]) == ["printed", "logged"]
    assert not (folder / "elsewhere" / "log.jsonl").exists()


def print_it(inp: int) -> None:
    print("printed", flush=True)
    at_once_dask.log("logged")


def listed(*arguments: str) -> tuple[int, list[str], str]:
    """What ``python -m at_once_dask.failures`` answers: exit code, lines, and what it complains."""
    done = subprocess.run(
        [sys.executable, "-m", "at_once_dask.failures", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(at_once_dask.__file__).parents[1]), "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_one_command_lists_the_failures_of_a_log(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_once_dask, "logfile", "at_once_log.jsonl")

    def work(name: str) -> None:
        logging.getLogger("mine").error("in process: it may look like a failure")
        if not name.isalpha():
            raise ValueError(f"bad\x1b {name}")

    names = ["a", "b1", "c2", "caf\udce9", "tab\t"]
    first = at_once_dask.run(names, None, work, on_error="return", retries=1, progress=False)
    last = at_once_dask.run(["x", "3"], None, work, on_error="return", progress=False)
    code, lines, _ = listed()
    assert (code, len(lines)) == (0, 2)
    assert re.fullmatch(r"1\t'3'\tValueError in process at .*test_log.py.*: bad.x1b 3", lines[0])
    assert lines[1] == f"1 failed in run {last.run}."
    code, lines, _ = listed(str(folder / "at_once_log.jsonl"), "--run", first.run)
    assert code == 0
    inputs = [line.split("\t")[:2] for line in lines[:-1]]
    assert inputs == [["1", "'b1'"], ["2", "'c2'"], ["3", r"'caf\udce9'"], ["4", r"'tab\t'"]]
    assert lines[-1] == f"4 failed in run {first.run}."
    assert list(at_once_dask.read_log(run="last")["run"].unique()) == [last.run]


def test_keys_that_failed_are_listed_behind_the_inputs(cluster: Client, folder: Path) -> None:
    def reduce(values: list[int]) -> int:
        raise KeyError(values[0])

    at_once_dask.run(
        [1, 0], None, lambda n: {1 // n: n}, reduce_fn=reduce, on_error="return", progress=False
    )
    code, lines, _ = listed("log.jsonl")
    assert code == 0
    assert [line.split("\t")[:2] for line in lines[:-1]] == [["1", "0"], ["key", "1"]]


def test_a_log_without_failures_and_none_at_all(cluster: Client, folder: Path) -> None:
    code, lines, complaint = listed("none.jsonl")
    assert (code, lines) == (1, [])
    assert complaint.startswith("none.jsonl cannot be read (No such file or directory); a run")
    assert complaint.endswith("python -m at_once_dask.failures at_once_log.jsonl\n")
    at_once_dask.log("before any run")
    assert listed("log.jsonl")[:2] == (
        0,
        ["log.jsonl has no record of a run; no run has written to it."],
    )
    assert len(at_once_dask.read_log(run="last")) == 0
    run = at_once_dask.run([1], None, print, progress=False).run
    assert listed("log.jsonl")[:2] == (0, [f"No failure of run {run} is in log.jsonl."])
    assert listed("log.jsonl", "--run", "x")[:2] == (
        0,
        [f"log.jsonl has no record of run x; the latest one there is --run {run}."],
    )
