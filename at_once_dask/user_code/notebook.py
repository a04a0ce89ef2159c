"""Code that was typed in a notebook's cell: its name and its text go along to the workers.

IPython keeps a cell under the name of a file that is not there. A worker would know that name and
nothing else; so functions of a cell take along the name that the person sees beside it, and its
text, from which tracebacks show the lines.
"""

from __future__ import annotations

import linecache
import sys
from typing import Any

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
    """What people call the place of this code: the cell, or the file."""
    cell = cell_of(filename)
    return filename if cell is None else cell[0]
