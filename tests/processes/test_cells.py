"""Functions of a notebook's cells: what is told of them when they fail on a worker."""

from __future__ import annotations

import json
import linecache
import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from at_once_dask.user_code import notebook
from at_once_dask.user_code.modules import is_users_file

ROOT = Path(__file__).parents[2]

DEFINED = """\
import ctypes, json
import at_once_dask

def divide(n):
    return 1 // n"""

RUN = """\
def process_inp(n):
    if n == 2:
        ctypes.string_at(0)
    return divide(n)

class Unwilling:
    def __reduce__(self):
        raise ValueError("stays here")

inputs = [0, 1, 2, Unwilling()]
at_once_dask.start(1, dashboard_address="127.0.0.1:0")
report = at_once_dask.run(inputs, None, process_inp, on_error="return", progress=False)
at_once_dask.close()
print(json.dumps([dict(report.causes["where"]), list(report.failures["traceback"])]))"""


def test_a_cell_is_named_as_in_the_margin_and_its_lines_are_shown(folder: Path) -> None:
    (places, tracebacks) = json.loads(printed_by([DEFINED, RUN], folder))

    assert set(places.values()) == {
        "In[1]:5 in divide",
        "In[2]:3 in process_inp",
        "In[2]:8 in __reduce__",
    }
    raised, died, _ = tracebacks
    assert 'File "In[2]", line 4, in process_inp\n    return divide(n)\n' in raised
    assert 'File "In[1]", line 5, in divide\n    return 1 // n\n' in raised
    assert 'File "In[2]", line 3, in process_inp\n    ctypes.string_at(0)\n' in died


def test_code_of_a_file_is_no_cell() -> None:
    assert notebook.cell_of(__file__) is None
    assert notebook.shown(__file__) == __file__


def test_lines_that_are_known_stay() -> None:
    notebook.know(("In[1000]", ("first\n", "second\n")))

    linecache.checkcache()

    assert linecache.getline("In[1000]", 2) == "second\n"


def test_what_is_in_no_file_is_the_users() -> None:
    assert is_users_file("In[1]")
    assert is_users_file("<stdin>")
    assert not is_users_file("<frozen importlib._bootstrap>")
    assert not is_users_file(os.__file__)


def printed_by(sources: list[str], folder: Path) -> str:
    """What the cells print, run one after the other in a new kernel."""
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done: Any = NotebookClient(notebook, timeout=60).execute(cwd=str(folder), env=environment)
    (output,) = done.cells[-1].outputs
    text: str = output["text"]
    return text
