"""The list: odd inputs, lazy ones, their order, and that each is handled exactly once."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from helpers import poll_for, statuses

import at_once_dask
from at_once_dask.driver import inputs

NAN = float("nan")


class OddRepr:
    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class EqualToAll:
    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class EqualToNone:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


ODD: list[Any] = [
    None, NAN, [], [1, [2]], {}, {"a": []}, {1, 2}, (), "", b"", 0, False, 0.0, "x", "x", "x",
    "partition", ("partition", 0), "process-0", ("process", 1), "a/b/c.jpg", OddRepr(1),
    EqualToAll(1), EqualToAll(2), EqualToNone(), print, int, lambda: 3, Path("/"), "x" * 2**20,
    b"y" * 2**20, bytearray(2**20), slice(1), ..., NotImplemented, ValueError("an input"),
    StopIteration(3), range(10**12), object(),
]  # fmt: skip


def describe(inp: Any) -> str:
    return f"{type(inp).__name__} {len(inp) if hasattr(inp, '__len__') else ''}"


def test_odd_inputs(cluster: Client) -> None:
    result = at_once_dask.run(
        ODD, None, lambda inp: {"all": describe(inp)}, reduce_fn=list, progress=False
    )
    assert result["all"] == [describe(inp) for inp in ODD]


def test_equal_inputs_each_run(cluster: Client, folder: Path) -> None:
    result = at_once_dask.run(
        ["x"] * 1000, None, lambda inp: {inp: 1}, reduce_fn=sum, progress=False
    )
    assert result == {"x": 1000}


def test_inputs_named_like_keys_of_dask(cluster: Client) -> None:
    """A string equal to the key of a task must not become that task's result."""
    label = "named-like-a-task"
    future = cluster.submit(lambda: "replaced", key=label, pure=False)
    assert future.result() == "replaced"
    result = at_once_dask.run(
        [label] * 10, None, lambda inp: {inp: 1}, reduce_fn=sum, progress=False
    )
    assert result == {label: 10}


def test_inputs_of_a_megabyte_each(cluster: Client) -> None:
    inputs = [bytes([n]) * 2**20 for n in range(60)]
    result = at_once_dask.run(
        inputs, None, lambda inp: {"sizes": len(inp), inp[0]: 1}, reduce_fn=sum, progress=False
    )
    ones: dict[Any, int] = dict.fromkeys(range(60), 1)
    assert result == {"sizes": 60 * 2**20} | ones


def test_one_input_of_twenty_megabytes(cluster: Client) -> None:
    result = at_once_dask.run(
        [b"x" * 20 * 2**20], None, lambda inp: {"size": len(inp)}, reduce_fn=sum, progress=False
    )
    assert result == {"size": 20 * 2**20}


