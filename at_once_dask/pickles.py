"""How objects cross between processes: pickled in one piece, functions of ``__main__`` by value.

Both ends of every crossing use these two, so that classes of ``__main__`` come back as themselves.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import CodeType
from typing import IO, Any, ClassVar

import cloudpickle

from at_once_dask import cells


def dumps(value: object) -> bytes:
    """`value` in one piece; raises whatever its pickling raises.

    Plain pickle is several times faster; only cloudpickle takes what lives in ``__main__``.
    """
    try:
        pickled = pickle.dumps(value, protocol=5)
    except Exception:
        return _dumps_by_value(value)
    if b"__main__" in pickled or b"__mp_main__" in pickled:
        return _dumps_by_value(value)
    return pickled


def dump(value: object, file: IO[bytes]) -> int:
    """`value` behind what `file` has, for `load`; returns how many bytes that took.

    Large bytes and arrays are written from where they are, without a copy.
    """
    start = file.tell()
    _Pickler(file, protocol=5).dump(value)
    return file.tell() - start


def load(file: IO[bytes]) -> Any:
    """The value that `dump` was given; read straight into its place."""
    return pickle.load(file)


def loads(pickled: bytes) -> Any:
    """The value that `dumps` was given."""
    return pickle.loads(pickled)


def _dumps_by_value(value: object) -> bytes:
    if "__mp_main__" in sys.modules:  # the script, in a process that `multiprocessing` started
        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(value)
    return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    made_by = cloudpickle.Pickler.dispatch_table[CodeType](code)
    cell = cells.cell_of(code.co_filename)
    if cell is not None:
        return _code_of_cell, (cell, *made_by)
    return _code_of_file, (code.co_filename, *made_by)


def _code_of_cell(
    cell: cells.Cell, make: Callable[..., CodeType], arguments: tuple[Any, ...]
) -> CodeType:
    cells.know(cell)
    return _code_of_file(cell[0], make, arguments)


def _code_of_file(name: str, make: Callable[..., CodeType], arguments: tuple[Any, ...]) -> CodeType:
    return make(*arguments).replace(co_filename=name)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Leaves functions the name of their file: tracebacks tell it, and where something failed.

    cloudpickle from 3.1.3 on puts ``<dynamic-code>`` in its place. In a notebook it is the cell's.
    """

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )


def survives(key: object) -> bool:
    """Whether a hashable `key` is equal to itself and to its copy from another process.

    NaN is not; ``(nan,)`` and ``object()`` are only as long as they stay in one process.

    >>> survives("a"), survives(float("nan")), survives(object())
    (True, False, False)
    """
    if is_plain(key):
        return True
    return bool(key == key) and _survives(_Exactly(key))


# Keys of these types are equal to themselves and stay so on the way to another process.
_PLAIN = frozenset({str, bytes, int, bool, type(None)})


def are_plain(keys: Iterable[object]) -> bool:
    """Whether all `keys` are of types of which each one survives.

    >>> are_plain(["a", 1]), are_plain([("a", 1)])
    (True, False)
    """
    return _PLAIN.issuperset(map(type, keys))


def is_plain(key: object) -> bool:
    """Whether `key` is of such a type, or a tuple of such."""
    return type(key) in _PLAIN or (type(key) is tuple and all(map(is_plain, key)))


class _Exactly:
    """A key by type and equality: ``1`` and ``1.0`` are equal, yet need two answers."""

    __slots__ = ("key",)

    def __init__(self, key: object) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Exactly) or type(self.key) is not type(other.key):
            return False
        return bool(self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=4096)
def _survives(exactly: _Exactly) -> bool:
    return bool(loads(dumps(exactly.key)) == exactly.key)
