"""Modules that are here, and that a worker could not import: what is in them crosses by value.

Test modules in pytest's importlib mode, modules loaded from a path, those whose folder is no longer
on ``sys.path``: the own cluster's workers have this process's.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from types import ModuleType

import cloudpickle

from at_once_dask.user_code import pickling
from at_once_dask.user_code.pickling import MAINS


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


_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NOT_THE_USERS = tuple(
    path + os.sep
    for path in {
        *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)


@cache
def is_users_file(filename: str) -> bool:
    """Whether `filename` is outside the standard library, site-packages and this package."""
    if not os.path.isabs(filename):  # no file: a notebook's cell, standard input
        return not filename.startswith("<frozen ")
    path = os.path.abspath(filename)
    return not path.startswith(_NOT_THE_USERS) and not is_ours(path)


def is_ours(filename: str) -> bool:
    """Whether `filename` is of this package; its demonstration counts as a user's program."""
    return filename.startswith(_HERE) and not filename.endswith("__main__.py")


def current_directory() -> str | None:
    """None when it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def users_modules() -> Iterator[tuple[str, str]]:
    """Name and file of the modules of the user's own, in pure Python."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and is_users_file(file):
            if name not in ("__main__", "__mp_main__"):
                yield name, file
