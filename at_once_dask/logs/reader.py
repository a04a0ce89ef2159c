"""The log, read: as a frame, or record by record."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from at_once_dask.logs import log_file
from at_once_dask.logs.log_file import COLUMNS, log_path

if TYPE_CHECKING:
    import pandas as pd

COUNTED_BYTES = 2**24  # of the log of a run, to count what it has printed
_LINE_BYTES = 2**20  # a longer one is passed over by those who look for single records


def read_log(path: str | os.PathLike[str] | None = None, run: str | None = None) -> pd.DataFrame:
    """The log as a frame.

    Parameters
    ----------
    path : path, optional
        By default ``at_once_dask.logfile``.
    run : str, optional
        Only the records of this run (``report.run``); ``"last"`` for the latest one of
        this process, or else in the log.

    Returns
    -------
    pandas.DataFrame
        A row a record: ``time`` (datetime64[ns, UTC]), ``level``, ``run``, ``index`` (Int64, the
        position in the list as given), ``input`` (its repr, at most 200 characters), ``worker``,
        ``pid`` (Int64) and ``msg``. Lines that are not whole, as a crash may leave them, are
        passed over.

        ``level`` is ``INFO`` for ``log()``, ``STDOUT`` and ``STDERR`` for a line that was printed,
        the record's own level for ``logging`` (``msg`` begins with the logger's name), ``ERROR``
        for a failure and ``WARNING`` for one that is tried again.

    Raises
    ------
    FileNotFoundError
        When there is no file at `path`. Where none is given, nothing was written yet.

    Examples
    --------
    >>> import at_once_dask
    >>> at_once_dask.logfile = tmp_path / "log.jsonl"
    >>> at_once_dask.log("hello")
    >>> log = at_once_dask.read_log()
    >>> log.loc[0, "msg"], log.loc[0, "worker"]
    ('hello', 'driver')
    """
    import pandas as pd

    if path is None:
        path = log_path()
        if not os.path.lexists(path):  # the first record creates it
            path = os.devnull
    if run == "last":
        run = log_file.latest_run() or latest_run(path)
    found = [record for record in records(path) if run is None or record["run"] == run]
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    return frame.assign(
        time=pd.to_datetime(frame["time"], utc=True, format="ISO8601").astype(
            "datetime64[ns, UTC]"
        ),
        index=frame["index"].astype("Int64"),
        pid=frame["pid"].astype("Int64"),
    )


def latest_run(path: str | os.PathLike[str]) -> str:
    """The run that the last record of any run is of; an empty text where there is none."""
    runs = (record["run"] for record in records(path) if record["run"] is not None)
    return next(iter(deque(runs, maxlen=1)), "")


def records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """All whole ones, in their order."""
    with open(path, "rb") as lines:
        yield from filter(None, map(_parsed, lines))


def records_of(
    path: str, part: tuple[int, int], run: str, indices: Container[int | None]
) -> Iterator[dict[str, Any]]:
    """The records of `run` on the inputs at these `indices`, in the bytes `part` of the file.

    Read as a stream; a line is opened only when it is wanted, for there may be millions.

    Raises
    ------
    OSError
        When the file cannot be read.
    """
    mark = f'"run": "{run}", "index": '.encode()  # in a message the quotes would be escaped
    start, stop = part
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop and (line := file.readline(_LINE_BYTES)):
            start += len(line)
            _, found, rest = line.partition(mark)
            if found and _number(rest) in indices:
                record = _parsed(line)
                if record is not None and record["run"] == run:
                    yield record


def count_printed(path: str, part: tuple[int, int], run: str) -> tuple[int, bool]:
    """How many lines `run` has printed, in the bytes `part` of the file; whether these are all."""
    marks = [f'"level": "{level}", "run": "{run}"'.encode() for level in ("STDOUT", "STDERR")]
    start, stop = part
    if stop <= start:  # there is none, or it is a device
        return 0, True
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(min(stop - start, COUNTED_BYTES))
    except OSError:
        return 0, True
    return sum(map(data.count, marks)), stop - start <= COUNTED_BYTES


def _number(text: bytes) -> int | None:
    """The number that a JSON text begins with; None for null, and -1 for what is neither."""
    digits = text.partition(b",")[0]
    if digits.isdigit() and len(digits) < 20:
        return int(digits)
    return None if digits == b"null" else -1


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # torn; UnicodeDecodeError is one too
        return None
    return record if isinstance(record, dict) and set(COLUMNS) <= set(record) else None
