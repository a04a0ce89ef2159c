"""Clusters of others: what the command line of Dask starts, and Clients of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from distributed import Client

import at_once_dask


@contextlib.contextmanager
def dask_command(
    name: str, scheduler_file: Path, *options: str, **environment: str
) -> Iterator[subprocess.Popen[Any]]:
    """``dask scheduler`` or ``dask worker``, in a session, folder and import path of its own."""
    environment.setdefault("PYTHONPATH", str(Path(at_once_dask.__file__).parents[1]))
    with (scheduler_file.parent / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"distributed.cli.dask_{name}"),
                *("--scheduler-file", str(scheduler_file), "--host", "127.0.0.1"),
                *("--no-dashboard", *options),
            ],
            stdout=log,
            stderr=log,
            cwd=scheduler_file.parent,
            env=os.environ | environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # SIGTERM it could outlive for minutes
        process.wait()


@contextlib.contextmanager
def client_of(scheduler_file: Path, **client_kwargs: Any) -> Iterator[Client]:
    with Client(scheduler_file=str(scheduler_file), timeout=30, **client_kwargs) as client:
        yield client


@contextlib.contextmanager
def by_value(*modules: ModuleType) -> Iterator[None]:
    """The workers cannot import the tests: what the inputs' functions use goes with them."""
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
