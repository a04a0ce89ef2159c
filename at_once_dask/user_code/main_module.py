"""The script's ``__main__`` in the workers: what speaks of its functions and classes by name works.

Functions of a script or a notebook cross by value. But whatever then looks them up as
``__main__.X`` (plain ``pickle``, a ``multiprocessing.Pool`` in the function, annotations,
``import __main__``) would find an empty module there. So a run brings a module of its own, which is
the worker's ``__main__`` while it lasts. The functions use it as their globals, and the script's
other functions, classes and small variables are in it, too. One module a run: what an earlier run
called the same is not seen.

::

    what crosses: functions of the run | other functions and classes | imports, data | size of those
                  └────── one pickle stream: the same object is one ──────┘
"""

from __future__ import annotations

import importlib
import io
import multiprocessing.spawn
import os
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from cloudpickle.cloudpickle import _extract_code_globals

from at_once_dask.user_code import pickling
from at_once_dask.user_code.pickling import MAINS
from at_once_dask.user_code.replaced import Replaced

SMALL_BYTES = 2**18  # of a variable that no function of the run uses, to go along all the same
OTHERS_BYTES = 2**22  # of all of them together
BUFFER_BYTES = 2**20  # of an array, from which on it is not a part of the pickle
KEPT_BYTES = 2**24  # of a pickled module, to be kept for children

# What such a variable may be made of: data, and nothing that does something when it is copied.
_DATA = frozenset(
    (
        *("__main__", "__mp_main__", "argparse", "array", "at_once_dask", "builtins"),
        *("collections", "datetime", "decimal", "enum", "fractions", "functools", "ipaddress"),
        *("numpy", "operator", "pathlib", "re", "types", "typing", "uuid", "zoneinfo"),
    )
)
_COPYING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs_ex__")
_ATTRIBUTES = ("__name__", "__file__", "__package__", "__path__", "__doc__")
_WORD = re.compile(r"[^\W\d]\w*")
_SIZE = struct.Struct("=q")


