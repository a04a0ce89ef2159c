"""What a run that ended badly raises; it carries the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from at_once_dask.errors import AtOnceError
from at_once_dask.user_code import notebook

if TYPE_CHECKING:
    from at_once_dask.report.report import Reduction, Report


class RunFailed(AtOnceError):
    """The run finished, and some inputs or keys have failed.

    Attributes
    ----------
    report : Report
        Counts, failures and causes.
    partial : Reduction or None
        What succeeded, reduced; ``None`` in a map-only run.
    """

    @property
    def report(self) -> Report:
        report: Report = self.args[0]
        return report

    @property
    def partial(self) -> Reduction[Any, Any] | None:
        partial: Reduction[Any, Any] | None = self.args[1]
        return partial

    def __str__(self) -> str:
        return str(self.report) + self._where_the_rest_is() + self.report._look_into()

    def _where_the_rest_is(self) -> str:
        """A line more where there are other results."""
        if not self.partial:
            return ""
        error = "error" if notebook.debugger() is None else "sys.last_value"
        keys = f"{len(self.partial):,} {'key' if len(self.partial) == 1 else 'keys'}"
        return f"\nThe rest is reduced, {keys}: {error}.partial"

    def _render_traceback_(self) -> list[str]:
        return notebook.rendered(self, self.report._brief() + self._where_the_rest_is())


class RunStopped(RunFailed):
    """The run stopped early; what had not started is counted as left.

    Attributes
    ----------
    reason : str
        Why it stopped.
    """

    @property
    def reason(self) -> str:
        reason: str = self.args[2]
        return reason
