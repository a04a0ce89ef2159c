"""The log: JSON lines, one write a record, from the driver and from every worker.

``at_once_dask.logfile`` names the file, in the driver. Workers that see the same file append to it
themselves, so that a record written just before a crash is in it; workers elsewhere send their
records to the driver.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from at_once_dask import files
from at_once_dask.errors import InputError
from at_once_dask.protocol import events, lease
from at_once_dask.protocol.events import LogLines
from at_once_dask.protocol.lease import Log
from at_once_dask.user_code.text import safe_repr, sound

if TYPE_CHECKING:
    from at_once_dask.protocol.failure import Failure

COLUMNS = ("time", "level", "run", "index", "input", "worker", "pid", "msg")
_latest: str | None = None  # run that the driver was in
_run: str | None = None  # the run that the driver is in
_torn: set[str] = set()  # logs in which this process has left a line without an end
_report: Callable[[str, Any], None] | None = None  # how a worker sends the driver a message


@dataclass(frozen=True)
class RunLog:
    """The log of one run, as a worker needs to know it.

    Attributes
    ----------
    run : str
    path : str
        Absolute, on the driver's host.
    known : tuple of str and int
        What tells `place` from all others: the host's boot id, device and inode.
    captures : bool
        Whether what the functions print goes to it.
    place : str
        The file, or its folder where the first record is yet to create it.
    is_near : bool
        Whether `path` is the driver's file here.
    """

    run: str
    path: str
    known: tuple[str, int, int]
    captures: bool = True
    place: str = ""
    is_near: bool = True

    def here(self) -> RunLog:
        """As it is for this worker. Asked once: later the file may be rotated or removed."""
        return replace(self, is_near=_identity(self.place) == self.known)

    def write(self, record: dict[str, Any]) -> None:
        """Append the record, or send it to the driver where the file is not near."""
        if self.is_near:
            append(self.path, record)
        else:
            self.send(line(record))

    def warn(self, note: str) -> None:
        """Log what somebody should know, of no input."""
        self.write(entry("WARNING", self.run, None, None, "", note))

    def send(self, lines: str) -> None:
        """Have the driver append them."""
        assert _report is not None
        _report(events.topic(self.run), events.message(LogLines(lines)))


def log(msg: object) -> None:
    """Write a record to the log, from the driver or from inside the functions.

    Parameters
    ----------
    msg : object
        Text, or anything JSON knows; other objects are written as their ``repr``.

    Raises
    ------
    OSError
        When the file cannot be written.
    InputError
        When ``at_once_dask.logfile`` is not a path.

    Notes
    -----
    On a worker the record names the input that is being worked on. From another host than the
    driver's it is sent there, and the last second before a crash may be missing.

    What the functions print, and their `logging` records, go to the log by themselves, unless
    ``at_once_dask.capture_output`` is False.

    Examples
    --------
    >>> import at_once_dask
    >>> at_once_dask.logfile = tmp_path / "log.jsonl"
    >>> at_once_dask.log("ready")
    >>> at_once_dask.read_log()["msg"].tolist()
    ['ready']
    """
    mine = lease.here()
    others = lease.running()
    if mine is not None and mine.run_log is not None:
        offset, inp = mine.named
        shown = None if offset is None else safe_repr(inp)
        index = mine.index(offset)
        mine.run_log.write(entry("INFO", mine.run_log.run, index, shown, mine.worker, msg))
    elif others and others[0].run_log is not None:  # a thread of one of several inputs
        run_log, worker = others[0].run_log, others[0].worker
        run_log.write(entry("INFO", run_log.run, None, None, worker, msg))
    else:
        append(log_path(), entry("INFO", _run, None, None, "driver", msg))


def note_failure(
    failure: Failure, run_log: Log, inp: object, index: int | None, attempts: int = 1
) -> None:
    """Log a failure as it happens, as a warning when it was not the last of its `attempts`.

    One that is final was the last in any case.
    What hinders that (a full disk) must not fail anything else.
    """
    level, text = "ERROR", failure.line()
    attempts = failure.attempts if failure.final else attempts
    if attempts > 1:
        text += f" (attempt {failure.attempts} of {attempts})"
    if failure.attempts < attempts:
        level = "WARNING"
    if failure.traceback:
        text += f"\n{failure.traceback}"
    worker = failure.worker or "driver"
    try:
        run_log.write(entry(level, run_log.run, index, safe_repr(inp), worker, text))
    except OSError as error:
        print(f"at_once_dask: cannot write the log: {error}", file=sys.stderr)


def open_run_log(run: str, path: str, captures: bool) -> RunLog:
    """Describe the log file for the workers; the first record creates it.

    A torn last line, left by a crash, is ended, so that the next record stands on its own.
    """
    if size(path):
        with open(path, "ab+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    place = path if os.path.exists(path) else os.path.dirname(path)
    return RunLog(run, path, _identity(place), captures, place)


def writable_path() -> str:
    """The path of the log, when it can be written; nothing is created yet."""
    path = log_path()
    reason = _why_unwritable(path)
    if reason is not None:
        example = json.dumps(files.possible("at_once_log.jsonl", _why_unwritable))
        raise InputError(
            f"at_once_dask.logfile = {path!r} cannot be written ({os.strerror(reason)}); assign a"
            f" path that can be, for example at_once_dask.logfile = {example}"
        )
    return path


def _why_unwritable(path: str) -> int | None:
    """The error number; None when `path` can be written, or created."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
    except FileNotFoundError as error:
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            return error.errno
        return None if os.access(folder, os.W_OK) else errno.EACCES
    except OSError as error:
        return error.errno
    return None