class Main(ModuleType):
    """A run's ``__main__`` in a worker.

    What the script imports and the functions do not use is imported when somebody asks for it.
    """

    __slots__ = ("_preparation", "folder", "later", "left", "pickled")

    def __init__(self, folder: str = "") -> None:
        super().__init__("__main__")
        self.folder = folder  # for what processes that a function starts must know
        self.later: dict[str, _Import] = {}
        self.left: frozenset[str] = frozenset()  # names that stayed behind
        self.pickled = b""  # what it was filled with

    def fill(self, pickled: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
        """The functions that were pickled; this module is what they know as ``__main__``.

        `buffers` are the arrays that are not in the pickle, in their order.
        """
        small = len(pickled) <= KEPT_BYTES and not buffers
        self.pickled = bytes(pickled) if small else b""
        imports, data, self.left = _trailer(pickled)
        for name, found in imports.items():
            found.put(self, name)
        unpickler = _Unpickler(_Reader(pickled), self, buffers)
        functions = unpickler.load()
        # What the functions do not use must not keep them from running.
        with suppress(Exception):
            while (others := unpickler.load()) is not None:
                self._take(others)
        for name, value in data.items():
            with suppress(Exception):
                self._take({name: _Unpickler(io.BytesIO(value), self).load()})
        return functions

    def _take(self, others: Mapping[str, Any]) -> None:
        for name, value in others.items():
            vars(self).setdefault(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in self.later:
            return self.later[name].load()
        stayed = f": {stayed_behind(name)}" if name in self.left else ""
        raise AttributeError(f"module '__main__' has no attribute {name!r}{stayed}")

    def take_place(self) -> None:
        """From now on it is this process's ``__main__``; that of children, too."""
        if sys.modules["__main__"] is not self:
            sys.modules.update(dict.fromkeys(MAINS, self))
            pickling.share(vars(self))
            self._preparation = Replaced(
                multiprocessing.spawn, "get_preparation_data", partial(_with_main, self)
            )

    def leave(self) -> None:
        """The process is as it was."""
        if sys.modules["__main__"] is self:
            sys.modules["__main__"] = _before
            sys.modules.pop("__mp_main__", None)
            pickling.share(())
            self._preparation.undo()


_before = sys.modules["__main__"]


def stayed_behind(name: str) -> str:
    """Why the script's variable is not there."""
    return (
        f"{name} stayed behind, for process_inp does not use it, and it is large, or no plain data,"
        " or cannot be pickled; use it in process_inp, or pass it in the input"
    )


def is_left(name: object) -> bool:
    """Whether a variable of the script is not in this worker."""
    main = sys.modules["__main__"]
    return isinstance(main, Main) and name in main.left


@dataclass(frozen=True)
class Pickled:
    """Functions for the way to the workers.

    Attributes
    ----------
    stream : bytes
    buffers : list of memoryview
        Large arrays that are not in the stream, where they are in memory here.
    used, others : set of str
        The names of ``__main__`` that the functions use; those of functions and classes besides.
    """

    stream: bytes
    buffers: list[memoryview]
    used: frozenset[str]
    others: frozenset[str]


class _Apart:
    """Keeps large arrays out of a pickle, while that is wanted."""

    def __init__(self) -> None:
        self.wanted = True
        self.buffers: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether it goes into the pickle."""
        if not self.wanted:
            return True
        try:
            raw = buffer.raw()
        except BufferError:  # it does not lie in one piece
            return True
        if raw.nbytes < BUFFER_BYTES:
            return True
        self.buffers.append(raw)
        return False


def pickled(functions: object) -> Pickled:
    """`functions` for the way to the workers; large arrays apart from the rest.

    Raises whatever pickling the functions raises; of the other names, what cannot go stays here.
    """
    file, large = io.BytesIO(), _Apart()
    pickler = _Pickler(file, large)
    pickler.dump(functions)
    large.wanted = False
    rest = _Rest(pickler.known, pickler.used)
    pickler.others = rest.code.keys()
    sent = [*_dumped(pickler, file, rest.code)]
    pickler.dump(None)
    data = dict(rest.small_data())
    left = frozenset(name for name in pickler.known if name[:2] != "__")
    left -= {*pickler.used, *sent, *rest.imports, *data}
    trailer = pickle.dumps((rest.imports, data, left), protocol=5)
    file.write(trailer + _SIZE.pack(len(trailer)))
    return Pickled(file.getvalue(), large.buffers, frozenset(pickler.used), frozenset(sent))


def size(value: object) -> int:
    """The size of `value`, pickled with what it uses of ``__main__``; may raise."""
    file = _Counter()
    _Pickler(file).dump(value)
    return file.size


_Trailer = tuple[dict[str, "_Import"], dict[str, bytes], frozenset[str]]


def _trailer(pickled: bytes | memoryview) -> _Trailer:
    end = len(pickled) - _SIZE.size
    (n_bytes,) = _SIZE.unpack(pickled[end:])
    found: _Trailer = pickle.loads(pickled[end - n_bytes : end])
    return found


def _variables() -> dict[str, Any]:
    """The variables of ``__main__``, as its functions know them.

    A process that `multiprocessing` has started runs the script in one dict, and keeps a copy.
    """
    main = sys.modules["__main__"]
    if main is sys.modules.get("__mp_main__"):
        for value in list(vars(main).values()):
            if type(value) is FunctionType and value.__module__ == "__mp_main__":
                return value.__globals__
    return vars(main)


class _Pickler(pickling.Pickler):
    """The functions of ``__main__`` share one dict of globals, which becomes the module's.

    Attributes
    ----------
    known : dict
        The variables of ``__main__``.
    used : set of str
        Those that the functions use: these go with them.
    others : collection of str, or None
        From then on functions are of those that nobody uses: of their variables these go along.
    """

    def __init__(self, file: Any, buffer_callback: Any = None) -> None:
        super().__init__(file, 5, buffer_callback)
        self.used: set[str] = set()
        self.others: Any = None
        self.known = known = _variables()
        self.globals_ref[id(known)] = _Globals((k, known[k]) for k in _ATTRIBUTES if k in known)

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(func)
        if func.__globals__ is self.known and reduced[0] is not pickling.dispatching:
            _, state = reduced[2]
            if self.others is None:
                self.used |= state["__globals__"].keys()
            else:
                state["_cloudpickle_submodules"] = []
                known = state["__globals__"]
                state["__globals__"] = {k: v for k, v in known.items() if k in self.others}
        return reduced


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, main: Main, buffers: Iterable[memoryview] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._main = main

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == _globals_of.__name__:
            return self._globals
        if module in MAINS:
            return pickling.attribute(self._main, name)
        return super().find_class(module, name)

    def _globals(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        vars(self._main).update(attributes)
        return vars(self._main)


class _Reader:
    """A file on what is in memory already: a large pickle is not copied as a whole."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._at = 0

    def read(self, n: int) -> memoryview:
        found = self._content[self._at : self._at + n]
        self._at += len(found)
        return found

    def readinto(self, place: Any) -> int:
        found = self.read(len(place))
        place[: len(found)] = found
        return len(found)

    def readline(self) -> bytes:
        rest = bytes(self._content[self._at : self._at + 2**16])
        line = rest[: rest.find(b"\n") + 1]
        self._at += len(line)
        return line


class _Globals(dict[str, Any]):
    """Stands for the variables of ``__main__`` on the way: there it is the module's own dict."""

    def __reduce__(self) -> Any:
        return _globals_of, (dict(self),)


def _globals_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Where no module is being opened: a dict by itself."""
    return attributes


# ----- what no function of the run uses


@dataclass(frozen=True)
class _Import:
    """A module, or something in one, that ``__main__`` has imported.

    `needed`: something of ``__main__`` that goes along uses it, or an annotation names it.
    """

    module: str
    name: str
    needed: bool

    def load(self) -> Any:
        module = importlib.import_module(self.module)
        return pickling.attribute(module, self.name) if self.name else module

    def put(self, main: Main, name: str) -> None:
        main.later[name] = self
        if self.module in sys.modules or (self.needed and self.name):
            with suppress(Exception):
                vars(main)[name] = self.load()
        elif self.needed:
            vars(main)[name] = _LazyModule(self.module)


class _LazyModule(ModuleType):
    """Is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self.__name__)
        if not hasattr(module, name):
            return importlib.import_module(f"{self.__name__}.{name}")
        return getattr(module, name)


class _Rest:
    """The rest of ``__main__`` that can go: imports, functions and classes, and data."""

    def __init__(self, known: Mapping[str, Any], used: set[str]) -> None:
        self.code: dict[str, Any] = {}
        self.imports: dict[str, _Import] = {}
        self._data: dict[str, Any] = {}
        places: dict[str, tuple[str, str]] = {}
        wanted: set[str] = set()
        for name, value in list(known.items()):
            if not (name[:2] == "__" == name[-2:]):
                with suppress(Exception):  # what cannot even be looked at stays here
                    self._sort(name, value, used, places, wanted)
        self.imports = {n: _Import(*place, needed=n in wanted) for n, place in places.items()}

    def _sort(
        self,
        name: str,
        value: Any,
        used: set[str],
        places: dict[str, tuple[str, str]],
        wanted: set[str],
    ) -> None:
        place = _place(value)
        is_code = issubclass(type(value), (FunctionType, type))
        if place is not None:
            places[name] = place
        elif is_code or name in used:
            self.code[name] = value
            wanted.update(_words(value) if is_code else ())
        else:
            self._data[name] = value

    def small_data(self) -> Iterator[tuple[str, bytes]]:
        """The variables that are data, pickled, the smallest first."""
        pickled = {name: _small_pickle(value) for name, value in self._data.items()}
        room = OTHERS_BYTES
        for name, value in sorted(pickled.items(), key=lambda item: len(item[1] or b"")):
            room -= len(value or b"")
            if value is not None and room >= 0:
                yield name, value


def _place(value: Any) -> tuple[str, str] | None:
    """Module and name of what can be imported."""
    kind = type(value)
    if issubclass(kind, ModuleType):
        name = value.__name__
        return (name, "") if sys.modules.get(name) is value and name not in MAINS else None
    if issubclass(kind, (FunctionType, BuiltinFunctionType, type)):
        module, name = value.__module__, value.__qualname__
        if module not in (None, *MAINS) and pickling.named(module, name) is value:
            return module, name
    return None


def _words(code: Any) -> Iterator[str]:
    """The names that a function, or a class of ``__main__``, uses or has in its annotations."""
    if issubclass(type(code), FunctionType):
        yield from _extract_code_globals(code.__code__)
        yield from _annotated(code.__annotations__)
    elif code.__module__ in MAINS:
        yield from _annotated(vars(code).get("__annotations__"))
        for method in vars(code).values():
            if type(method) is FunctionType:
                yield from _words(method)


def _annotated(annotations: Any) -> Iterator[str]:
    for text in (annotations or {}).values():
        if isinstance(text, str):
            yield from _WORD.findall(text)


def _small_pickle(value: Any) -> bytes | None:
    file = _Small()
    try:
        _DataPickler(file).dump(value)
    except Exception:
        return None
    return b"".join(file.parts)


class _DataPickler(_Pickler):
    """For data; functions and classes of ``__main__`` in it go by the names that they have now."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.others = ()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if issubclass(kind, (FunctionType, type)) and obj.__module__ in MAINS:
            if pickling.named(obj.__module__, obj.__qualname__) is obj:
                return obj.__qualname__
        if kind.__module__.partition(".")[0] not in _DATA or _copies_itself(kind):
            raise pickle.PicklingError(f"{kind.__name__} is not plain data")
        if sys.getsizeof(obj) > SMALL_BYTES:  # before anybody copies it
            raise pickle.PicklingError("it is large")
        return super().reducer_override(obj)


def _copies_itself(kind: type) -> bool:
    """Whether a class of ``__main__`` says itself how: that may do anything."""
    own = [vars(base) for base in kind.__mro__ if base.__module__ in MAINS]
    return not is_dataclass(kind) and any(name in base for base in own for name in _COPYING)


class _Small:
    """A file with little room."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._room = SMALL_BYTES

    def write(self, data: Any) -> int:
        n_bytes = memoryview(data).nbytes
        self._room -= n_bytes
        if self._room < 0:
            raise pickle.PicklingError("it is large")
        self.parts.append(bytes(data))
        return n_bytes


class _Counter:
    """A file of which only the size is wanted."""

    size = 0

    def write(self, data: Any) -> int:
        n_bytes = memoryview(data).nbytes
        self.size += n_bytes
        return n_bytes


def _dumped(pickler: _Pickler, file: io.BytesIO, others: dict[str, Any]) -> Iterator[str]:
    """Dump them all together, or else each one that can be; the names of those that are there."""
    if not others:
        return
    position, memo = file.tell(), pickler.memo.copy()
    try:
        pickler.dump(others)
    except Exception:  # it must leave nothing that later ones refer to
        file.seek(position)
        file.truncate()
        pickler.memo = memo
        if len(others) > 1:
            for name, value in others.items():
                yield from _dumped(pickler, file, {name: value})
    else:
        yield from others


# ----- processes that a function starts by itself

_SCRIPT = """\
from at_once_dask.user_code import main_module

globals().update(main_module.variables({path!r}))
"""


def _with_main(main: Main, prepare: Any) -> Callable[[str], dict[str, Any]]:
    """Prepare a child that is not forked so that it gets `main` for its ``__main__``."""

    def with_main(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare(name)
        if sys.modules["__main__"] is main:
            data.pop("init_main_from_name", None)
            data["init_main_from_path"] = _script_for_children(main)
        return data

    return with_main


def _script_for_children(main: Main) -> str:
    path = os.path.join(main.folder, "main.pickle")
    script = os.path.join(main.folder, "main.py")
    if not os.path.exists(script):
        os.makedirs(main.folder, exist_ok=True)
        with open(path, "wb") as file:
            file.write(main.pickled or pickled(()).stream)
        with open(f"{script}.new", "w", encoding="utf-8") as text:
            text.write(_SCRIPT.format(path=path))
        os.replace(f"{script}.new", script)
    return script


def variables(path: str) -> dict[str, Any]:
    """The variables of a module that was pickled."""
    main = Main()
    with open(path, "rb") as file:
        main.fill(file.read())
    return vars(main)
