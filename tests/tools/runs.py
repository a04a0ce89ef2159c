"""Runs that are told of without having happened: as large as a test wants them, in no time."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.status import FAILED, PROCESSED, SKIPPED
from at_once_dask.protocol.task import Outcome
from at_once_dask.report.ledger import Ledger
from at_once_dask.report.report import Report
from at_once_dask.report.summary import FINISHED, RunFacts, Summary

PARTITION = 1_000
STARTED = 1.7e9  # seconds since the epoch


def ledger_of(
    n: int,
    seconds: float = 0.001,
    n_workers: int = 2,
    failure: Callable[[int], Failure] | None = None,
) -> Ledger:
    """`n` inputs, all equally long, by workers that take partitions in turn.

    Parameters
    ----------
    failure : callable, optional
        Of a position; all inputs fail then.
    """
    ledger = Ledger()
    ledger.draw(n)
    for start in range(0, n, PARTITION):
        size = min(PARTITION, n - start)
        turn, worker = divmod(start // PARTITION, n_workers)
        begun = turn * PARTITION * seconds
        outcome = Outcome(
            stop=start + size,
            worker=f"tls://127.0.0.1:{40_000 + worker}",
            states=bytearray([PROCESSED if failure is None else FAILED]) * size,
            marks=array("d", [begun + place * seconds for place in range(size + 1)]),
            epoch=STARTED,
        )
        if failure is not None:
            outcome.failures = [failure(position) for position in range(start, start + size)]
        ledger.record(start, outcome, list(range(start, start + size)))
    return ledger


def report_of(ledger: Ledger, **facts: Any) -> Report:
    """As ``run`` would give it."""
    known: dict[str, Any] = {
        "run": "0123456789ab",
        "begun": STARTED,
        "seconds": 12.3,
        "ended": FINISHED,
        "reason": "",
        "traceback": "",
        "dashboard_link": None,
        "logfile": "/nowhere/log.jsonl",
        "log_part": (0, 0),
        "checked": True,
        "settings": {"timeout": "60"},
        "versions": {"Python": "3"},
    }
    return Report(Summary(RunFacts(**known | facts), ledger), print)


def mixed_ledger(n: int, n_workers: int = 2, n_failed: int = 1_000) -> Ledger:
    """`n` inputs of random durations over six decades: processed, skipped and failed ones."""
    import numpy as np

    random = np.random.default_rng(1)
    ledger = Ledger()
    ledger.draw(n)
    share = n_failed / n
    at = [0.0] * n_workers
    for start in range(0, n, PARTITION):
        size, worker = min(PARTITION, n - start), start // PARTITION % n_workers
        marks = at[worker] + np.concatenate([[0], random.lognormal(-7, 2.5, size).cumsum()])
        at[worker] = float(marks[-1])
        states = random.choice(
            np.array([PROCESSED, SKIPPED, FAILED], dtype=np.uint8),
            size,
            p=[0.7 - share, 0.3, share],
        )
        outcome = Outcome(
            stop=start + size,
            worker=f"tls://127.0.0.1:{40_000 + worker}",
            states=bytearray(states.tobytes()),
            marks=array("d", marks.tobytes()),
            epoch=STARTED,
        )
        outcome.failures = [
            Failure(start + place, "process", "exception", "E", "no", "frames", f"{place % 7}")
            for place in np.flatnonzero(states == FAILED).tolist()
        ]
        ledger.record(start, outcome, list(range(start, start + size)))
    return ledger


def ending_of(path: Path) -> str:
    """How the run ended, as its report in a file says."""
    found = re.search("<h1[^>]*>(.*?)</h1>", path.read_text("utf-8"))
    assert found is not None
    return found[1].replace("&#39;", "'")
