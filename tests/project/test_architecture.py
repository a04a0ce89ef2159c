"""The architecture is a list: each module imports only from those before it."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import at_once_dask

PACKAGE = Path(at_once_dask.__file__).parent

ORDER = (
    "cells",
    "session",
    "errors",
    "failure",
    "files",
    "classes",
    "pickles",
    "sameness",
    "main_module",
    "watchdog",
    "processes",
    "forkserver",
    "machine",
    "surroundings",
    "by_value",
    "interrupts",
    "stack",
    "states",
    "crumb",
    "lease",
    "inside",
    "journal",
    "failures",
    "output",
    "descriptors",
    "gather",
    "item",
    "reduction",
    "flow",
    "unsendable",
    "pace",
    "rates",
    "source",
    "blame",
    "ledger",
    "story",
    "frames",
    "timeline",
    "charts",
    "plots",
    "excerpt",
    "html",
    "report",
    "sight",
    "worker",
    "preload",
    "guard",
    "page",
    "dashboard",
    "credentials",
    "arity",
    "options",
    "cluster",
    "crew",
    "screens",
    "ticker",
    "window",
    "runner",
    "engine",
    "api",
    "__init__",
    "__main__",
)


def test_every_module_has_its_place() -> None:
    assert modules() == set(ORDER), "a module was added or removed: say so in ORDER"


def test_the_page_lists_them_in_this_order() -> None:
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)\.py` \|", page, re.MULTILINE) == list(ORDER)


def test_imports_go_one_way() -> None:
    places = {module: place for place, module in enumerate(ORDER)}

    wrong = [
        f"{module} imports {imported}"
        for module in sorted(modules() & places.keys())
        for imported in sorted(imports_of(module))
        if imported != module and places.get(imported, -1) > places[module]
    ]

    assert not wrong


def test_no_module_hides_a_public_name() -> None:
    """Importing ``at_once_dask.log``, the module, would set the attribute ``log`` to it."""
    assert not modules() & {*at_once_dask.__all__, "run", "log", "logfile"}


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    """The first call does: while the workers' process imports the same."""
    heavy = {"bokeh", "pandas", "numpy", "dask", "distributed", "tornado", "tqdm"}
    code = f"import sys, at_once_dask; print({heavy} & sys.modules.keys())"

    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PACKAGE.parent,
    )

    assert done.stdout == "set()\n"


def test_the_reader_of_imports_misses_none() -> None:
    tree = ast.parse(
        """
import at_once_dask.a.deep, os
from at_once_dask import b, something
from at_once_dask.c import thing
from . import d
from .e import thing
if TYPE_CHECKING:
    from at_once_dask import f
else:
    from at_once_dask import g
def late():
    from at_once_dask import h
"""
    )

    assert set(imported_names(tree, "at_once_dask")) == {
        "at_once_dask.a.deep",
        "at_once_dask.b",
        "at_once_dask.something",
        "at_once_dask.c.thing",
        "at_once_dask.d",
        "at_once_dask.e.thing",
        "at_once_dask.g",
        "at_once_dask.h",
        "os",
    }


def modules() -> set[str]:
    """Of the package; a folder in it counts as one."""
    return {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources("*")}


def sources(module: str) -> list[Path]:
    return [*PACKAGE.glob(f"{module}.py"), *PACKAGE.glob(f"{module}/**/*.py")]


def imports_of(module: str) -> set[str]:
    """The modules of the package that `module` imports as it runs."""
    found = set()
    for path in sources(module):
        within = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
        for name in imported_names(ast.parse(path.read_text("utf-8")), within):
            package, _, rest = name.partition(".")
            if package == PACKAGE.name:
                first = rest.partition(".")[0]
                found.add(first if first in modules() else "__init__")
    return found


def imported_names(tree: ast.AST, within: str) -> Iterator[str]:
    """Full names of what is imported at run time by code in the package `within`."""
    match tree:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            parts: Iterator[ast.AST] = iter(tree.orelse)
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
            return
        case ast.ImportFrom(module=module, names=names, level=level):
            base = importlib.util.resolve_name("." * level + (module or ""), within)
            yield from (f"{base}.{alias.name}" for alias in names)
            return
        case _:
            parts = ast.iter_child_nodes(tree)
    for part in parts:
        yield from imported_names(part, within)
