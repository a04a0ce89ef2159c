"""The workers' surroundings are the driver's: directory, environment, import path, edited modules.

And the level of the root logger, so that ``logging.basicConfig(level=...)`` in a script counts.

For the own cluster only; a borrowed one keeps its own.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import multiprocessing.spawn
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from at_once_dask.cluster import forkserver
from at_once_dask.user_code.modules import current_directory, users_modules
from at_once_dask.worker import processes


@dataclass(frozen=True)
class Surroundings:
    """What a worker must share with the driver; crosses to each worker at each run.

    Attributes
    ----------
    directory : str or None
        The current directory; ``None`` when the driver's own is gone.
    environment : dict of str
    path : list of str
        ``sys.path``.
    log_level : int
        Of the root logger.
    start_method : str
        How `multiprocessing` starts the processes of those who do not say.
    """

    directory: str | None
    environment: dict[str, str]
    path: list[str]
    log_level: int
    start_method: str

    @classmethod
    def of_this_process(cls) -> Surroundings:
        environment = forkserver.THREAD_LIMITS | dict(os.environ) | dict([processes.mark()])
        path = [entry for entry in sys.path if isinstance(entry, str)]  # Python skips all others
        method = multiprocessing.get_start_method(allow_none=True)
        return cls(
            current_directory(),
            environment,
            path,
            logging.getLogger().level,
            method or multiprocessing.get_all_start_methods()[0],
        )

    def adopt(self) -> None:
        """Make them this process's; modules edited since they were imported are forgotten."""
        if self.directory is not None:
            os.chdir(self.directory)
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)
        processes.mark_as_worker()
        sys.path[:] = self.path
        self._adopt_log_level()
        multiprocessing.set_start_method(self.start_method, force=True)
        forget_edited_modules()

    def _adopt_log_level(self) -> None:
        """Only what the driver has changed since: the functions may have set one of their own."""
        global _log_level
        if self.log_level != _log_level:
            logging.getLogger().setLevel(self.log_level)
            _log_level = self.log_level


_log_level = logging.WARNING  # the driver's, as far as this process knows: Python's own
_looked_at = time.time_ns()  # when this process last looked for edited modules
_known: dict[str, tuple[int, int]] = {}


def forget_edited_modules() -> None:
    """Drop the user's modules from this process when a file of one has changed; they import anew.

    All of them, because a module that was not edited may hold what it imported from one that was.
    """
    global _looked_at
    now = time.time_ns()
    modules = dict(users_modules())
    stamps = {file: stamp for file in modules.values() if (stamp := _stamp(file)) is not None}
    edited = any(
        stamp != _known.get(file, stamp) or stamp[0] > _looked_at for file, stamp in stamps.items()
    )
    if edited:
        for name in modules:
            sys.modules.pop(name, None)
    _known.update(stamps)
    _looked_at = now
    importlib.invalidate_caches()


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


WORKER = "Dask Worker process"  # so begin the names of Dask's worker processes

_get_preparation_data = multiprocessing.spawn.get_preparation_data


def _without_main(name: str) -> dict[str, Any]:
    if not name.startswith(WORKER):
        return _get_preparation_data(name)
    data = forkserver.plain(_get_preparation_data, name)
    data.pop("init_main_from_path", None)
    data.pop("init_main_from_name", None)
    return data


def keep_main_out_of_workers() -> None:
    """Stop `multiprocessing` from running the script again in Dask's worker processes.

    Without this, a script without a ``__main__`` guard starts its cluster again in every worker,
    and no worker starts. Functions of ``__main__`` travel by value, so workers do not miss it.
    Processes of other names are not touched.
    """
    multiprocessing.spawn.get_preparation_data = _without_main


def let_main_into_processes() -> None:
    """Undo `keep_main_out_of_workers`."""
    multiprocessing.spawn.get_preparation_data = _get_preparation_data
