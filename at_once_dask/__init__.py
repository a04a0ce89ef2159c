"""Process a big list on every core, crash by crash: see what broke, fix it, run the same again."""

import os as _os

from at_once_dask.api import close, last_report, plan, run, start
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.files import atomic_path, atomic_write
from at_once_dask.logs.log_file import log
from at_once_dask.logs.reader import read_log
from at_once_dask.report.errors import RunFailed, RunStopped
from at_once_dask.report.report import Plan, Reduction, Report

__version__ = "0.1.0"

logfile: str | _os.PathLike[str] = "at_once_log.jsonl"
"""Where the log goes; assign a path. A relative one counts from the run's current directory."""

capture_output: bool = True
"""Whether what the functions print, and their `logging` records, go to the log; assign a bool."""

__all__ = [
    "AtOnceError",
    "InputError",
    "Plan",
    "Reduction",
    "Report",
    "RunFailed",
    "RunStopped",
    "__version__",
    "atomic_path",
    "atomic_write",
    "capture_output",
    "close",
    "last_report",
    "log",
    "logfile",
    "plan",
    "read_log",
    "run",
    "start",
]
