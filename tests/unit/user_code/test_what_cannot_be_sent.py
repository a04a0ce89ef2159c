"""What cannot cross is called by its name, before anything starts; inputs say what to pass."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import at_once_dask

database = sqlite3.connect(":memory:", check_same_thread=False)
handler = logging.StreamHandler()


class Session:
    def __init__(self) -> None:
        self.lock = threading.Lock()


session = Session()


def helper(n: int) -> Any:
    return deeper(n)


def deeper(n: int) -> Any:
    return database.execute("select 1")


class Caller:
    def __init__(self) -> None:
        self.store = threading.local()

    def __call__(self, n: int) -> None:
        self.store.n = n

    def method(self, n: int) -> None:
        self.store.n = n


def closure() -> Callable[[int], object]:
    stream = open(os.devnull, "rb")  # noqa: SIM115
    stream.close()
    return lambda n: stream.read


@pytest.fixture(autouse=True)
def _by_value() -> Any:
    """As if they were of a script."""
    import sys

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


WAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "a global": (lambda: deeper, "process_inp uses `database`, which"),
    "of a helper of a helper": (
        lambda: helper,
        "process_inp uses `deeper`, which uses `database`, which",
    ),
    "inside an object": (lambda: lambda n: session, "process_inp uses `session`, which"),
    "a logging handler": (lambda: lambda n: handler.flush(), "process_inp uses `handler`, which"),
    "in a closure": (closure, "process_inp uses `stream`, which"),
    "an object that is called": (Caller, "process_inp uses `self.store`, which"),
    "a method": (lambda: Caller().method, "process_inp uses `self.store`, which"),
    "a default": (
        lambda: lambda n, lock=threading.Lock(): lock,  # noqa: B008
        "process_inp uses `lock`, which",
    ),
    "a partial": (
        lambda: functools.partial(lambda n, lock: lock, lock=threading.Lock()),
        "process_inp uses `lock`, which",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_variable_is_named(way: str) -> None:
    make, start = WAYS[way]
    with pytest.raises(at_once_dask.InputError) as raised:
        at_once_dask.run([1], None, make(), progress=False)
    text = str(raised.value)
    assert text.startswith(start)
    assert "cannot be sent to the workers: TypeError: cannot pickle" in text
    assert text.endswith("and call run(inp_list, check_inp, process_inp) again")
