"""Lists of inputs with keys of all kinds, for hypothesis; each says what is to become of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Point:
    x: int
    y: str


KEYS: list[Any] = [
    None, 0, 1, 1.0, True, -1, 2**70, 0.5, Fraction(1, 2), 1 + 0j, "a", "1", "", b"a", (), (1, "a"),
    (1.0, "a"), (True, ("a", None)), frozenset({1, 2}), Colour.RED, Colour.BLUE, Level.LOW, Point,
    Colour, int, Point(1, "a"), Point(1, "b"), range(3),
]  # fmt: skip


@dataclass(frozen=True)
class Inp:
    """An input that says itself what is to become of it."""

    number: int
    keys: tuple[Any, ...]
    done: bool
    fails: bool


def pairs_of(inp: Inp) -> list[tuple[Any, Any]]:
    if inp.fails:
        raise ValueError(f"input {inp.number} fails")
    return [(key, (inp.number, place)) for place, key in enumerate(inp.keys)]


def check(inp: Inp) -> list[Any]:
    return [inp.done, pairs_of(inp) if inp.done else None]


inputs_strategy = st.lists(
    st.builds(
        Inp,
        number=st.integers(0, 9),
        keys=st.lists(st.sampled_from(KEYS), max_size=3).map(tuple),
        done=st.booleans(),
        fails=st.booleans(),
    ),
    max_size=40,
)
