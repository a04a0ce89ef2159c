"""Who looks on a run: the progress, and the page "At once" of the own cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from at_once_dask.driver.dispatcher import Dispatcher, Watcher
from at_once_dask.driver.inputs import Inputs
from at_once_dask.live.eta import Eta
from at_once_dask.live.monitor import PassView, RunView
from at_once_dask.live.progress_bar import NoProgress, ProgressBar
from at_once_dask.protocol.events import Running
from at_once_dask.report.ledger import Ledger
from at_once_dask.report.report import Report
from at_once_dask.report.summary import RunFacts


class LiveViews:
    """The views of one run.

    Parameters
    ----------
    progress : bool
        Whether to show progress on stderr.
    """

    def __init__(self, progress: bool) -> None:
        self._progress = progress
        self._page: RunView | None = None
        self._bar: ProgressBar | NoProgress = NoProgress()
        self._links: Mapping[str, str] = {}
        self._run_ledger: Ledger | None = None

    def show(self, page: RunView | None, links: Mapping[str, str], ledger: Ledger) -> None:
        """From now on the page shows it, too; `links` say by name where to look on.

        `ledger` is the run's, which has the causes of all its passes.
        """
        self._page = page
        self._links = links
        self._run_ledger = ledger

    @contextmanager
    def watching(
        self, what: str, ledger: Ledger, inputs: Inputs, since: float | None
    ) -> Iterator[Watcher]:
        """A pass goes on meanwhile; it started at `since`, or now."""
        eta = Eta(time.monotonic())
        if self._progress:
            causes = None if ledger is self._run_ledger else self._run_ledger
            self._bar = ProgressBar(
                ledger, inputs.total, what, causes=causes, links=self._links, begun=since, eta=eta
            )
        with self._bar as bar:
            seen = None if self._page is None else self._page.begin(what, ledger, inputs, eta)
            yield _Watchers(bar, seen)

    def say(self, text: str) -> None:
        self._bar.say(text)

    def end(self, report: Report, facts: RunFacts) -> None:
        if self._page is not None:
            self._page.end(report, facts.ended, facts.reason)


class _Watchers:
    """All who look on a pass."""

    def __init__(self, bar: ProgressBar | NoProgress, page: PassView | None) -> None:
        self._all: list[ProgressBar | NoProgress | PassView] = [bar]
        if page is not None:
            self._all.append(page)

    def begin(self, dispatcher: Dispatcher) -> None:
        for watcher in self._all:
            watcher.begin(dispatcher)

    def tick(self) -> None:
        for watcher in self._all:
            watcher.tick()

    def running(self, event: Running) -> None:
        for watcher in self._all:
            watcher.running(event)
