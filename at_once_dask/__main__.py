"""What do Python files import? A map-reduce over every .py file in a folder.

Each file is parsed once: what is found in it is kept, as JSON, in the folder --out. Start the same
again, and only files that are not done yet are parsed; delete that folder to begin anew. The exit
code is 0 when nothing failed but files that do not parse, else 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

import at_once_dask

NOT_THE_LIBRARY = ("site-packages", "dist-packages")  # though in its folder
COLUMNS = ["files", "functions", "classes", "lines"]
ROWS = 20  # of the table, and of a list of failures


class DoesNotParse(Exception):
    """The file is no valid Python; the survey is not to blame."""


class Survey(TypedDict):
    """The facts that are kept of a file."""

    imports: list[str]
    functions: int
    classes: int
    lines: int


def check_inp(path: Path, out: Path) -> tuple[bool, dict[str, list[int]] | None]:
    """Whether the file at `path` is done, and its value."""
    try:
        text = json_path(path, out).read_text("utf-8")
    except FileNotFoundError:
        return False, None
    return True, by_module(json.loads(text))


def process_inp(path: Path, out: Path) -> dict[str, list[int]]:
    """Survey the file at `path`, save that where `check_inp` looks, and return its value."""
    found = survey(path.read_bytes(), path.name)
    target = json_path(path, out)
    target.parent.mkdir(parents=True, exist_ok=True)
    with at_once_dask.atomic_write(target, encoding="utf-8") as file:
        json.dump(found, file)
    return by_module(found)


def reduce_fn(values: list[list[int]]) -> list[int]:
    """Add up the files that import a module.

    >>> reduce_fn([[1, 3, 0, 40], [1, 2, 1, 60]])
    [2, 5, 1, 100]
    """
    return [sum(column) for column in zip(*values, strict=True)]


def by_module(found: Survey) -> dict[str, list[int]]:
    """The value of a file: for each module it imports, itself as a row of the table.

    >>> by_module({"imports": ["ast", "os"], "functions": 3, "classes": 0, "lines": 40})
    {'ast': [1, 3, 0, 40], 'os': [1, 3, 0, 40]}
    """
    row = [1, found["functions"], found["classes"], found["lines"]]
    return dict.fromkeys(found["imports"], row)


def json_path(path: Path, out: Path) -> Path:
    """A place of its own for every absolute `path`.

    >>> json_path(Path("/usr/lib/a.py"), Path("out")).as_posix()
    'out/usr/lib/a.py.json'
    """
    return out / f"{path.relative_to(path.anchor)}.json"


def survey(source: bytes, name: str) -> Survey:
    r"""Find out what Python code imports and consists of.

    Parameters
    ----------
    source : bytes
        Not decoded: the code itself may say how.
    name : str
        Of the file, for the messages.

    Returns
    -------
    Survey
        The names of imported top-level modules, sorted, relative imports left out; the numbers of
        functions (with methods), classes and lines.

    Raises
    ------
    DoesNotParse
        In the parser's words.

    Examples
    --------
    >>> survey(b"import os.path\nfrom . import near\nclass A: pass\n", "a.py")
    {'imports': ['os'], 'functions': 0, 'classes': 1, 'lines': 3}
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the code in the file
            nodes = list(ast.walk(ast.parse(source, name)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DoesNotParse(f"{type(error).__name__}: {error}") from error
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        "imports": sorted({module for node in nodes for module in imported(node)}),
        "functions": sum(isinstance(node, functions) for node in nodes),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "lines": len(source.splitlines()),
    }


def imported(node: ast.AST) -> list[str]:
    """Top-level names of the modules that a statement imports, relative ones left out."""
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
    return []


def python_files(folder: Path, leave_out: Iterable[str]) -> list[Path]:
    """Every .py file under `folder`, sorted, but none in a folder with a name in `leave_out`.

    Links to folders are not followed. A folder that cannot be listed is an input too, as is a link
    that leads nowhere: whoever reads it fails, and it is named.
    """
    found: list[Path] = []
    unlisted: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename)))
    for parent, folders, names in walk:
        folders[:] = set(folders).difference(leave_out)
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found + unlisted)


