"""The user's objects as text: bounded in size, and nothing in here raises."""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

REPR_LIMIT = 200  # characters, the log's
REPR_DEPTH = 6  # of containers in containers
NAME_LIMIT = 200  # characters of a type's name


def safe_repr(value: object, limit: int = REPR_LIMIT) -> str:
    """``repr(value)`` cut at `limit` characters; never raises, never builds a huge text.

    >>> safe_repr(["x"] * 3)
    "['x', 'x', 'x']"
    """
    text = ""
    try:
        for piece in _pieces(value, limit, REPR_DEPTH):
            text += piece
            if len(text) > limit:
                break
        return cut(sound(text), limit)
    except BaseException as error:
        return cut(_without_repr(value, error), limit)


def sound(text: str) -> str:
    """Without half surrogate pairs, as of file names that are not UTF-8: these break a print."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """`text` as ``print`` can write it: with escapes where stdout or stderr has no letters."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, or somebody else's idea of a stream
            if stream.errors in ("strict", "surrogateescape"):
                text = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
    return text


def cut(text: str, limit: int) -> str:
    """`text`, shortened to `limit` characters with an ellipsis in the last one."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cut_start(text: str, limit: int) -> str:
    """`text`, shortened to `limit` characters with an ellipsis in the first one."""
    return text if len(text) <= limit else "…" + text[1 - limit :]


def first_line(text: str) -> str:
    return text.split("\n", 1)[0]


class _Text(str):
    """Stands in a repr as it is."""

    __slots__ = ()
    __repr__ = str.__str__


_COLON = _Text(": ")
_OF_NAMEDTUPLE = namedtuple("_OF_NAMEDTUPLE", "").__repr__.__code__  # all of them have this one


def _pieces(value: Any, room: int, depth: int) -> Iterator[str]:
    """The repr bit by bit: of a large container no more is made than there is room for."""
    opened = _opened(value)
    if opened is None:
        yield _leaf(value, room)
        return
    opening, items, closing = opened
    yield opening
    for number, parts in enumerate(items if depth else [(_Text("..."),)]):
        if number:
            yield ", "
        for part in parts:
            yield from _pieces(part, room, depth - 1)
    yield closing


def _opened(value: Any) -> tuple[str, Iterable[tuple[Any, ...]], str] | None:
    """Its beginning, its items and its end; None for what is no container.

    One whose class has a ``__repr__`` of its own is none. No method of its class is called.
    """
    kind = type(value)
    shown: Any = kind.__repr__
    if shown is list.__repr__:
        return "[", zip(list.__iter__(value)), "]"
    if shown is tuple.__repr__:
        return "(", zip(tuple.__iter__(value)), ",)" if tuple.__len__(value) == 1 else ")"
    if shown is dict.__repr__:
        return "{", _entries(dict.items(value)), "}"
    if shown is OrderedDict.__repr__ and dict.__len__(value):
        # As Python writes it from 3.12 on.
        return f"{kind.__name__}({{", _entries(OrderedDict.items(value)), "})"
    if shown is defaultdict.__repr__:
        return f"{kind.__name__}({value.default_factory!r}, {{", _entries(dict.items(value)), "})"
    if shown is deque.__repr__:
        most = deque.maxlen.__get__(value)
        closing = "])" if most is None else f"], maxlen={most})"
        return f"{kind.__name__}([", zip(deque.__iter__(value)), closing
    if shown is set.__repr__ or shown is frozenset.__repr__:
        return _opened_set(value, kind)
    if getattr(shown, "__code__", None) is _OF_NAMEDTUPLE:
        named = zip(map(_label, kind._fields), tuple.__iter__(value), strict=True)
        return f"{kind.__name__}(", named, ")"
    if is_dataclass(kind) and _is_generated(shown):
        names = [field.name for field in fields(kind) if field.repr]
        return (
            f"{kind.__qualname__}(",
            ((_label(name), getattr(value, name)) for name in names),
            ")",
        )
    return None


def _opened_set(value: Any, kind: type) -> tuple[str, Iterable[tuple[Any, ...]], str] | None:
    base: Any = set if issubclass(kind, set) else frozenset
    if not base.__len__(value):
        return None
    opening, closing = ("{", "}") if kind is set else (f"{kind.__name__}({{", "})")
    return opening, zip(base.__iter__(value)), closing


def _entries(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, ...]]:
    return ((key, _COLON, value) for key, value in items)


def _label(name: str) -> _Text:
    return _Text(f"{name}=")


def _is_generated(shown: Any) -> bool:
    """Whether `dataclass` made this ``__repr__``: out of a text, and guarded against recursion."""
    code = getattr(getattr(shown, "__wrapped__", None), "__code__", None)
    return code is not None and code.co_filename == "<string>"


def _leaf(value: Any, room: int) -> str:
    """The repr of what is no container; of what is one in a row of many, of its beginning."""
    try:
        for base in (str, bytes, bytearray, array):
            if issubclass(type(value), base) and base.__len__(value) > room:
                value = base.__getitem__(value, slice(room))
        return repr(value)
    except BaseException as error:
        return _without_repr(value, error)


def _without_repr(value: object, error: BaseException) -> str:
    return f"<{_name(value)} object whose repr raised {_name(error)}>"


def _name(value: object) -> str:
    """The name of its type, whatever a metaclass makes of that."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return cut(name, NAME_LIMIT)
