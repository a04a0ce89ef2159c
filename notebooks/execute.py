"""Run notebooks from top to bottom and store what they show: ``make notebooks``.

Each runs in a new folder of its own, so what is stored depends on nobody's files. Left out is what
names this machine or is gone when a run is over: the progress, the link to the dashboard, the path
of that folder, and the file under which a kernel keeps a cell. Nothing else is.
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

PROGRESS = re.compile(r"[^\r\n]*\b(?:map|reduce|check): \d[^\r\n]*")
LINK = "Dask dashboard: "
WIDGET = "application/vnd.jupyter.widget-view+json"
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
    notebook.metadata.pop("widgets", None)
    names = {name_of_file(cell): f"In[{cell.execution_count}]" for cell in code_cells(notebook)}
    for cell in code_cells(notebook):
        shown = [without_machine(output, folder, names) for output in cell.outputs]
        cell.outputs = [output for output in map(without_progress, shown) if output is not None]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def name_of_file(cell: Any) -> str:
    """The kernel names the file of a cell by a hash of its text."""
    return str(murmur2_x86(cell.source, get_tmp_hash_seed()))


def without_machine(shown: Any, folder: str, names: dict[str, str]) -> Any:
    """The same output, or part of one, without the paths of this run."""
    if isinstance(shown, dict):
        return type(shown)({k: without_machine(v, folder, names) for k, v in shown.items()})
    if isinstance(shown, list):
        return [without_machine(part, folder, names) for part in shown]
    if isinstance(shown, str):
        shown = shown.replace(folder + os.sep, "")
        return FILE_OF_CELL.sub(lambda found: names.get(found[1], found[0]), shown)
    return shown


def without_progress(output: Any) -> Any:
    """The output without what is gone when a run is over; None when nothing else is in it."""
    data = output.get("data", {})
    if WIDGET in data or str(data.get("text/plain", "")).startswith(LINK):
        return None
    if output.output_type == "stream" and output.name == "stderr":
        output.text = PROGRESS.sub("", output.text).replace("\r", "").strip("\n")
        return output if output.text else None
    return output


if __name__ == "__main__":
    main()
