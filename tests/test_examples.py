"""Every example runs: in the docstrings, in the README, in the notebooks."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import at_once_dask

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "at_once_dask"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(\s*^```text\n(?P<stdout>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
END_OF_BLOCK = "---- end of block ----"
PLACE_ON_A_MACHINE = re.compile(r"/(home|root|tmp|Users)\b")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_docstrings(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    runner = doctest.DocTestRunner()
    told: list[str] = []

    for docstring in doctest.DocTestFinder(exclude_empty=True).find(module):
        assert not any(doctest.SKIP in example.options for example in docstring.examples)
        folder = tmp_path / docstring.name
        folder.mkdir()
        monkeypatch.chdir(folder)
        docstring.globs["tmp_path"] = folder
        runner.run(docstring, out=told.append)
        at_once_dask.close()

    assert not told, "".join(told)


def test_readme(tmp_path: Path) -> None:
    """One script without a ``__main__`` guard, whose line numbers are the README's."""
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = list(BLOCK.finditer(readme))
    assert blocks, "README.md shows no example"
    assert len(blocks) == readme.count("```python"), "a block does not begin or end its line"
    script = tmp_path / "readme.py"
    script.write_text(as_script(readme, blocks), "utf-8")

    done = subprocess.run(
        [sys.executable, script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    stdouts = done.stdout.split(f"{END_OF_BLOCK}\n")
    for block, stdout in zip(blocks, stdouts, strict=False):
        if block["stdout"] is not None:
            assert stdout == block["stdout"], f"of the block:\n{block['code']}"


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path: Path, jupyter: Path) -> None:
    notebook = nbformat.read(path, as_version=4)

    nbclient.execute(notebook, cwd=str(jupyter), kernel_name="python3", timeout=240)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_shows_no_error_and_no_place_on_a_machine(path: Path) -> None:
    outputs = [
        output
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    assert outputs, "the notebook is stored without what it shows"

    for output in outputs:
        assert output["output_type"] != "error"
        assert not PLACE_ON_A_MACHINE.search(text_of(output)), text_of(output)


@pytest.fixture(autouse=True)
def _no_cluster() -> Iterator[None]:
    """Examples start from nothing, and leave nothing."""
    at_once_dask.close()
    yield
    at_once_dask.close()


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run notebooks in, with this Python and no settings of the person's own."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def as_script(markdown: str, blocks: list[re.Match[str]]) -> str:
    """The code of the blocks, each at the line where it stands."""
    script = ""
    for block in blocks:
        line = markdown.count("\n", 0, block.start("code"))
        script += "\n" * (line - script.count("\n"))
        script += f"{block['code']}print({END_OF_BLOCK!r}, flush=True)\n"
    return script


def text_of(output: dict[str, Any]) -> str:
    """What an output shows, pictures aside."""
    data = output.get("data", {})
    texts = {kind: value for kind, value in data.items() if not kind.startswith("image/")}
    return json.dumps([output.get("text", ""), texts])
