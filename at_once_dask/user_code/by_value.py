"""Modules that are here, and that a worker could not import: what is in them crosses by value.

Test modules in pytest's importlib mode, modules loaded from a path, those whose folder is no longer
on ``sys.path``: the own cluster's workers have this process's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import ModuleType

import cloudpickle

from at_once_dask.user_code import pickling
from at_once_dask.user_code.pickling import MAINS
from at_once_dask.worker.environment import current_directory, users_modules


@contextmanager
def by_value(own: bool) -> Iterator[None]:
    """They cross by value meanwhile, and so do those that somebody has registered for that.

    `own`: whether the workers are of the own cluster; of others nobody knows what they can import.
    """
    registered = cloudpickle.list_registry_pickle_by_value()
    unimportable = _unimportable() if own else []
    found = [module for module in unimportable if module.__name__ not in registered]
    for module in found:
        cloudpickle.register_pickle_by_value(module)
    pickling.cross_by_value(cloudpickle.list_registry_pickle_by_value())
    try:
        yield
    finally:
        pickling.cross_by_value(())
        for module in found:
            with suppress(ValueError):  # somebody was faster
                cloudpickle.unregister_pickle_by_value(module)


def _unimportable() -> list[ModuleType]:
    made = [module for module in list(sys.modules.values()) if _was_made(module)]
    where = tuple(path for path in sys.path if isinstance(path, str)), current_directory()
    return made + [
        module
        for name, file in users_modules()
        if (module := sys.modules.get(name)) is not None
        and module.__name__ == name
        and not _can_be_imported(name, file, where)
    ]


def _was_made(module: object) -> bool:
    """Whether a program has made this module: no import did."""
    if type(module) is not ModuleType or getattr(module, "__spec__", None) is not None:
        return False  # nearly all of a thousand, at each run
    if hasattr(module, "__file__") or sys.modules.get(module.__name__) is not module:
        return False
    return module.__name__ not in (*MAINS, *sys.builtin_module_names)


@lru_cache(maxsize=1024)
def _can_be_imported(name: str, file: str, where: object) -> bool:
    """Whether an import of `name` finds this file; `where` it is looked for tells when to ask anew.

    ``importlib.util.find_spec`` would say what is imported already.
    """
    parent = name.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return False
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # a finder of old, or one that only its author knows
            continue
        if spec is not None:
            return os.path.realpath(spec.origin or "") == os.path.realpath(file)
    return False
