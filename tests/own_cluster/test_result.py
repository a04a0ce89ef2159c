"""Whatever is done already, fails, or is cut how: `run()` gives what plain Python gives."""

from __future__ import annotations

import operator
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from any_list import KEYS, Inp, check, inputs_strategy, pairs_of
from distributed import Client
from helpers import oracle, same, statuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inline_backend import InlineBackend

import at_once_dask
from at_once_dask import call
from at_once_dask.driver import partition_size
from at_once_dask.driver.backend import Backend


@contextmanager
def inline(monkeypatch: pytest.MonkeyPatch, threads: int, first: int) -> Iterator[None]:
    """Runs go through this process, on Dask's synchronous scheduler, with partitions so large."""

    @contextmanager
    def backend(this: call.Call) -> Iterator[Backend]:
        with InlineBackend(this.run.job, this.run.run_log, threads) as found:
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(call, "_backend", backend)
        patch.setattr(partition_size, "FIRST", first)
        patch.setattr(partition_size, "GROWTH", 1)
        yield


def verify(inputs: list[Inp], **run_kwargs: Any) -> None:
    """One map-reduce and its report against the oracle."""
    expected = oracle(inputs, pairs_of, list)
    result = at_once_dask.run(
        inputs, check, pairs_of, reduce_fn=list, on_error="return", progress=False, **run_kwargs
    )
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


