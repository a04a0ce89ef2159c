"""The log of the driver itself: whole lines, types, and a disk that is full."""

from __future__ import annotations

import json
import resource
import threading
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

import at_once_dask

FIELDS = ["time", "level", "run", "index", "input", "worker", "pid", "msg"]


def test_records_of_the_driver(folder: Path) -> None:
    before = datetime.now(UTC)
    at_once_dask.log("héllo\nworld")
    at_once_dask.log({"n": 1})
    at_once_dask.log(threading.Lock)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [FIELDS] * 3
    assert [line["msg"] for line in lines[:2]] == ["héllo\nworld", {"n": 1}]
    assert lines[0]["time"].endswith("Z")
    assert before <= datetime.fromisoformat(lines[0]["time"]) <= datetime.now(UTC)
    assert (lines[0]["run"], lines[0]["index"], lines[0]["worker"]) == (None, None, "driver")


def test_a_disk_that_is_full_in_the_middle_of_a_line(folder: Path) -> None:
    """What could not be written is said, and the next record stands on its own."""
    at_once_dask.log("before")
    size = (folder / "log.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left on device"):
            at_once_dask.log("no room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    at_once_dask.log("after")
    at_once_dask.log("and after")
    assert list(at_once_dask.read_log()["msg"]) == ["before", "after", "and after"]
    assert (folder / "log.jsonl").read_text().count("\n") == 4


def test_the_frame_has_its_types_also_when_empty(folder: Path) -> None:
    (folder / "log.jsonl").touch()
    empty = at_once_dask.read_log()
    at_once_dask.log("x")
    full = at_once_dask.read_log(folder / "log.jsonl")
    for frame in (empty, full):
        assert list(frame.columns) == FIELDS
        assert str(frame["time"].dtype) == "datetime64[ns, UTC]"
        assert frame["index"].dtype == frame["pid"].dtype == pd.Int64Dtype()
    with pytest.raises(FileNotFoundError):
        at_once_dask.read_log(folder / "none.jsonl")