class Calls:
    """Writes each call of `check` and `process` to a file of its worker process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, what: str, n: int) -> None:
        with open(self.folder / f"calls-{os.getpid()}", "a") as file:
            file.write(f"{what} {n}\n")

    def check(self, n: int) -> list[Any]:
        self.note("check", n)
        return [n % 5 == 0, None]

    def process(self, n: int) -> None:
        self.note("process", n)
        if n % 7 == 3:
            raise ValueError(n)

    def by_worker(self) -> list[list[tuple[str, int]]]:
        logs = []
        for path in self.folder.glob("calls-*"):
            lines = [line.split() for line in path.read_text().splitlines()]
            logs.append([(what, int(n)) for what, n in lines])
        return logs


def test_check_comes_right_before_process(cluster: Client, folder: Path) -> None:
    """In the same worker, one input after the other, each exactly once."""
    calls = Calls(folder)
    at_once_dask.run(range(3000), calls.check, calls.process, on_error="return", progress=False)
    logs = calls.by_worker()
    assert len(logs) == 2
    for log in logs:
        checked = [n for what, n in log if what == "check"]
        expected = []
        for n in checked:
            expected.append(("check", n))
            if n % 5:
                expected.append(("process", n))
        assert log == expected
    counts = Counter(call for log in logs for call in log)
    assert set(counts.values()) == {1}
    assert {n for what, n in counts if what == "check"} == set(range(3000))
    assert {n for what, n in counts if what == "process"} == {n for n in range(3000) if n % 5}


def test_order_within_a_partition_is_that_of_the_list(cluster: Client, folder: Path) -> None:
    calls = Calls(folder)
    at_once_dask.run(range(1000), calls.check, calls.process, on_error="return", progress=False)
    for log in calls.by_worker():
        checked = [n for what, n in log if what == "check"]
        breaks = sum(b != a + 1 for a, b in itertools.pairwise(checked))
        assert breaks < 100  # runs of neighbours, not single inputs


def test_slow_inputs_do_not_hold_back_the_others(cluster: Client, folder: Path) -> None:
    """While one input waits for all others to be done, they are done: by the other worker."""
    n_inputs = 40

    def work(n: int) -> None:
        while n == 0 and len(list(folder.glob("done-*"))) < n_inputs - 1:
            os.sched_yield()
        (folder / f"done-{n}").touch()

    report = at_once_dask.run(range(n_inputs), None, work, progress=False)
    assert report.n_processed == n_inputs
    items = report.items
    assert items["worker"][0] != items["worker"][n_inputs - 1]


def test_an_endless_generator_is_drawn_lazily(cluster: Client) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        for n in itertools.count():
            drawn = n + 1
            yield n

    def work(n: int) -> None:
        if n == 100:
            raise ValueError("the first failure")

    with pytest.raises(at_once_dask.RunStopped) as stopped:
        at_once_dask.run(endless(), None, work, on_error="stop", progress=False)
    assert 100 < drawn < 10_000
    assert stopped.value.report.n_inputs == drawn


def test_a_generator_of_many(cluster: Client) -> None:
    result: Any = at_once_dask.run(
        (n for n in range(100_000)), None, lambda n: {n % 3: n}, combine_fn=max, progress=False
    )
    assert result == {0: 99_999, 1: 99_997, 2: 99_998}
    assert result.report.n_inputs == 100_000


@pytest.mark.parametrize("before", [0, 5, 3000])
def test_an_iterable_that_raises(cluster: Client, folder: Path, before: int) -> None:
    """What was drawn is finished, then its own exception is raised."""

    def broken() -> Iterator[int]:
        yield from range(before)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more") as raised:
        at_once_dask.run(broken(), None, lambda n: (folder / f"done-{n}").touch(), progress=False)
    assert len(list(folder.glob("done-*"))) == before
    report = raised.value.report  # type: ignore[attr-defined]
    assert (report.n_inputs, report.n_processed, report.n_left) == (before, before, 0)
    assert at_once_dask.last_report() is not None
    assert at_once_dask.last_report().run == report.run  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_the_list_raises_is_no_signal(
    cluster: Client, folder: Path, kind: type[BaseException], shuffled: bool
) -> None:
    """Whatever it is, what was drawn is finished."""

    class Broken:
        def __iter__(self) -> Iterator[int]:
            yield from range(20)
            raise kind("no more")

    with pytest.raises(kind, match="no more") as raised:
        at_once_dask.run(
            Broken(), None, lambda n: (folder / f"done-{n}").touch(), shuffled, progress=False
        )
    assert len(list(folder.glob("done-*"))) == 20
    report = raised.value.report  # type: ignore[attr-defined]
    assert (report.n_processed, report.n_left) == (20, 0)
    ending = f"Broken off: the list itself raised {kind.__name__}: no more."
    assert str(report).startswith(ending + "\n20 inputs in ")


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Has no place for a report, nor for another traceback."""

    text: str


@pytest.mark.parametrize("kind", ["frozen", "stored"])
def test_a_list_whose_exception_takes_no_report_along(
    cluster: Client, folder: Path, kind: str
) -> None:
    stored = at_once_dask.RunFailed(at_once_dask.run([], None, print), None)
    error = FrozenError("no more") if kind == "frozen" else stored

    def broken() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(type(error)) as raised:
        at_once_dask.run(broken(), None, lambda n: None, report_path="r.html", progress=False)
    assert raised.value is error
    assert f"the list itself raised {type(error).__name__}" in (folder / "r.html").read_text()
    told = at_once_dask.last_report()
    assert told is not None
    assert told.n_processed == 1


