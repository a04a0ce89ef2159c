"""A large job lies once on each host of a borrowed cluster: in a file that its workers map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from at_once_dask.protocol import shared_file
from at_once_dask.protocol.progress_folder import ProgressFolder


def is_there(run: str, dask_worker: Any) -> bool:
    """Whether this worker's host has it. Runs in the worker; the parameter's name is Dask's."""
    return os.path.exists(_path(run, dask_worker))


def put(run: str, parts: Sequence[bytes], dask_worker: Any) -> None:
    """Put it there, whole at once. OSError when there is no space."""
    path = _path(run, dask_worker)
    new = f"{path}-{os.getpid()}"
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        shared_file.write(file, parts, shared_file.spans_of(parts))
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
    finally:
        os.close(file)


def _path(run: str, worker: Any) -> str:
    return ProgressFolder(os.path.dirname(worker.local_directory), run, worker.address).job