@given(inputs=inputs_strategy, first=st.integers(1, 9))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_list_on_a_cluster(
    cluster: Client, monkeypatch: pytest.MonkeyPatch, inputs: list[Inp], first: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(partition_size, "FIRST", first)
        patch.setattr(partition_size, "GROWTH", 1)
        verify(inputs)


@pytest.mark.slow
@given(inputs=inputs_strategy, first=st.integers(1, 9))
@settings(
    deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_list_on_a_cluster_deep(
    cluster: Client, monkeypatch: pytest.MonkeyPatch, inputs: list[Inp], first: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(partition_size, "FIRST", first)
        patch.setattr(partition_size, "GROWTH", 1)
        verify(inputs)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_any_number_of_workers(n_workers: int) -> None:
    at_once_dask.close()
    at_once_dask.start(n_workers, dashboard_address="127.0.0.1:0")
    try:
        rng = random.Random(n_workers)
        verify(
            [
                Inp(i % 10, tuple(rng.choices(KEYS, k=3)), rng.random() < 0.3, rng.random() < 0.1)
                for i in range(2000)
            ]
        )
    finally:
        at_once_dask.close()


def test_every_kind_of_key_from_different_processes(cluster: Client) -> None:
    inputs = [Inp(i, (KEYS[i % len(KEYS)],), False, False) for i in range(20 * len(KEYS))]
    verify(inputs)


@pytest.mark.parametrize("where", ["inline", "cluster"])
def test_combine_fn_equals_reduce_fn(
    cluster: Client, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A combiner that does not commute: the order of the list is kept."""

    def work(n: int) -> list[tuple[str, tuple[int, ...]]]:
        return [("even" if n % 2 == 0 else "odd", (n,)), ("all", (n,))]

    expected = oracle(range(3000), work, lambda values: sum(values, ()))

    def reduced() -> dict[Any, Any]:
        return at_once_dask.run(range(3000), None, work, combine_fn=operator.add, progress=False)

    if where == "inline":
        with inline(monkeypatch, 2, 7):
            assert same(reduced(), expected)
    else:
        assert same(reduced(), expected)


def test_a_lone_value_is_not_passed_to_the_combiner(cluster: Client) -> None:
    def never(a: object, b: object) -> None:
        raise AssertionError("called")

    result: Any = at_once_dask.run(
        range(5), None, lambda n: {n: f"v{n}"}, combine_fn=never, progress=False
    )
    assert result == {n: f"v{n}" for n in range(5)}


class Files:
    """A map-reduce over files: each input's value is the number in its file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, n: int) -> Path:
        return self.folder / f"{n}.txt"

    def check(self, n: int) -> list[Any]:
        if not self.path(n).exists():
            return [False, None]
        return [True, {n % 3: int(self.path(n).read_text())}]

    def process_and_return(self, n: int) -> dict[int, int]:
        with at_once_dask.atomic_write(self.path(n)) as file:
            file.write(str(n * n))
        return {n % 3: n * n}

    def process_and_save(self, n: int) -> None:
        self.process_and_return(n)


N_RESUMED = 600  # more than two workers have done when they hear of a failure


@pytest.mark.parametrize("reading", ["process_and_return", "process_and_save"])
def test_a_resumed_run_equals_an_undisturbed_one(
    cluster: Client, folder: Path, reading: str
) -> None:
    """Done inputs count; both readings of a map-reduce `process_inp`."""
    files = Files(folder)
    process: Callable[[int], Any] = getattr(files, reading)
    expected = oracle(range(N_RESUMED), lambda n: [(n % 3, n * n)], list)

    def stops(n: int) -> Any:
        if n == 31:
            raise RuntimeError("half way")
        return process(n)

    with pytest.raises(at_once_dask.RunStopped) as stopped:
        at_once_dask.run(
            range(N_RESUMED), files.check, stops, reduce_fn=list, on_error="stop", progress=False
        )
    report = stopped.value.report
    assert report.n_failed == 1
    done = len(list(folder.glob("*.txt")))
    assert done == report.n_processed

    resumed = at_once_dask.run(
        range(N_RESUMED), files.check, process, reduce_fn=list, progress=False
    )
    assert same(resumed, expected)
    assert (resumed.report.n_skipped, resumed.report.n_processed) == (done, N_RESUMED - done)

    again = at_once_dask.run(range(N_RESUMED), files.check, process, reduce_fn=list, progress=False)
    assert same(again, expected)
    assert again.report.n_skipped == N_RESUMED


def test_partial_holds_what_succeeded(cluster: Client) -> None:
    def work(n: int) -> dict[int, int]:
        if n % 10 == 7:
            raise ValueError(n)
        return {n % 4: n}

    with pytest.raises(at_once_dask.RunFailed) as failed:
        at_once_dask.run(range(100), None, work, reduce_fn=list, progress=False)
    expected = oracle(range(100), lambda n: work(n).items(), list)
    assert failed.value.partial is not None
    assert same(failed.value.partial, expected)


@pytest.mark.parametrize("seed", [1, "a", None])
def test_do_shuffle(cluster: Client, seed: Any) -> None:
    """The order of use is `random.Random(random_state).shuffle`'s; the list stays as it is."""
    inputs = list(range(500))
    result = at_once_dask.run(
        inputs, None, lambda n: {"all": n}, True, list, progress=False, random_state=seed
    )
    used = list(range(500))
    random.Random(seed).shuffle(used)
    assert inputs == list(range(500))
    if seed is None:
        assert sorted(result["all"]) == inputs != result["all"]
    else:
        assert result["all"] == used


def test_positions_under_do_shuffle_are_those_of_the_list(cluster: Client) -> None:
    def work(n: int) -> None:
        at_once_dask.log(f"at {n}")
        if n % 50 == 3:
            raise ValueError(n)

    report = at_once_dask.run(
        range(0, 1000, 2), None, lambda n: work(n // 2), True, on_error="return", progress=False
    )
    assert list(report.failures.index) == list(range(3, 500, 50))
    assert list(report.failures["input"]) == list(range(6, 1000, 100))
    assert [i for i, s in enumerate(statuses(report)) if s == "failed"] == list(range(3, 500, 50))
    log = at_once_dask.read_log(run=report.run)
    said = log[log["level"] == "INFO"]
    assert all(said["msg"] == "at " + said["index"].astype(str))
    assert sorted(log[log["level"] == "ERROR"]["index"]) == list(range(3, 500, 50))


def test_a_combiner_that_adds_to_its_first_argument(cluster: Client) -> None:
    """The same object is the value of two keys: what is added to one must not count for both."""

    def work(n: int) -> dict[str, Counter[str]]:
        count = Counter(w=1)
        return {"all": count, "odd" if n % 2 else "even": count}

    def add(a: Counter[str], b: Counter[str]) -> Counter[str]:
        a.update(b)
        return a

    result: Any = at_once_dask.run(range(1000), None, work, combine_fn=add, progress=False)
    assert result == {"all": {"w": 1000}, "even": {"w": 500}, "odd": {"w": 500}}
