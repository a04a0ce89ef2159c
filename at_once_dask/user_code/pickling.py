"""How objects cross between processes: pickled in one piece, functions of ``__main__`` by value.

Both ends of every crossing use these two, so that classes of ``__main__`` come back as themselves.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import IO, Any, ClassVar

import cloudpickle
from cloudpickle.cloudpickle import (
    _DYNAMIC_CLASS_TRACKER_BY_ID,
    _class_setstate,
    _make_skeleton_class,
    _make_skeleton_enum,
)

from at_once_dask.user_code import notebook, pickling

# A piece of a pickle that is larger names no class: it is one text, or bytes. All else comes in
# frames of 64 KiB, and one object more of less than that, or an int of any size.
DATA_BYTES = 2**18

# The script's own module; the second name is that in a process which `multiprocessing` started.
MAINS = ("__main__", "__mp_main__")


def dumps(value: object) -> bytes:
    """`value` in one piece; raises whatever its pickling raises.

    Plain pickle is several times faster; only cloudpickle takes what lives in ``__main__``.
    """
    pieces = _Pieces()
    try:
        pickle.Pickler(pieces, protocol=5).dump(value)
    except Exception:
        return _dumps_by_value(value)
    # To look through large bytes would take ten times as long as to pickle them.
    named = [piece for piece in pieces if isinstance(piece, bytes) and _may_name(piece)]
    if any(module in piece for piece in named for module in _by_value):
        return _dumps_by_value(value)
    return b"".join(pieces)


def _may_name(piece: bytes) -> bool:
    """Whether it may name a class: also a large piece that begins as a frame does."""
    return len(piece) < DATA_BYTES or piece[:1] in (pickle.PROTO, pickle.FRAME)


class _Pieces(list[bytes | memoryview]):
    """A file to pickle into: large bytes, texts and arrays come as pieces of their own."""

    def write(self, piece: bytes | pickle.PickleBuffer | bytearray) -> None:
        """Take it as it is; of an array its memory."""
        self.append(piece if isinstance(piece, bytes) else pickle.PickleBuffer(piece).raw())


_by_value = [module.encode() for module in MAINS]


def cross_by_value(modules: Iterable[str]) -> None:
    """Besides ``__main__`` these modules cannot be imported on the other side."""
    _by_value[len(MAINS) :] = [module.encode() for module in modules]


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


def loads(pickled: bytes | memoryview) -> Any:
    """The value that `dumps` was given."""
    return pickle.loads(pickled)


def _dumps_by_value(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(value)
    return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    made_by = cloudpickle.Pickler.dispatch_table[CodeType](code)
    cell = notebook.cell_of(code.co_filename)
    if cell is not None:
        return _code_of_cell, (cell, *made_by)
    return _code_of_file, (code.co_filename, *made_by)


def _code_of_cell(
    cell: notebook.Cell, make: Callable[..., CodeType], arguments: tuple[Any, ...]
) -> CodeType:
    notebook.know(cell)
    return _code_of_file(cell[0], make, arguments)


def _code_of_file(name: str, make: Callable[..., CodeType], arguments: tuple[Any, ...]) -> CodeType:
    return make(*arguments).replace(co_filename=name)


def _reduce_cached(cached: Any) -> Any:
    """Reduce a cached function to one with an empty cache, where it cannot go by its name."""
    module, name = getattr(cached, "__module__", ""), getattr(cached, "__qualname__", "")
    if str(module).encode() not in _by_value and named(module, name) is cached:
        return name
    state = {name: value for name, value in vars(cached).items() if name not in _OF_WRAPPERS}
    return _cached, (cached.__wrapped__, cached.cache_parameters()), state


_OF_WRAPPERS = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(cached: functools.cached_property[Any]) -> Any:
    state = {name: value for name, value in vars(cached).items() if name not in ("lock", "func")}
    return functools.cached_property, (cached.func,), state


def dispatching(registry: dict[type, Callable[..., Any]], state: dict[str, Any]) -> Any:
    """Make a ``functools.singledispatch`` of a function and of those registered with it."""
    made = functools.singledispatch(registry[object])
    for kind, function in registry.items():
        made.register(kind, function)
    vars(made).update(state)
    return made


def _reduce_dispatching_method(method: functools.singledispatchmethod[Any]) -> Any:
    return _dispatching_method, (method.func, method.dispatcher)


def _dispatching_method(function: Callable[..., Any], dispatcher: Any) -> Any:
    made = functools.singledispatchmethod(function)
    made.dispatcher = dispatcher
    return made


_a_dispatching: Any = functools.singledispatch(len)
_DISPATCHING = _a_dispatching.__code__  # all of them have this one
_KEPT_BY_DISPATCH = ("register", "dispatch", "registry", "_clear_cache")


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, with what people's scripts have in them.

    Functions keep the name of their file: tracebacks tell it, and where something failed;
    cloudpickle from 3.1.3 on puts ``<dynamic-code>`` in its place. In a notebook it is the cell's.
    And what `functools` wraps goes, though it holds a lock, weak references or a cache.
    """

    dispatch_table: ClassVar[Any] = ChainMap(
        {
            CodeType: _reduce_code,
            type(functools.lru_cache(len)): _reduce_cached,
            functools.cached_property: _reduce_cached_property,
            functools.singledispatchmethod: _reduce_dispatching_method,
        },
        cloudpickle.Pickler.dispatch_table,
    )

    def __init__(self, file: Any, protocol: int, buffer_callback: Any = None) -> None:
        super().__init__(file, protocol, buffer_callback)
        if "__mp_main__" in sys.modules:  # the script, in a process that `multiprocessing` started
            cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        return pickling.complete(obj, reduced) if isinstance(obj, type) else reduced

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        if func.__code__ is not _DISPATCHING:
            return super()._dynamic_function_reduce(func)
        state = {k: v for k, v in vars(func).items() if k not in _KEPT_BY_DISPATCH}
        registry: Any = func.registry  # type: ignore[attr-defined]
        return dispatching, (dict(registry), state)


