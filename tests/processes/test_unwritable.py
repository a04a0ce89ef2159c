"""A process that may not write where it is started."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import at_once_dask

NOBODY = """
import os, sys
import at_once_dask
usual, at_once_dask.logfile = at_once_dask.logfile, os.environ["TMPDIR"] + "/first.jsonl"
at_once_dask.run([], None, print, report_path=os.environ["TMPDIR"] + "/first.html")  # imports all
at_once_dask.logfile = usual
if os.geteuid() == 0:
    os.setresgid(123456, 123456, 123456)
    os.setresuid(123456, 123456, 123456)
answers = []
for arguments in ({}, {"report_path": "report.html"}):
    try:
        at_once_dask.run([], None, print, **arguments)
    except at_once_dask.InputError as error:
        answers.append(str(error))
        text = str(error).rpartition("for example ")[2]
        if text.startswith("at_once_dask.logfile = "):
            exec(text)
        else:
            eval(text.rpartition(": ")[2].replace("run(", "at_once_dask.run("),
                 {"at_once_dask": at_once_dask, "inp_list": [], "check_inp": None,
                  "process_inp": print})
at_once_dask.log("written")
print(*answers, at_once_dask.logfile, sep="\\n")
"""


@pytest.mark.parametrize("home", ["a home", None])
def test_who_may_not_write_here_is_told_where_he_may(home: str | None) -> None:
    """At home, or where temporary files go; what is written as told is written."""
    with tempfile.TemporaryDirectory() as base:
        for name, mode in (("", 0o755), ("a home", 0o777), ("here", 0o555), ("temporary", 0o777)):
            (Path(base) / name).mkdir(exist_ok=True)
            (Path(base) / name).chmod(mode)
        where = Path(base) / ("temporary" if home is None else home)
        done = subprocess.run(
            [sys.executable, "-c", NOBODY],
            cwd=Path(base) / "here",
            env=os.environ
            | {
                "PYTHONPATH": str(Path(at_once_dask.__file__).parents[1]),
                "TMPDIR": str(Path(base) / "temporary"),
                "HOME": "/nowhere" if home is None else str(where),
            },
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        of_log, of_report, logfile = done.stdout.splitlines()
        assert of_log.startswith(
            f"at_once_dask.logfile = '{base}/here/at_once_log.jsonl' cannot be"
        )
        assert "(Permission denied)" in of_log
        assert "whose folder" in of_report
        assert "may not be written to" in of_report
        assert Path(logfile).parent == where
        assert "written" in Path(logfile).read_text()
        assert len(list(where.glob("report*.html"))) == 1
