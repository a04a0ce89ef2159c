"""The script's ``__main__`` in the workers: what speaks of its functions and classes by name works.

Functions of a script or a notebook cross by value. But whatever then looks them up as
``__main__.X`` (plain ``pickle``, a ``multiprocessing.Pool`` in the function, annotations,
``import __main__``) would find an empty module there. So a run brings a module of its own, which is
the worker's ``__main__`` while it lasts. The functions use it as their globals, and the script's
other functions, classes and small variables are in it, too. One module a run: what an earlier run
called the same is not seen.
"""

from __future__ import annotations

import importlib
import io
import mmap
import multiprocessing.spawn
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from at_once_dask import pickles

SMALL_BYTES = 2**18  # of a variable that no function of the run uses, to go along all the same
KEPT_BYTES = 2**24  # of a pickled module, to be kept for children

# What such a variable may be made of: data, and nothing that does something when it is copied.
_DATA = frozenset(
    (
        *("__main__", "at_once_dask", "abc", "argparse", "array", "builtins", "collections"),
        *("dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "ipaddress"),
        *("numpy", "operator", "pathlib", "re", "types", "typing", "uuid", "zoneinfo"),
    )
)
_ATTRIBUTES = ("__name__", "__file__", "__package__", "__path__", "__doc__")
_WORD = re.compile(r"[^\W\d]\w*")


class Main(ModuleType):
    """A run's ``__main__`` in a worker.

    What the script imports and the functions do not use is imported when somebody asks for it.
    """

    __slots__ = ("folder", "later", "pickled")

    def __init__(self, folder: str = "") -> None:
        super().__init__("__main__")
        self.folder = folder  # for what processes that a function starts must know
        self.later: dict[str, _Import] = {}
        self.pickled = b""  # what it was filled with

    def fill(self, pickled: bytes | mmap.mmap) -> Any:
        """The functions that `pickled` was given; this module is what they know as ``__main__``."""
        self.pickled = bytes(pickled) if len(pickled) <= KEPT_BYTES else b""
        file = io.BytesIO(pickled) if isinstance(pickled, bytes) else pickled
        unpickler = _Unpickler(file, self)
        functions = unpickler.load()
        # What the functions do not use must not keep them from running.
        with suppress(Exception):
            while (others := unpickler.load()) is not None:
                for name, value in others.items():
                    if isinstance(value, _Import):
                        value.put(self, name)
                    else:
                        vars(self).setdefault(name, value)
        return functions

    def __getattr__(self, name: str) -> Any:
        if name not in self.later:
            raise AttributeError(
                f"module '__main__' has no attribute {name!r} in a worker: of the script's"
                " variables those are here that the functions use, and small data; use it in"
                " process_inp, or pass it in the input"
            )
        return self.later[name].load()

    def take_place(self) -> None:
        """From now on it is this process's ``__main__``; that of children, too."""
        if sys.modules["__main__"] is not self:
            sys.modules["__main__"] = self
            pickles.share(vars(self))
            multiprocessing.spawn.get_preparation_data = _with_main

    def leave(self) -> None:
        """The process is as it was."""
        if sys.modules["__main__"] is self:
            sys.modules["__main__"] = _before
            pickles.share(())
            multiprocessing.spawn.get_preparation_data = _get_preparation_data


_before = sys.modules["__main__"]


def pickled(functions: object) -> tuple[bytes, frozenset[str], frozenset[str]]:
    """`functions` for the way to the workers; the names of ``__main__`` they use, and the others.

    Raises whatever pickling the functions raises; of the other names, what cannot go stays here.
    """
    main = sys.modules["__main__"]
    file = io.BytesIO()
    pickler = _Pickler(file, main)
    pickler.dump(functions)
    others = dict(_others(main, pickler.used))
    pickler.others = others.keys()
    sent = [*_dumped(pickler, file, others)]
    pickler.dump(None)
    return file.getvalue(), frozenset(pickler.used), frozenset(sent)


def pickled_alone(value: object) -> bytes:
    """`value` with all that it uses of ``__main__``."""
    file = io.BytesIO()
    _Pickler(file, sys.modules["__main__"]).dump(value)
    return file.getvalue()


class _Pickler(pickles.Pickler):
    """The functions of ``__main__`` share one dict of globals, which becomes the module's.

    Attributes
    ----------
    used : set of str
        The variables that the functions use: these go with them.
    others : collection of str, or None
        From then on functions are of those that nobody uses: of their variables these go along.
    """

    def __init__(self, file: Any, main: ModuleType) -> None:
        super().__init__(file, protocol=5)
        self.used: set[str] = set()
        self.others: Any = None
        self._known = known = vars(main)
        self.globals_ref[id(known)] = _Globals((k, known[k]) for k in _ATTRIBUTES if k in known)

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(func)
        if func.__globals__ is self._known and reduced[0] is not pickles.dispatching:
            _, state = reduced[2]
            if self.others is None:
                self.used |= state["__globals__"].keys()
            else:
                state["_cloudpickle_submodules"] = []
                wanted = {k: v for k, v in state["__globals__"].items() if k in self.others}
                state["__globals__"] = {k: v for k, v in wanted.items() if _place(v) is None}
        return reduced


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, main: Main) -> None:
        super().__init__(file)
        self._main = main

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == _globals_of.__name__:
            return self._globals
        return super().find_class(module, name)

    def _globals(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        vars(self._main).update(attributes)
        return vars(self._main)


class _Globals(dict[str, Any]):
    """Stands for the variables of ``__main__`` on the way: there it is the module's own dict."""

    def __reduce__(self) -> Any:
        return _globals_of, (dict(self),)


def _globals_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Where no module is being opened: a dict by itself."""
    return attributes


@dataclass(frozen=True)
class _Import:
    """A module, or something in one, that ``__main__`` has imported.

    `needed`: an annotation names it, and whoever looks that up finds what is there, and no more.
    """

    module: str
    name: str
    needed: bool

    def load(self) -> Any:
        module = importlib.import_module(self.module)
        return pickles.named(self.module, self.name) if self.name else module

    def put(self, main: Main, name: str) -> None:
        main.later[name] = self
        if self.needed or self.module in sys.modules:
            with suppress(Exception):
                vars(main).setdefault(name, self.load())


def _others(main: ModuleType, used: set[str]) -> Iterator[tuple[str, Any]]:
    """What else is in ``__main__``, and can go."""
    variables = [(k, v) for k, v in vars(main).items() if not (k[:2] == "__" == k[-2:])]
    annotated = {word for _, value in variables for word in _annotations(value)}
    for name, value in variables:
        place = _place(value)
        if place is not None:
            yield name, _Import(*place, needed=name in annotated)
        elif isinstance(value, (FunctionType, type)) or name in used or _is_small_data(value, main):
            yield name, value


def _annotations(annotated: Any) -> Iterator[str]:
    """The words in annotations that are text, of a function, or a class of ``__main__``."""
    if isinstance(annotated, type) and annotated.__module__ == "__main__":
        yield from _words(vars(annotated).get("__annotations__"))
        for method in vars(annotated).values():
            if isinstance(method, FunctionType):
                yield from _words(method.__annotations__)
    elif isinstance(annotated, FunctionType):
        yield from _words(annotated.__annotations__)


def _words(annotations: Any) -> Iterator[str]:
    for text in (annotations or {}).values():
        if isinstance(text, str):
            yield from _WORD.findall(text)


def _place(value: Any) -> tuple[str, str] | None:
    """Module and name of what can be imported."""
    if isinstance(value, ModuleType):
        is_known = sys.modules.get(value.__name__) is value and value.__name__ != "__main__"
        return (value.__name__, "") if is_known else None
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        module, name = value.__module__, value.__qualname__
        if module not in (None, "__main__") and pickles.named(module, name) is value:
            return module, name
    return None


def _is_small_data(value: Any, main: ModuleType) -> bool:
    if type(value) in (int, float, bool, complex, type(None)):
        return True
    try:
        _DataPickler(main).dump(value)
    except Exception:
        return False
    return True


class _DataPickler(_Pickler):
    """Only looks whether something is data, and small."""

    def __init__(self, main: ModuleType) -> None:
        super().__init__(_Small(), main)
        self.others = ()

    def reducer_override(self, obj: Any) -> Any:
        if type(obj).__module__.partition(".")[0] not in _DATA:
            raise pickle.PicklingError(f"{type(obj).__name__} is not plain data")
        if getattr(obj, "nbytes", 0) > SMALL_BYTES:  # before anybody copies it
            raise pickle.PicklingError("it is large")
        return super().reducer_override(obj)


class _Small:
    """A file with little room."""

    def __init__(self) -> None:
        self._room = SMALL_BYTES

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._room -= size
        if self._room < 0:
            raise pickle.PicklingError("it is large")
        return size


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
from at_once_dask import main_module

globals().update(main_module.variables({path!r}))
"""


_get_preparation_data = multiprocessing.spawn.get_preparation_data


def _with_main(name: str) -> dict[str, Any]:
    """What `multiprocessing` tells a child that it does not fork: its ``__main__`` is this one."""
    data = _get_preparation_data(name)
    main = sys.modules["__main__"]
    if isinstance(main, Main):
        data.pop("init_main_from_name", None)
        data["init_main_from_path"] = _script_for_children(main)
    return data


def _script_for_children(main: Main) -> str:
    path = os.path.join(main.folder, "main.pickle")
    script = os.path.join(main.folder, "main.py")
    if not os.path.exists(script):
        os.makedirs(main.folder, exist_ok=True)
        with open(path, "wb") as file:
            file.write(main.pickled or pickled(())[0])
        with open(f"{script}.new", "w", encoding="utf-8") as text:
            text.write(_SCRIPT.format(path=path))
        os.replace(f"{script}.new", script)
    return script


def variables(path: str) -> dict[str, Any]:
    """What a module that was pickled has."""
    main = Main()
    with open(path, "rb") as file:
        main.fill(file.read())
    return vars(main)
