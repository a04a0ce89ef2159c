"""What is raised: one ladder, facts in ``args``, prose in ``__str__``, the next step at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from at_once_dask.user_code import notebook

if TYPE_CHECKING:
    from at_once_dask.report.report import Reduction, Report

P = ParamSpec("P")
R = TypeVar("R")


class AtOnceError(Exception):
    """Base of everything this library raises by itself."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return notebook.rendered(self)


class OfTheList(BaseException):
    """Brings what the list raised to the front door, where it is raised as it is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def cut_short(function: Callable[P, R]) -> Callable[P, R]:
    """What `function` raises of ours leaves it with no more than one frame of ours."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True  # pytest and IPython's debugger pass over this frame
        try:
            return function(*args, **kwargs)
        except OfTheList as brought:
            error = brought.error
        except (AtOnceError, KeyboardInterrupt, SystemExit) as ours:
            error = ours.with_traceback(None)  # nobody looks for anything in our frames
        try:
            raise error
        finally:
            del error  # its traceback knows this frame

    return called


class InputError(AtOnceError, ValueError):
    """A call that cannot be right; its text shows the corrected call.

    Raised before anything starts: nothing has run and nothing is lost.
    """


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
