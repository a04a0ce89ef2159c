"""The errors of a run that ended badly; they carry the report."""

from __future__ import annotations

from typing import Any

from at_once_dask.errors import AtOnceError
from at_once_dask.report import report as reports
from at_once_dask.report.report import Reduction, Report
from at_once_dask.report.summary import FINISHED
from at_once_dask.user_code import notebook


class RunFailed(AtOnceError):
    """The run finished, and some inputs or keys have failed.

    Attributes
    ----------
    report : Report
        Counts, failures and causes.
    partial : Reduction or None
        What succeeded, reduced; ``None`` in a map-only run.
    """

    __module__ = "at_once_dask"  # as people import it

    @property
    def report(self) -> Report:
        report: Report = self.args[0]
        return report

    @property
    def partial(self) -> Reduction[Any, Any] | None:
        partial: Reduction[Any, Any] | None = self.args[1]
        return partial

    def __str__(self) -> str:
        return str(self.report) + self._where_the_rest_is() + look_into(self.report)

    def _where_the_rest_is(self) -> str:
        """A line more where there are other results."""
        if not self.partial:
            return ""
        error = "error" if notebook.debugger() is None else "sys.last_value"
        keys = f"{len(self.partial):,} {'key' if len(self.partial) == 1 else 'keys'}"
        return f"\nThe rest is reduced, {keys}: {error}.partial"

    def _render_traceback_(self) -> list[str]:
        return notebook.rendered(self, brief(self.report) + self._where_the_rest_is())


class RunStopped(RunFailed):
    """The run stopped early; what had not started is counted as left.

    Attributes
    ----------
    reason : str
        Why it stopped.
    """

    __module__ = "at_once_dask"  # as people import it

    @property
    def reason(self) -> str:
        reason: str = self.args[2]
        return reason


def brief(report: Report) -> str:
    """The text beside the card."""
    summary = report._summary
    if summary.facts.ended == FINISHED:
        return summary.ending + look_into(report)
    return f"{summary.ending} {summary.counts}; the report is at_once_dask.last_report()"


def look_into(report: Report) -> str:
    """A line more at a prompt: how to get into the code where an input has failed."""
    debugger, position = notebook.debugger(), _to_replay(report)
    if debugger is None or position is None or report is not reports.latest:
        return ""
    call = f"at_once_dask.last_report().replay({position})"
    return f"\nLook into it: {call}, then {debugger}"


def _to_replay(report: Report) -> int | None:
    """Where an input failed that can be run again here: what ended a worker would end us."""
    examples = [cause.example for cause in report._summary.ledger.causes()]
    found = [e.index for e in examples if e.failure.kind == "exception" and e.index is not None]
    return found[0] if found else None
