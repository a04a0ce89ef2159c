"""Functions of a notebook's cells: what is told of them when they fail on a worker."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

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


@pytest.mark.thorough
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


def printed_by(sources: list[str], folder: Path) -> str:
    """What the cells print, run one after the other in a new kernel."""
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done: Any = NotebookClient(notebook, timeout=60).execute(cwd=str(folder), env=environment)
    (output,) = done.cells[-1].outputs
    text: str = output["text"]
    return text
