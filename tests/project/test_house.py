"""The figures of the house: how large its parts may get, and that no file stands in a circle.

The rule which room imports from which is a contract in ``pyproject.toml``: ``make lint`` holds it.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import grimp

import at_once_dask

Node = TypeVar("Node", bound=ast.AST)

PACKAGE = Path(at_once_dask.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))

FLAT = 8  # files beside the rooms
IN_A_ROOM = 14
CLASS_LINES, CLASS_ATTRIBUTES = 250, 15
FUNCTION_LINES = {"median": 4, "ninetieth": 13, "longest": 40}


def test_no_file_is_in_a_circle() -> None:
    """Imports that are for types only count."""
    graph = grimp.build_graph("at_once_dask", exclude_type_checking_imports=False)
    below = {
        module: graph.find_downstream_modules(module) & graph.find_upstream_modules(module)
        for module in graph.modules
    }
    assert {module: others for module, others in below.items() if others} == {}


def test_few_files_lie_beside_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= FLAT
    assert max(len(list(room.glob("*.py"))) - 1 for room in ROOMS) <= IN_A_ROOM


def test_each_room_says_what_it_is_for() -> None:
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))), room.name


def test_classes_are_of_a_size_to_be_read() -> None:
    sizes = {
        f"{path.relative_to(PACKAGE)}: {node.name}": (
            node.end_lineno - node.lineno + 1,
            len(set(_attributes(node))),
        )
        for path, node in _nodes(ast.ClassDef)
        if node.end_lineno is not None
    }
    too_large = {
        name: size
        for name, size in sizes.items()
        if size[0] > CLASS_LINES or size[1] > CLASS_ATTRIBUTES
    }
    assert too_large == {}


def test_functions_are_short() -> None:
    """Without signature and docstring."""
    lengths = sorted(
        _length(node) for _, node in [*_nodes(ast.FunctionDef), *_nodes(ast.AsyncFunctionDef)]
    )
    found = {
        "median": statistics.median_low(lengths),
        "ninetieth": lengths[len(lengths) * 9 // 10],
        "longest": lengths[-1],
    }
    assert {name: n for name, n in found.items() if n > FUNCTION_LINES[name]} == {}


def test_one_file_knows_the_layout_of_the_progress_file() -> None:
    knows = re.compile(r"\b_HEAD\b|\b_MARK_BYTES\b|\b_CURRENT\b|\b_CLOSING\b")
    found = [path.name for path in FILES if knows.search(path.read_text("utf-8"))]
    assert found == ["progress_file.py"]


def test_docstrings_are_sentences() -> None:
    """Subject, verb, object: none begins in the middle."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}"
        for path, node in _nodes(ast.AST)
        if isinstance(node, kinds) and (text := ast.get_docstring(node)) is not None
        if text.startswith(("Of ", "What ", "Those "))
    ]
    assert found == [
        "__main__.py: What do Python files import? A map-reduce over every .py file in a folder."
    ]


def test_an_option_of_run_has_its_default_in_one_place() -> None:
    """Files in which the arguments stand with a default: the dataclass of all options."""
    default = re.compile(
        r"\b(inspect: bool|random_state: float.*|report_path: str.*) = (False|None)", re.M
    )
    found = [path.name for path in FILES if default.search(path.read_text("utf-8"))]
    assert found == ["options.py"]


def _nodes(kind: type[Node]) -> Iterator[tuple[Path, Node]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, kind):
                yield path, node


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    """The names that methods assign to on ``self``."""
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def _length(node: ast.AST) -> int:
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    body = node.body[ast.get_docstring(node) is not None :]
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