def test_an_exception_of_the_list_without_a_text(cluster: Client) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError

    with pytest.raises(OSError, match=r"^$") as raised:
        at_once_dask.run(broken(), None, lambda n: None, progress=False)
    first = str(raised.value.report).splitlines()[0]  # type: ignore[attr-defined]
    assert first == "Broken off: the list itself raised OSError."


def test_a_shuffled_iterable_that_raises(cluster: Client, folder: Path) -> None:
    def broken() -> Iterator[int]:
        yield from range(50)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        at_once_dask.run(
            broken(), None, lambda n: (folder / f"done-{n}").touch(), True, progress=False
        )
    assert len(list(folder.glob("done-*"))) == 50


def test_a_slow_generator_starves_nobody(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn is sent off without waiting for more, when drawing takes its time."""
    monkeypatch.setattr(inputs, "DRAW_SECONDS", 0.0)  # every generator is slow, measured by this

    def slow() -> Iterator[int]:
        for n in range(30):
            if n >= 1:
                poll_for((folder / f"done-{n - 1}").exists, f"input {n - 1} was held back")
            yield n

    at_once_dask.run(slow(), None, lambda n: (folder / f"done-{n}").touch(), progress=False)
    assert len(list(folder.glob("done-*"))) == 30


def test_ctrl_c_in_the_driver(cluster: Client, folder: Path) -> None:
    """A KeyboardInterrupt out of the list stops the run and brings the report along."""

    def interrupted() -> Iterator[int]:
        yield from range(3000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        at_once_dask.run(interrupted(), None, lambda n: None, progress=False)
    report = raised.value.report  # type: ignore[attr-defined]
    assert report.n_processed + report.n_left == report.n_inputs
    assert at_once_dask.last_report().run == report.run  # type: ignore[union-attr]
    assert at_once_dask.run(range(10), None, lambda n: None, progress=False).ok


def test_the_list_is_never_modified(cluster: Client) -> None:
    inputs = [[n] for n in range(50)]
    at_once_dask.run(inputs, None, lambda inp: inp.append(1), progress=False)
    assert inputs == [[n] for n in range(50)]


def test_plan(cluster: Client, folder: Path) -> None:
    def check(n: int) -> list[Any]:
        if n % 100 == 50:
            raise ValueError(n)
        return [n % 3 == 0, None]

    plan = at_once_dask.plan((n for n in range(2000)), check, progress=False)
    failed = [n for n in range(2000) if n % 100 == 50]
    pending = [n for n in range(2000) if n % 3 and n not in failed]
    assert plan.pending == pending
    assert (plan.n_inputs, plan.n_pending) == (2000, len(pending))
    assert plan.n_done == 2000 - len(pending) - len(failed)
    assert list(plan.failures.index) == list(plan.failures["input"]) == failed
    assert "2,000 inputs" in repr(plan)


def test_a_plan_that_breaks_off(cluster: Client) -> None:
    """Its counts add up, and it is no run: ``last_report`` is of the one before."""
    at_once_dask.run([1], None, lambda n: None, progress=False)
    before = at_once_dask.last_report()

    def broken() -> Iterator[int]:
        yield from range(10)
        raise LookupError("no more")

    with pytest.raises(LookupError) as raised:
        at_once_dask.plan(broken(), lambda n: [n < 3, None], progress=False)
    at_once_dask.plan([1, 2], None, progress=False)

    report = raised.value.report  # type: ignore[attr-defined]
    assert (report.n_inputs, report.n_skipped, report.n_left) == (10, 3, 7)
    assert not report.ok
    assert at_once_dask.last_report() is before


def test_plan_without_a_check(cluster: Client) -> None:
    plan = at_once_dask.plan(["b", "a"], None, progress=False)
    assert (plan.pending, plan.n_done, len(plan.failures)) == (["b", "a"], 0, 0)
    assert at_once_dask.plan([], None).pending == []


def test_plan_then_run_then_plan(cluster: Client, folder: Path) -> None:
    def check(n: int) -> list[Any]:
        return [(folder / f"{n}").exists(), None]

    assert at_once_dask.plan(range(20), check, progress=False).n_pending == 20
    at_once_dask.run(range(0, 20, 2), check, lambda n: (folder / f"{n}").touch(), progress=False)
    plan = at_once_dask.plan(range(20), check, progress=False)
    assert plan.pending == list(range(1, 20, 2))


def test_items(cluster: Client) -> None:
    report = at_once_dask.run(range(100), lambda n: [n < 30, None], lambda n: None, progress=False)
    items = report.items
    assert list(items.index) == list(range(100))
    assert statuses(report) == ["skipped"] * 30 + ["processed"] * 70
    assert set(items["worker"]) <= set(cluster.nthreads())
    assert items["start"].is_monotonic_increasing or items["worker"].nunique() > 1
    assert (items["seconds"] >= 0).all()
    for _, mine in items.groupby("worker", observed=True):
        ends = (mine["start"].astype("int64") / 1e9 + mine["seconds"]).shift().dropna()
        assert (mine["start"].astype("int64")[1:] / 1e9 >= ends - 1e-3).all()


@pytest.mark.parametrize("page", ["status", "tasks", "workers"])
def test_the_dashboard_answers_while_a_run_goes_on(cluster: Client, page: str) -> None:
    """Dask's own pages, from the address in the report; the list asks in the middle of the run."""
    answers = []

    def asking() -> Iterator[int]:
        yield 1
        with urllib.request.urlopen(cluster.dashboard_link.replace("status", page)) as answer:
            answers.append((answer.status, b"bokeh" in answer.read().lower()))
        yield 2

    report = at_once_dask.run(asking(), None, lambda n: None, progress=False)
    assert answers == [(200, True)]
    assert report.dashboard_link == cluster.dashboard_link


class SlowToUnpickle:
    def __reduce__(self) -> Any:
        return _slowly, ()


def _slowly() -> str:
    time.sleep(0.8)  # the work of unpickling, longer than it takes to be asked back
    return "unpickled"


def test_an_input_that_is_slow_to_unpickle_is_not_sent_to_and_fro(cluster: Client) -> None:
    """The other worker is idle meanwhile, and would be glad to have it."""
    report = at_once_dask.run([SlowToUnpickle()], None, lambda inp: None, progress=False)
    assert report.ok
    assert report.seconds < 5


class MemoryErrorTogether:
    """Pickles alone, and not as one of several, as two halves of the memory would."""

    def __reduce__(self) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None:
            value = frame.f_locals.get("value")
            if frame.f_code.co_name == "dumps" and isinstance(value, list) and len(value) > 1:
                raise MemoryError
            frame = frame.f_back
        return int, (1,)


def test_inputs_that_pickle_alone_and_not_together(cluster: Client) -> None:
    inputs = [MemoryErrorTogether() for _ in range(20)]
    report = at_once_dask.run(inputs, None, lambda inp: None, progress=False)
    assert report.n_processed == 20


@pytest.mark.thorough
def test_large_inputs_are_pickled_no_more_than_needed(
    cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones first, so that the first large partition is far too large."""
    packed: list[int] = []
    pack = inputs.Chunk.pack

    def counted(chunk: inputs.Chunk) -> tuple[bytes, ...]:
        packs = pack(chunk)
        packed.append(sum(map(len, packs)))
        return packs

    monkeypatch.setattr(inputs.Chunk, "pack", counted)
    small_first = [b""] * 20_000 + [bytes(2**20)] * 60
    at_once_dask.run(small_first, None, lambda inp: None, progress=False)
    assert sum(packed) < 4 * 60 * 2**20


def test_items_tell_when_each_input_began(cluster: Client) -> None:
    before = time.time()
    report = at_once_dask.run(range(100), None, lambda n: None, progress=False)
    starts = report.items["start"].astype("int64") / 1e9
    assert before - 0.1 <= starts.min() <= starts.max() <= time.time() + 0.1
