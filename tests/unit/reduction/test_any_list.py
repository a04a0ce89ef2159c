"""Whatever is done already, fails, or is cut how: a run gives what plain Python gives."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from any_list import Inp, check, inputs_strategy, pairs_of
from helpers import oracle, same, statuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inline_backend import InlineBackend
from inline_run import MakeBackend, run_inline

from at_once_dask.driver import partition_size


@contextmanager
def partitions_of(monkeypatch: pytest.MonkeyPatch, first: int) -> Iterator[None]:
    """All partitions are so large."""
    with monkeypatch.context() as patch:
        patch.setattr(partition_size, "FIRST", first)
        patch.setattr(partition_size, "GROWTH", 1)
        yield


def on_threads(n: int) -> MakeBackend:
    return partial(InlineBackend, threads=n)


def verify(inputs: list[Inp], backend: MakeBackend) -> None:
    """One map-reduce and its report against the oracle."""
    expected = oracle(inputs, pairs_of, list)
    result = run_inline(inputs, check, pairs_of, reduce_fn=list, on_error="return", backend=backend)
    assert same(result, expected)
    report = result.report
    assert statuses(report) == [
        "failed" if inp.fails else "skipped" if inp.done else "processed" for inp in inputs
    ]
    counts = (report.n_skipped, report.n_processed, report.n_failed, report.n_left)
    assert sum(counts) == report.n_inputs == len(inputs)
    failures = report.failures
    assert list(failures.index) == [i for i, inp in enumerate(inputs) if inp.fails]
    assert list(failures["input"]) == [inp for inp in inputs if inp.fails]
    assert set(failures["stage"]) <= {"check", "process"}


@given(inputs=inputs_strategy, threads=st.integers(1, 4), first=st.integers(1, 9))
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_list_inline(
    monkeypatch: pytest.MonkeyPatch, inputs: list[Inp], threads: int, first: int
) -> None:
    with partitions_of(monkeypatch, first):
        verify(inputs, on_threads(threads))


def test_combine_fn_equals_reduce_fn_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A combiner that does not commute: the order of the list is kept."""

    def work(n: int) -> list[tuple[str, tuple[int, ...]]]:
        return [("even" if n % 2 == 0 else "odd", (n,)), ("all", (n,))]

    expected = oracle(range(3000), work, lambda values: sum(values, ()))
    with partitions_of(monkeypatch, 7):
        found = run_inline(range(3000), None, work, combine_fn=operator.add, backend=on_threads(2))
    assert same(found, expected)
