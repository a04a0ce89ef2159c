"""Every example runs: in the docstrings, in the README, in the manual, in the notebooks."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import at_once_dask

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "at_once_dask"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [
    page.relative_to(ROOT)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs" / "manual").glob("*.md")))
    if "```python" in page.read_text("utf-8")
]

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(\s*^```text\n(?P<stdout>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
END_OF_BLOCK = "---- end of block ----"
OF_A_RUN = re.compile(  # its id, how long it took, how fast it was
    r"\b[Rr]un[ =](?:&#34;|\")?[0-9a-f]{12}\b(, [\d.:]+ \w+)?"
    r"|\bin [\d.:]+ (?:s|min|h)\b(, [\d,.]+/\w+)?"
)
LITTER = re.compile(  # paths, addresses, lines that were drawn anew
    r"/(home|root|tmp|work|Users)\b|site-packages|\b0x[0-9a-f]{8,}|127\.0\.0\.1:\d|\r|%\|"
)


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


def test_readme_and_manual_show_examples() -> None:
    assert Path("README.md") in PAGES
    assert len(PAGES) > 1


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page(page: Path, tmp_path: Path) -> None:
    """One script without a ``__main__`` guard, whose line numbers are the page's."""
    text = (ROOT / page).read_text("utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python"), "a block does not begin or end its line"
    script = tmp_path / f"{page.stem}.py"
    script.write_text(as_script(text, blocks), "utf-8")

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


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all notebooks as they come out now; two run at a time, for they wait a lot."""
    folder = tmp_path_factory.mktemp("notebooks")
    execute = [sys.executable, str(ROOT / "notebooks" / "execute.py"), "--into", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    at_once_dask.close()
    with ThreadPoolExecutor(2) as pool:
        for path in NOTEBOOKS:
            pool.submit(subprocess.run, [*execute, str(path)], env=environment)
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_and_shows_what_is_stored(path: Path, executed: Path) -> None:
    """Cells that are tagged ``varies`` show times of inputs and the like."""
    assert (executed / path.name).exists(), "it does not run to its end"
    made, stored = read(executed / path.name), read(path)
    if (
        made["metadata"]["language_info"]["version"]
        != stored["metadata"]["language_info"]["version"]
    ):
        return  # the data are of Python's own library
    for now, then in zip(made["cells"], stored["cells"], strict=True):
        if "varies" not in then["metadata"].get("tags", []):
            assert any_run(texts_of(now)) == any_run(texts_of(then)), "".join(then["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_shows_no_error_and_no_place_on_a_machine(path: Path) -> None:
    cells = read(path)["cells"]
    texts = [text for cell in cells for text in texts_of(cell)]
    assert texts, "the notebook is stored without what it shows"

    assert not [cell for cell in cells for output in outputs_of(cell) if is_error(output)]
    assert not [text for text in texts if LITTER.search(text)]


@pytest.fixture(autouse=True)
def _no_cluster() -> Iterator[None]:
    """Examples start from nothing, and leave nothing."""
    at_once_dask.close()
    yield
    at_once_dask.close()


def as_script(markdown: str, blocks: list[re.Match[str]]) -> str:
    """The code of the blocks, each at the line where it stands."""
    script = ""
    for block in blocks:
        line = markdown.count("\n", 0, block.start("code"))
        script += "\n" * (line - script.count("\n"))
        script += f"{block['code']}print({END_OF_BLOCK!r}, flush=True)\n"
    return script


def read(notebook: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(notebook.read_text("utf-8"))
    return found


def outputs_of(cell: dict[str, Any]) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = cell.get("outputs", [])
    return outputs


def is_error(output: dict[str, Any]) -> bool:
    return bool(output["output_type"] == "error")


def any_run(texts: list[str]) -> list[str]:
    """Without what is another with each run."""
    return [OF_A_RUN.sub("run", text) for text in texts]


def texts_of(cell: dict[str, Any]) -> list[str]:
    """What the outputs of a cell show, pictures aside."""
    texts: list[str] = []
    for output in outputs_of(cell):
        shown = {"text": output.get("text", ""), **output.get("data", {})}
        texts += ["".join(text) for kind, text in shown.items() if not kind.startswith("image/")]
    return [text for text in texts if text]
