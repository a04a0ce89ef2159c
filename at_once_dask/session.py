"""Where the calls are typed: a notebook, IPython or Python's prompt, and what an error is there."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from at_once_dask.user_code import notebook


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, which shows more than text."""
    return hasattr(notebook.shell(), "kernel")


def debugger() -> str | None:
    """How to look into the error that came last; None where nobody sits at a prompt."""
    if notebook.shell() is not None:
        return "%debug"
    return "import pdb; pdb.pm()" if hasattr(sys, "ps1") else None


def script() -> str:
    """What people call the program: the name of its file, or of the notebook; "" at a prompt."""
    if in_notebook():
        known = notebook.shell().user_ns.get("__vsc_ipynb_file__")
        return os.path.basename(known or os.environ.get("JPY_SESSION_NAME", "")) or "a notebook"
    folder, name = os.path.split(getattr(sys.modules["__main__"], "__file__", None) or "")
    return os.path.basename(folder) if name == "__main__.py" else name


def rendered(error: BaseException, brief: str | None = None) -> list[str]:
    """What IPython shows of `error`: where the person's own code called, and the text.

    In a notebook what its `report` shows of itself comes first, once; then the text is `brief`.
    """
    places = [*_places(error)]
    if (shell := notebook.shell()) is not None:
        shell.InteractiveTB.tb = error.__traceback__  # as IPython's own way does, for %debug
    text = brief if brief is not None and _show_report(error) else str(error)
    return [*places, "", f"{type(error).__name__}: {text}"]


def _places(error: BaseException) -> Iterator[str]:
    """The lines that called, the outermost first; behind the last one the traceback ends."""
    last = tb = error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if not tb.tb_frame.f_locals.get("__tracebackhide__"):
            (line,) = traceback.StackSummary.extract([(tb.tb_frame, tb.tb_lineno)])
            inside = "" if code.co_name == "<module>" else f" in {code.co_name}"
            yield f"{notebook.shown(code.co_filename)}:{tb.tb_lineno}{inside}"
            yield f"    {line.line}"
            last = tb
        tb = tb.tb_next
    if last is not None:
        last.tb_next = None  # there the debugger begins


def _show_report(error: BaseException) -> bool:
    """Whether it was shown now; to look at the error again does not show it twice."""
    report: Any = getattr(error, "report", None)
    if report is None or not in_notebook() or "_is_shown" in error.__dict__:
        return False
    from IPython.display import display

    display(report)
    error.__dict__["_is_shown"] = True
    return True
