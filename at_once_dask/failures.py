"""``python -m at_once_dask.failures [LOG] [--run ID]``: the failures that a log knows of."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from at_once_dask.logs import reader
from at_once_dask.user_code.text import first_line

LOG = "at_once_log.jsonl"

# What `log_file.note_failure` writes; of what is logged by `logging` a colon ends the first word.
_A_FAILURE = re.compile(r"[^\n:]+ in (check|process|verify|reduce|send|collect)( at [^\n]+)?: ")


@dataclass(frozen=True, order=True)
class _Row:
    """Inputs by position; then keys, which have none, as they come."""

    is_key: bool
    index: int
    inp: str
    text: str

    @classmethod
    def of(cls, record: dict[str, Any]) -> _Row:
        index, inp, text = record["index"], record["input"], first_line(record["msg"])
        return cls(index is None, -1 if index is None else index, inp, text)

    def __str__(self) -> str:
        return _plain(f"{'key' if self.is_key else self.index}\t{self.inp}\t{self.text}")


def listing(path: str, run: str | None = None) -> tuple[list[str], str]:
    """A line a failed input or key of `run`, by default the latest one; and what to say of them."""
    run = reader.latest_run(path) if run in (None, "last") else run
    records = [record for record in reader.records(path) if record["run"] == run]
    rows = sorted(_Row.of(record) for record in records if _is_failure(record))
    if rows:
        return [str(row) for row in rows], f"{len(rows):,} failed in run {run}."
    if records:
        return [], f"No failure of run {run} is in {path}."
    latest = reader.latest_run(path)
    hint = f"the latest one there is --run {latest}" if latest else "no run has written to it"
    return [], f"{path} has no record of {f'run {run}' if run else 'a run'}; {hint}."


def main(arguments: Sequence[str] | None = None) -> int:
    """List them on stdout; 0 when the log could be read."""
    parser = argparse.ArgumentParser("python -m at_once_dask.failures", description=__doc__)
    parser.add_argument("log", nargs="?", default=LOG, metavar="LOG", help=f"by default {LOG}")
    parser.add_argument("--run", metavar="ID", help="by default the latest run in the log")
    given = parser.parse_args(arguments)
    try:
        lines, end = listing(given.log, given.run)
    except OSError as error:
        print(
            f"{given.log} cannot be read ({error.strerror}); a run in which nothing fails or is"
            " written leaves no log; that of another one is named in its report and its error:"
            f" python -m at_once_dask.failures {LOG}",
            file=sys.stderr,
        )
        return 1
    for line in [*lines, end]:
        print(line)
    return 0


def _is_failure(record: dict[str, Any]) -> bool:
    """For good: one that is tried again is a warning."""
    text = record["msg"]
    return record["level"] == "ERROR" and isinstance(text, str) and bool(_A_FAILURE.match(text))


def _plain(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey; the tabs are ours."""
    return re.sub(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


if __name__ == "__main__":
    with contextlib.suppress(AttributeError, ValueError):  # `| head` ends it without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
