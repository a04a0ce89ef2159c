"""The errors: one ladder, facts in ``args``, prose in ``__str__``, the next step at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from at_once_dask.user_code import notebook

P = ParamSpec("P")
R = TypeVar("R")


class AtOnceError(Exception):
    """Base of everything this library raises by itself."""

    __module__ = "at_once_dask"  # as people import it

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows of it."""
        return notebook.rendered(self)


class OfTheList(BaseException):
    """Brings what the list raised to the front door, where it is raised as it is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def cut_short(function: Callable[P, R]) -> Callable[P, R]:
    """Errors of ours leave `function` with no more than one frame of ours."""

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

    __module__ = "at_once_dask"
