"""Calls that are wrong on purpose: what is passed, what is raised, and that nothing was started."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import at_once_dask
from at_once_dask.cluster import connect

# Wrong on purpose, and so without their types.
run: Any = at_once_dask.run


plan: Any = at_once_dask.plan


start: Any = at_once_dask.start


def check(inp: Any) -> list[Any]:
    return [False, None]


def process(inp: Any) -> dict[str, int]:
    return {"n": 1}


async def fetch(inp: Any) -> dict[str, int]:
    return {"n": 1}


def pairs(inp: Any) -> Iterator[tuple[str, int]]:
    yield "n", 1


def refused(call: Callable[[], object]) -> str:
    """The text of the InputError that `call` must raise."""
    with pytest.raises(at_once_dask.InputError) as error:
        call()
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, at_once_dask.AtOnceError)
    copy = pickle.loads(pickle.dumps(error.value))
    assert type(copy) is at_once_dask.InputError
    assert str(copy) == str(error.value)
    return str(error.value)


CALL = "run(inp_list, check_inp, process_inp"


OTHER_CLIENT = (
    "; write run(inp_list, check_inp, process_inp, client=distributed.Client(address)), or pass no"
    " client for a cluster of our own"
)


@contextmanager
def nothing_started(folder: Path) -> Iterator[None]:
    """Nothing is started or written, and the latest report stays the latest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connect, "_own", None)
        run([], None, print)
        report = at_once_dask.last_report()
        yield
        started = connect._own is not None
        at_once_dask.close()  # nothing of a wrong start is left to the next test
        assert not started
        assert at_once_dask.last_report() is report
        assert list(folder.iterdir()) == []


def check_logfile_text(text: str, given: str) -> None:
    reason = "Is a directory" if given == "." else "No such file or directory"
    assert text == (
        f"at_once_dask.logfile = {str(Path(given).absolute())!r} cannot be written ({reason});"
        " assign a path that can be, for example at_once_dask.logfile = "
        '"at_once_log.jsonl"'
    )
