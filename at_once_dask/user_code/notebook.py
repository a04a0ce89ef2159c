"""Code that was typed in a notebook's cell: its name and its text go along to the workers.

IPython keeps a cell under the name of a file that is not there. A worker would know that name and
nothing else; so functions of a cell take along the name that the person sees beside it, and its
text, from which tracebacks show the lines.
"""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from at_once_dask.user_code import notebook

Cell = tuple[str, tuple[str, ...]]  # as ``In[3]``, and its lines


def shell() -> Any:
    """IPython, in whose cells code is typed; None where there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def cell_of(filename: str) -> Cell | None:
    """The cell that IPython keeps under `filename`; None for all other code."""
    compiled: Any = getattr(shell(), "compile", None)
    if not hasattr(compiled, "format_code_name"):  # no IPython, or one before 8
        return None
    named = compiled.format_code_name(filename)
    if named is None:
        return None
    cell = (named[1], tuple(linecache.getlines(filename)))
    know(cell)  # here too: the nanny reads the stacks of dead workers in this process
    return cell


def know(cell: Cell) -> None:
    """Tracebacks of this process show the cell's lines from now on."""
    name, lines = cell
    # Without a time of change it stays, whether there is such a file or not.
    linecache.cache[name] = (sum(map(len, lines)), None, list(lines), name)


def shown(filename: str) -> str:
    """The place of this code by the name that people use: the cell, or the file."""
    cell = cell_of(filename)
    return filename if cell is None else cell[0]


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, which shows more than text."""
    return hasattr(notebook.shell(), "kernel")


def debugger() -> str | None:
    """How to look into the error that came last; None where nobody sits at a prompt."""
    if notebook.shell() is not None:
        return "%debug"
    return "import pdb; pdb.pm()" if hasattr(sys, "ps1") else None


def script() -> str:
    """The name of the program: of its file, or of the notebook; "" at a prompt."""
    if in_notebook():
        known = notebook.shell().user_ns.get("__vsc_ipynb_file__")
        return os.path.basename(known or os.environ.get("JPY_SESSION_NAME", "")) or "a notebook"
    folder, name = os.path.split(getattr(sys.modules["__main__"], "__file__", None) or "")
    return os.path.basename(folder) if name == "__main__.py" else name


def rendered(error: BaseException, brief: str | None = None) -> list[str]:
    """The lines that IPython shows of `error`: where the person's own code called, and the text.

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
