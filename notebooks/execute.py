"""Run notebooks from top to bottom and store what they show: ``make notebooks``.

Each runs in a new folder of its own, so what is stored depends on nobody's files. Left out is what
names this machine: the addresses of workers, the path of that folder, and
the file under which a kernel keeps a cell; and Bokeh's script, of four megabytes, which the pages
of `make docs` have beside them. Nothing else is.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.compiler import get_tmp_hash_seed, murmur2_x86
from nbclient import NotebookClient

HERE = Path(__file__).parent
SETTINGS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")

WORKER = re.compile(r"(?:tcp|tls)://127\.0\.0\.1:\d+")
BOKEH = "application/vnd.bokehjs_load.v0+json"
EMPTY = "application/vnd.bokehjs_exec.v0+json"  # says that there is a script beside it
FILE_OF_CELL = re.compile(r"[^\s\"']*/ipykernel_\d+/(\d+)\.py")


def main() -> None:
    parser = argparse.ArgumentParser("notebooks/execute.py", description=__doc__)
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="(default: all that are beside this script)"
    )
    parser.add_argument("--into", type=Path, help="store them in this folder, not in place")
    given = parser.parse_args()
    for path in given.notebooks or sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        nbformat.write(notebook, path if given.into is None else given.into / path.name)


def execute(notebook: Any) -> None:
    """Run the cells, each output put right for being stored."""
    with tempfile.TemporaryDirectory() as parent:
        for name in SETTINGS:  # no settings of the person's own
            os.environ[name] = os.path.join(parent, name)
        folder = os.path.join(os.path.realpath(parent), "folder")
        os.mkdir(folder)
        client = NotebookClient(
            notebook, timeout=240, kernel_name="python3", record_timing=False, coalesce_streams=True
        )
        client.execute(cwd=folder)
    without_machine = WithoutMachine(notebook, folder)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            output.get("data", {}).pop(EMPTY, None)
        shown = [output for output in cell.outputs if BOKEH not in output.get("data", {})]
        cell.outputs = [without_machine(output) for output in shown]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def name_of_file(cell: Any) -> str:
    """The kernel names the file of a cell by a hash of its text."""
    return str(murmur2_x86(cell.source, get_tmp_hash_seed()))


class WithoutMachine:
    """Makes of an output, or part of one, the same without what is of this machine and this run."""

    def __init__(self, notebook: Any, folder: str) -> None:
        self.folder = folder
        self.cells = {name_of_file(cell): cell.execution_count for cell in code_cells(notebook)}
        self.workers: dict[str, int] = {}

    def __call__(self, shown: Any) -> Any:
        if isinstance(shown, dict):
            return type(shown)({key: self(value) for key, value in shown.items()})
        if isinstance(shown, list):
            return [self(part) for part in shown]
        return self.text(shown) if isinstance(shown, str) else shown

    def text(self, text: str) -> str:
        text = text.replace(self.folder + os.sep, "")
        text = FILE_OF_CELL.sub(self.cell, text)
        return WORKER.sub(self.worker, text)

    def cell(self, file: re.Match[str]) -> str:
        return f"In[{self.cells[file[1]]}]" if file[1] in self.cells else file[0]

    def worker(self, address: re.Match[str]) -> str:
        return f"worker {self.workers.setdefault(address[0], len(self.workers))}"


if __name__ == "__main__":
    main()
