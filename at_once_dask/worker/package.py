"""The package itself: its version, and how it gets to processes where it is not installed."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from functools import cache
from typing import Any

import cloudpickle

NAME = "at_once_dask"
# For `eval`, which every Python has.
VERSION_THERE = f"__import__({NAME!r}).__version__"
PYTHON_THERE = "__import__('sys').version_info[:2]"


def version() -> str:
    """The version of this process's."""
    found: str = sys.modules[NAME].__version__
    return found


def is_missing(error: BaseException) -> bool:
    """Whether `error`, which may have come as text, says that it is not installed there."""
    return f"No module named '{NAME}'" in str(error)


@cache
def to_install() -> tuple[bytes, bytes]:
    """A function that installs it in a process of the same Python, and its arguments, pickled.

    The function crosses by value: nothing of ours can be imported there.
    """
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)
    try:
        return cloudpickle.dumps(_install), cloudpickle.dumps((_archive(),))
    finally:
        cloudpickle.unregister_pickle_by_value(this)


def _archive() -> bytes:
    """The modules, as a ZIP file that Python imports from; it may have come here as one."""
    content = io.BytesIO()
    root = os.path.dirname(os.path.abspath(sys.modules[NAME].__file__ or ""))
    if zipfile.is_zipfile(os.path.dirname(root)):
        with open(os.path.dirname(root), "rb") as sent:
            return sent.read()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, _, files in os.walk(root):
            for file in files:
                if file.endswith(".py"):
                    path = os.path.join(folder, file)
                    archive.write(path, os.path.relpath(path, os.path.dirname(root)))
    return content.getvalue()


def _install(archive: bytes, dask_worker: Any = None) -> None:
    """Runs in a scheduler, a worker or a nanny; the last parameter's name is Dask's.

    A worker's own directory goes with it; the folder of others goes when their process ends.
    """
    import atexit
    import os
    import shutil
    import sys
    import tempfile

    is_worker = type(dask_worker).__name__ == "Worker"
    folder = tempfile.mkdtemp(dir=dask_worker.local_directory if is_worker else None)
    if not is_worker:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "at_once_dask.zip")
    with open(path, "wb") as file:
        file.write(archive)
    sys.path.append(path)
