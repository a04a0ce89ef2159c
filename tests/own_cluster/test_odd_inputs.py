"""Inputs and keys whose repr does not work break no run, and cost none."""

from __future__ import annotations

from typing import Any

from distributed import Client

import at_once_dask


class NoLength(str):
    def __len__(self) -> int:
        raise RuntimeError("no length")


class NoClass:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class NoName(type):
    @property
    def __name__(cls) -> Any:  # type: ignore[override]
        raise RuntimeError("no name")


class Nameless(metaclass=NoName):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_odd_inputs_break_no_run(cluster: Client) -> None:
    inputs = [NoLength("x" * 1_000), NoClass(), Nameless(), 1]
    report: Any = at_once_dask.run(inputs, None, fail, on_error="return", progress=False)
    assert report.n_failed == 4
    assert list(report.failures["error"].iloc[[0, 3]]) == ["ValueError"] * 2


class Shown:
    """A key that counts, in the driver, who wants to know its repr."""

    n = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shown)

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        Shown.n += 1
        return "shown"


def test_nobody_asks_for_the_reprs_of_keys(cluster: Client) -> None:
    """Only of the map pass the slowest are told."""
    Shown.n = 0
    process = lambda inp: {Shown(): inp}  # noqa: E731
    sums = at_once_dask.run(range(5), None, process, reduce_fn=sum, progress=False)
    assert sums[Shown()] == 10
    assert Shown.n == 0


def fail(inp: object) -> None:
    raise ValueError("bad")
