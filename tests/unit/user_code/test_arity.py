"""How many arguments a function takes: what is said is what a call does, or nothing is said."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from at_once_dask.user_code import arity


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def injecting(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return injecting


def posing(function: Any) -> Any:
    """As decorators that say that they take what they do not."""
    function.__signature__ = 3
    return function


def query(session: Any, inp: Any) -> None:
    pass


def scaled(inp: int, scale: int = 1, *more: int) -> None:
    pass


def named(inp: int, *, size: int) -> None:
    pass


class Job:
    def __init__(self, first: int = 1, second: int = 2) -> None:
        pass

    def __call__(self, inp: int) -> None:
        pass

    def method(self, inp: int) -> None:
        pass

    @classmethod
    def of_class(cls, inp: int) -> None:
        pass

    @staticmethod
    def static(inp: int) -> None:
        pass

    @functools.lru_cache  # noqa: B019  it holds one job
    def cached(self, inp: int) -> None:
        pass


class OfStatic:
    __call__ = staticmethod(scaled)


CERTAIN: dict[str, Callable[..., Any]] = {
    "function": query,
    "defaults and more": scaled,
    "named": named,
    "lambda": lambda: None,
    "cached": functools.lru_cache(query),
    "partial": functools.partial(query, "session"),
    "partial of a partial": functools.partial(functools.partial(named), size=3),
    "partial, by name": functools.partial(query, inp=1),
    "partial, in the way": functools.partial(query, session=1),
    "partial of what is cached": functools.partial(functools.cache(query), "session"),
    "partial of enough": functools.partial(query, 1, 2),
    "method": Job().method,
    "method of no object": Job.method,
    "class method": Job.of_class,
    "static method": Job.static,
    "cached method": functools.partial(Job.cached, Job()),
    "object": Job(),
    "builtin": operator.add,
    "method of a builtin": str.upper,
}
UNCERTAIN: dict[str, Callable[..., Any]] = {
    "injecting": with_session(query),
    "cached, injecting": functools.cache(with_session(query)),
    "class": Job,
    "ufunc": np.add,
    "NumPy": np.sum,
    "max": max,
    "hypot": math.hypot,
    "getter": operator.itemgetter(0),
    "posing": posing(lambda inp: None),
    "static call": OfStatic(),
    "vectorized": np.vectorize(query),
}


@pytest.mark.parametrize("n", range(4))
@pytest.mark.parametrize("name", CERTAIN)
def test_what_fits_can_be_called(name: str, n: int) -> None:
    function, takes = CERTAIN[name], arity.of(CERTAIN[name])
    assert takes is not None
    assert takes.fits(n) == can_be_called(function, n)


def can_be_called(function: Callable[..., Any], n: int) -> bool:
    try:
        function(*["text"] * n)
    except TypeError as error:
        if "argument" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("name", UNCERTAIN)
def test_where_only_a_call_would_tell_nothing_is_said_against_it(name: str) -> None:
    takes = arity.of(UNCERTAIN[name])
    assert takes is None or all(map(takes.fits, range(4)))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (query, "(session, inp)"),
        (functools.partial(query, "session"), "(inp)"),
        (scaled, "(inp, scale=1, *more)"),
        (named, "(inp, *, size)"),
        (Job().method, "(inp)"),
        (operator.add, "(a, b)"),
        (lambda: None, "nothing"),
    ],
)
def test_what_it_takes_in_words(function: Callable[..., Any], text: str) -> None:
    assert str(arity.of(function)) == text
