"""Modules that are here and that a worker could not import: what is in them crosses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from distributed import Client

import at_once_dask

SOURCE = """
from dataclasses import dataclass

FACTOR = 5

@dataclass(frozen=True)
class Item:
    n: int

def helper(item):
    return Item(item.n * FACTOR)

def process_inp(item):
    return {Item(item.n % 2): helper(item)}

def last(values):
    return values[-1]
"""


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[ModuleType]:
    """Loaded from a path, under a name that no import finds."""
    path = tmp_path / "01_pages.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("my pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["my pages"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["my pages"]


def test_a_module_loaded_from_a_path(cluster: Client, pages: Any) -> None:
    inputs = [pages.Item(n) for n in range(6)]
    result = at_once_dask.run(inputs, None, pages.process_inp, reduce_fn=pages.last, progress=False)
    assert list(result.items()) == [
        (pages.Item(0), pages.Item(20)),
        (pages.Item(1), pages.Item(25)),
    ]
    assert not cloudpickle.list_registry_pickle_by_value() & {"my pages"}


def test_what_somebody_has_registered_stays_so(cluster: Client, pages: Any) -> None:
    cloudpickle.register_pickle_by_value(pages)
    report = at_once_dask.run([pages.Item(1)], None, lambda item: None, progress=False)
    assert report.ok
    assert "my pages" in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.unregister_pickle_by_value(pages)


def test_what_cannot_cross_in_it_is_named(pages: Any) -> None:
    exec("import threading\nlock = threading.Lock()\ndef locked(n): return lock", vars(pages))
    with pytest.raises(at_once_dask.InputError, match="process_inp uses `lock`, which cannot be"):
        at_once_dask.run([1], None, pages.locked, progress=False)


@pytest.mark.thorough
@pytest.mark.parametrize("where", [".", "elsewhere"])
def test_tests_in_importlib_mode(folder: Path, where: str) -> None:
    test = SOURCE + (
        "\nimport at_once_dask\ndef test_it():\n"
        "    inputs = [Item(n) for n in range(6)]\n"
        "    result = at_once_dask.run(inputs, None, process_inp, reduce_fn=len, progress=False)\n"
        "    assert dict(result) == {Item(0): 3, Item(1): 3}\n"
    )
    (folder / "test_mine.py").write_text(test)
    (folder / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", folder / "test_mine.py"],
        cwd=folder / where,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert done.stdout.strip().splitlines()[-1].startswith("1 passed")
