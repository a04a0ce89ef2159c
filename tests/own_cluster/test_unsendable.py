"""What cannot cross is called by its name, before anything starts; inputs say what to pass."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from distributed import Client

import at_once_dask


@pytest.fixture(autouse=True)
def _by_value() -> Any:
    """As if they were of a script."""
    import sys

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def test_what_only_looks_as_if_it_could_not_cross_works(cluster: Client) -> None:
    folder = tempfile.TemporaryDirectory()
    logger = logging.getLogger("some.name")
    result = at_once_dask.run(
        range(3),
        None,
        lambda n: [((folder.name, logger.name), n)],
        reduce_fn=sum,
        progress=False,
    )
    assert dict(result) == {(folder.name, "some.name"): 3}
    folder.cleanup()


def rows() -> list[Any]:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    found = connection.execute("select 1 as a").fetchall()
    connection.close()
    return found


INPUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "directory entries": (lambda: os.scandir("."), "[entry.path for entry in os.scandir(folder)]"),
    "rows": (rows, "tuple(row) instead of the row"),
    "generators": (lambda: [(n for n in range(3))], "[list(part) for part in parts]"),
    "locks": (lambda: [threading.Lock()], "and make it in process_inp"),
}


@pytest.mark.parametrize("way", INPUTS)
def test_an_input_says_what_to_pass(cluster: Client, folder: Path, way: str) -> None:
    (folder / "file").touch()
    make, instead = INPUTS[way]
    report = at_once_dask.run(make(), None, print, on_error="return", progress=False)
    assert report.n_failed == report.n_inputs > 0
    for message in report.failures["message"]:
        assert message.startswith("cannot pickle")
        assert f"; pass {instead}" in message or instead in message


def test_what_is_large_is_named_before_it_is_sent(
    cluster: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    small, table, shared = [1], bytes(56 * 2**20), np.zeros(7 * 2**20)

    def process_inp(n: int) -> None:
        assert small
        assert table[n] == 0

    at_once_dask.run([1], None, process_inp)
    assert (
        "at_once_dask: process_inp takes `table` along, 56.00 MiB in all, to each of 2 workers;"
        " load it inside the function, once a worker with functools.cache, or pass a path\n"
    ) in capfd.readouterr().err
    at_once_dask.run([1], None, process_inp, progress=False)
    at_once_dask.run([1], None, lambda n: small and None)
    at_once_dask.run([1], None, lambda n: shared[n] or None)  # an array is there once
    assert "takes" not in capfd.readouterr().err
