"""What an input is called: like its repr, bounded, and never a reason for anything to break."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_once_dask.protocol.failure import WHERE_LIMIT, Failure, from_exception
from at_once_dask.user_code.text import NAME_LIMIT, safe_repr

Pair = collections.namedtuple("Pair", "one two")


class Named(NamedTuple):
    one: object
    two: object = 2


@dataclasses.dataclass(frozen=True)
class Data:
    one: object
    two: object = dataclasses.field(default=2, repr=False)


class Row(list[Any]):
    """A container without a repr of its own."""


class Ids(frozenset[Any]):
    pass


class Tape(collections.deque[Any]):
    pass


class Own(dict[Any, Any]):
    def __repr__(self) -> str:
        return "my own"


class NoLength(str):
    def __len__(self) -> int:
        raise RuntimeError("no length")


class NoSlice(bytes):
    def __getitem__(self, where: Any) -> Any:
        raise RuntimeError("no slice")


class NoClass:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class NoItems(list[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("no items")


class NoName(type):
    @property
    def __name__(cls) -> Any:  # type: ignore[override]
        raise RuntimeError("no name")


class Nameless(metaclass=NoName):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


plain = st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.floats()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(plain, inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Data, inner)
        | st.builds(Named, inner)
        | st.builds(Row, st.lists(inner, max_size=3))
        | st.builds(Tape, st.lists(inner, max_size=3), st.none() | st.just(5))
    ),
    max_leaves=5,
)


@given(nested)
def test_what_is_small_is_called_by_its_repr(value: Any) -> None:
    assert safe_repr(value, 10_000) == repr(value) or "..." in safe_repr(value, 10_000)


@pytest.mark.parametrize(
    "value",
    [
        set(),
        frozenset(),
        {1, 2},
        Ids([1]),
        Ids(),
        collections.deque([1], 3),
        collections.defaultdict(list, {1: [2]}),
        collections.OrderedDict(),
        collections.Counter("aab"),
        array.array("i", [1, 2]),
        bytearray(b"x"),
        Own(a=1),
        datetime.date(2000, 1, 1),
        Pair,
        Data,
        NoLength("short"),
    ],
    ids=repr,
)
def test_kinds_of_inputs(value: object) -> None:
    assert safe_repr(value) == repr(value)


def test_an_ordered_dict() -> None:
    assert safe_repr(collections.OrderedDict(a=1)) == "OrderedDict({'a': 1})"


LARGE: dict[str, Callable[[int], object]] = {
    "str": lambda n: "x" * n,
    "bytes": lambda n: b"x" * n,
    "bytearray": bytearray,
    "array": lambda n: array.array("d", bytes(8 * n)),
    "list": lambda n: [None] * n,
    "tuple": lambda n: (None,) * n,
    "dict": lambda n: dict.fromkeys(range(n)),
    "ordered dict": lambda n: collections.OrderedDict.fromkeys(range(n)),
    "default dict": lambda n: collections.defaultdict(int, dict.fromkeys(range(n), 0)),
    "set": lambda n: set(range(n)),
    "deque": lambda n: collections.deque([None] * n),
    "namedtuple": lambda n: Pair("x" * n, [None] * n),
    "dataclass": lambda n: Data({"key": ["x" * n] * 50}),
    "own class": lambda n: Row([None] * n),
}


@pytest.mark.parametrize("kind", LARGE)
def test_what_is_huge_costs_little(kind: str) -> None:
    value = LARGE[kind](1_000_000)
    tracemalloc.start()
    try:
        text = safe_repr(value)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(text) == 200
    assert text.endswith("…")
    assert most < 100_000  # bytes


def test_deep_ones_end_somewhere() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    assert safe_repr(loop).startswith("[[[[[[[...], [...]], [[...]")


ODD: dict[str, Callable[[], object]] = {
    "no length": lambda: NoLength("x" * 1_000),
    "no slice": lambda: NoSlice(b"x" * 1_000),
    "no class": NoClass,
    "no items": lambda: NoItems([1]),
    "no name": Nameless,
}


@pytest.mark.parametrize("name", ODD)
def test_nothing_is_raised(name: str) -> None:
    value = ODD[name]()
    assert 0 < len(safe_repr(value)) <= 200
    assert safe_repr([value, 1]).startswith("[")


def test_a_broken_element_is_named_in_its_place() -> None:
    text = "[1, <Nameless object whose repr raised RuntimeError>, 2]"
    assert safe_repr([1, Nameless(), 2]) == text


def test_names_are_bounded() -> None:
    """They come from generated code, and stand in every list of causes."""
    failure = raised_in("f" * 10_000, type("E" * 10_000, (Exception,), {}))
    assert len(failure.error) == NAME_LIMIT == 200
    assert len(failure.where) == WHERE_LIMIT == 500
    assert failure.where.startswith("…")
    assert failure.where.endswith("fff")


def raised_in(name: str, kind: type[Exception]) -> Failure:
    names: dict[str, Any] = {"kind": kind}
    exec(compile(f"def {name}(): raise kind", "cell.py", "exec"), names)
    try:
        names[name]()
    except Exception as error:
        return from_exception(0, "process", error)
    raise AssertionError(sys.version)