def enter_run(run: str | None) -> None:
    """Records of the driver belong to `run` from now on."""
    global _run, _latest
    _run = run
    _latest = run or _latest


def latest_run() -> str | None:
    """The latest run of this process."""
    return _latest


def log_path() -> str:
    """``at_once_dask.logfile``, absolute."""
    logfile = sys.modules["at_once_dask"].logfile
    if not isinstance(logfile, (str, os.PathLike)) or not os.fspath(logfile):
        raise InputError(
            f"at_once_dask.logfile is {safe_repr(logfile)}; assign a path, for example"
            ' at_once_dask.logfile = "at_once_log.jsonl"'
        )
    try:
        return os.path.abspath(os.fspath(logfile))
    except FileNotFoundError:
        raise InputError(
            f"at_once_dask.logfile is {logfile!r}, and the current directory is gone; go to one"
            ' that is there, as with os.chdir("/tmp"), or assign an absolute path'
        ) from None


def capture_output() -> bool:
    """``at_once_dask.capture_output``."""
    given = sys.modules["at_once_dask"].capture_output
    if not isinstance(given, bool):
        raise InputError(
            f"at_once_dask.capture_output is {safe_repr(given)}; assign True or False, for example"
            " at_once_dask.capture_output = False"
        )
    return given


def report_by(report: Callable[[str, Any], None]) -> None:
    """This process is a worker; `report` may be called from any thread."""
    global _report
    _report = report


def line(record: dict[str, Any]) -> str:
    """As JSON in ASCII: Dask's connections break at numbers and text that msgpack cannot hold."""
    return json.dumps(record, default=safe_repr, skipkeys=True) + "\n"


def append(path: str, record: dict[str, Any]) -> None:
    append_line(path, line(record))


def append_line(path: str, text: str) -> None:
    """In one write: lines of several processes never mix.

    Where only a part finds room on the disk, that is an OSError too; the next one ends the line.
    """
    data = (("\n" if path in _torn else "") + text).encode("ascii")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        written = os.write(descriptor, data)
    finally:
        os.close(descriptor)
    if written < len(data):
        _torn.add(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    _torn.discard(path)


def size(path: str) -> int:
    """The size of the log, in bytes; 0 while there is none."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def entry(
    level: str, run: str | None, index: int | None, inp: str | None, worker: str, msg: object
) -> dict[str, Any]:
    """A record of now and of this process."""
    if isinstance(msg, str):
        msg = sound(msg)
    values = (now(), level, run, index, inp, worker, os.getpid(), msg)
    return dict(zip(COLUMNS, values, strict=True))


def now(timespec: str = "microseconds") -> str:
    """The time as the log has it: UTC, with a ``Z``."""
    return datetime.now(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _identity(path: str) -> tuple[str, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return "", 0, 0
    return _host(), found.st_dev, found.st_ino


@cache
def _host() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
