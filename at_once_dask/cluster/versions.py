"""Why workers or the scheduler cannot take a run: another Python, another at_once_dask, or none."""

from __future__ import annotations

import contextlib
from functools import partial

from distributed import Client

from at_once_dask.cluster import dask_internals
from at_once_dask.errors import AtOnceError, InputError
from at_once_dask.protocol.events import WorkerMet
from at_once_dask.worker import package

ASK_SECONDS = 10.0  # for the scheduler to say what it has

_SAME = (
    "functions cross as code of one Python, and both sides must be of one at_once_dask; start the"
    " workers with the driver's versions, or the driver with theirs,"
)


def here() -> str:
    """The versions of this process."""
    python = ".".join(map(str, dask_internals.PYTHON))
    return f"Python {python} and at_once_dask {package.version()}"


def refuse(met: list[WorkerMet]) -> None:
    """Raise where some workers cannot take the run: half of a cluster is a mistake."""
    others = {one.worker: one.version for one in met if one.version is not None}
    if others:
        workers = ", ".join(f"{worker} has {there}" for worker, there in sorted(others.items()))
        raise InputError(
            f"this process has {here()}, and the worker {workers}; {_SAME} and call run() again"
        )
    for one in met:
        if one.error is not None:
            raise AtOnceError(
                f"the worker {one.worker} cannot take the run: {one.error}; see that at_once_dask"
                " is installed there with all it needs (pip install at_once_dask), start the"
                " cluster anew, and run the same again"
            )


def why_not(one: WorkerMet) -> str:
    """Why a worker that came later gets nothing."""
    if one.version is not None:
        return f"it has {one.version}; {_SAME} for it to be used"
    return f"{one.error}; see that at_once_dask is installed there with all it needs"


def of_scheduler(client: Client, error: Exception) -> AtOnceError:
    """Why the scheduler cannot take the run; `error` is what it answered."""
    ask = partial(client.sync, callback_timeout=ASK_SECONDS)
    python = ".".join(map(str, ask(dask_internals.python_of_scheduler, client)))
    there = f"Python {python} and no at_once_dask"
    with contextlib.suppress(Exception):
        version = ask(dask_internals.version_of_scheduler, client)
        there = f"Python {python} and at_once_dask {version}"
    if there == here():
        return AtOnceError(
            f"the scheduler cannot take the run: {type(error).__name__}: {error}; see that"
            " at_once_dask is installed there with all it needs, start it anew, and run the same"
            " again"
        )
    return InputError(
        f"the scheduler has {there}, and this process {here()}; {_SAME} and call run() again"
    )
