"""Runs in this process: all that a run does, but the cluster, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from inline_backend import InlineBackend

from at_once_dask.call import verdict
from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.driver.backend import Backend
from at_once_dask.driver.dispatcher import Watcher
from at_once_dask.driver.inputs import Inputs
from at_once_dask.driver.packing import PackedJob
from at_once_dask.driver.run import Run
from at_once_dask.live.progress_bar import NoProgress
from at_once_dask.logs.log_file import RunLog
from at_once_dask.options import Options
from at_once_dask.report.ledger import Ledger
from at_once_dask.report.report import Report
from at_once_dask.report.summary import RunFacts

MakeBackend = Callable[[PackedJob, RunLog], AbstractContextManager[Backend]]


class Unseen:
    """Nobody looks on; `said` is what a run would have said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def watching(
        self, what: str, ledger: Ledger, inputs: Inputs, since: float | None
    ) -> Iterator[Watcher]:
        yield NoProgress()

    def say(self, text: str) -> None:
        self.said.append(text)

    def end(self, report: Report, facts: RunFacts) -> None: ...


def run_inline(
    inp_list: Any,
    check_inp: Callable[[Any], Any] | None,
    process_inp: Callable[[Any], Any],
    *,
    backend: MakeBackend = InlineBackend,
    **options: Any,
) -> Any:
    """What ``at_once_dask.run`` returns or raises."""
    checked = Options(inp_list, check_inp, process_inp, **options).checked()
    this = Run(checked, Interrupts(), None, Unseen())
    try:
        this.open()
        if not this.inputs.is_empty():
            with backend(this.job, this.run_log) as workers:
                this.map(workers)
                if this.inputs.error is None and len(this.groups):
                    this.reduce(workers)
        this.end(this.inputs.error)
    finally:
        this.close()
    return verdict(this)