def summary(reduction: at_once_dask.Reduction[str, list[int]]) -> str:
    """The table, the counts, and each failed file with its cause."""
    report = reduction.report
    counts = (
        f"{report.n_inputs:,} files in {report.seconds:.1f} s: {report.n_skipped:,} skipped,"
        f" {report.n_processed:,} processed, {report.n_failed:,} failed"
    )
    failures = list(report.failures.itertuples())
    lines = [
        "The modules that most files import, and what these files consist of:",
        table(reduction) if reduction else "none",
        "",
        counts,
        *listed("Do not parse", [cause(row) for row in failures if is_unparsed(row)]),
        *listed("Failed otherwise", [cause(row) for row in failures if not is_unparsed(row)]),
        f"Log: {report.logfile}",
    ]
    return "\n".join(lines)


def table(rows: dict[str, list[int]]) -> str:
    """The rows of the modules that most files import; those that are equal there, by name."""
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).sort_index()
    frame = frame.sort_values("files", ascending=False, kind="stable").head(ROWS)
    frame = frame.rename_axis(columns="module")
    return frame.to_string(formatters=["{:,}".format] * len(COLUMNS))


def is_unparsed(failure: Any) -> bool:
    """Whether a row of ``report.failures`` is of a file that does not parse."""
    return bool(failure.error == DoesNotParse.__name__)


def cause(failure: Any) -> str:
    """A row of ``report.failures`` in one line."""
    message = failure.message.partition("\n")[0]
    if not is_unparsed(failure):
        message = f"{failure.error}: {message}"
    return f"{failure.input or failure.key}: {message}"


def listed(title: str, lines: list[str]) -> list[str]:
    """The first `ROWS` lines under their title, and how many there are besides.

    >>> listed("Do not parse", ["a.py: SyntaxError: invalid syntax"])
    ['Do not parse (1):', '  a.py: SyntaxError: invalid syntax']
    """
    if not lines:
        return []
    more = [f"and {len(lines) - ROWS:,} more, see the log"] if len(lines) > ROWS else []
    return [f"{title} ({len(lines):,}):", *(f"  {line}" for line in [*lines[:ROWS], *more])]


def arguments(argv: Sequence[str] | None) -> tuple[list[Path], Path]:
    """The files to survey and the folder for the results, which is there from now on."""
    parser = argparse.ArgumentParser("python -m at_once_dask", description=__doc__)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        help="whose .py files are surveyed (default: the standard library)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="at_once_demo", help="for results (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    folder = Path(given.folder or sysconfig.get_path("stdlib")).resolve()
    out = Path(given.out).resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    paths = python_files(folder, leave_out=() if given.folder else NOT_THE_LIBRARY)
    if not paths:
        parser.error(f"there is no .py file in {folder}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out cannot be made: {error}")
    return paths, out


def main(argv: Sequence[str] | None = None) -> int:
    """The demonstration.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the command line.

    Returns
    -------
    int
        The exit code.
    """
    paths, out = arguments(argv)
    at_once_dask.logfile = out / "log.jsonl"
    try:
        reduction = at_once_dask.run(
            paths,
            partial(check_inp, out=out),
            partial(process_inp, out=out),
            reduce_fn=reduce_fn,
            on_error="return",
        )
    except KeyboardInterrupt:  # nothing is lost
        print(at_once_dask.last_report(), file=sys.stderr)
        return 130
    # Names of files need not be text; what cannot be printed is shown escaped.
    print(summary(reduction).encode(errors="backslashreplace").decode())
    return int(not all(map(is_unparsed, reduction.report.failures.itertuples())))


if __name__ == "__main__":
    sys.exit(main())