class _Pickler(Pickler):
    """Pickles by its name what both sides know in ``__main__``."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType)) and _is_shared(obj):
            return obj.__qualname__
        return super().reducer_override(obj)


_shared: frozenset[str] = frozenset()


def share(names: Iterable[str]) -> None:
    """These names of ``__main__`` are the same functions and classes on the other side."""
    global _shared
    _shared = frozenset(names)


def _is_shared(obj: Any) -> bool:
    if obj.__module__ not in MAINS or obj.__qualname__.partition(".")[0] not in _shared:
        return False
    return named(obj.__module__, obj.__qualname__) is obj


def named(module: str, qualname: str) -> Any:
    """The object of that name in the imported `module`; None where there is none."""
    try:
        return attribute(sys.modules.get(module), qualname)
    except AttributeError:
        return None


def attribute(found: Any, qualname: str) -> Any:
    """The object of that name in a module; raises AttributeError where there is none."""
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


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


@functools.lru_cache(maxsize=4096)
def _survives(exactly: _Exactly) -> bool:
    return bool(loads(dumps(exactly.key)) == exactly.key)


_OF_EVERY_MEMBER = ("_name_", "__objclass__", "_sort_order_")


def complete(kind: Any, reduced: Any) -> Any:
    """Add to what cloudpickle has made of the class `kind` what it leaves out."""
    if not isinstance(reduced, tuple):
        return reduced
    make, made_of, *state = reduced
    if make is _make_skeleton_class:
        made_of[3]["__qualname__"] = kind.__qualname__  # of a class in a class both names
        # Else instances would get a dict. (A NamedTuple may not name them.)
        if "__slots__" in vars(kind) and not issubclass(kind, tuple):
            made_of[3]["__slots__"] = kind.__slots__
        return _class, made_of, *state
    if make is _make_skeleton_enum:
        return make, made_of, (state[0], *_members(kind)), None, None, _set_enum
    return reduced


def _class(*made_of: Any) -> type:
    """As cloudpickle makes it, but once: it makes a class for each time that a pickle names it.

    All but the first are thrown away, but not before ``__init_subclass__`` knows of them.
    """
    known: type | None = _DYNAMIC_CLASS_TRACKER_BY_ID.get(made_of[4])
    made: type = _make_skeleton_class(*made_of) if known is None else known
    return made


def _members(kind: Any) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The attributes of each member of an enum; other names of it."""
    given = {
        member.name: {k: v for k, v in vars(member).items() if k not in _OF_EVERY_MEMBER}
        for member in kind
    }
    aliases = {name: member.name for name, member in kind.__members__.items()}
    return given, {name: known for name, known in aliases.items() if name != known}


def _set_enum(kind: Any, state: tuple[Any, ...]) -> None:
    of_class, given, aliases = state
    members = kind._member_map_
    # The aliases are among the attributes, as the members that they were.
    attributes, slots = of_class
    _class_setstate(kind, ({k: v for k, v in attributes.items() if k not in aliases}, slots))
    for name, attributes in given.items():
        vars(members[name]).update(attributes)
        with contextlib.suppress(TypeError):  # a value that cannot be hashed is looked for
            kind._value2member_map_[attributes["_value_"]] = members[name]
    for name, known in aliases.items():
        members[name] = members[known]
        type.__setattr__(kind, name, members[known])  # an enum lets nobody else do so
