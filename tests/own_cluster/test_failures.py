"""The exception rows of the table of failures: each costs its own input, which is named."""

from __future__ import annotations

import asyncio
import bdb
import io
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dask.delayed import delayed
from distributed import Client
from helpers import statuses

import at_once_dask

BAD = 5  # the input that fails, of ten


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class BrokenStrError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class TwoArgumentsError(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def deep(n: int) -> int:
    return deep(n + 1) + 1


def next_of_nothing() -> None:
    next(iter(()))


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


RAISES: dict[str, tuple[Callable[[], object], str, str]] = {
    "exception": (raising(ValueError("bad")), "ValueError", "bad"),
    "system exit": (lambda: sys.exit(3), "SystemExit", "3"),
    "keyboard interrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt", ""),
    "stop iteration": (next_of_nothing, "StopIteration", ""),
    "generator exit": (raising(GeneratorExit("x")), "GeneratorExit", "x"),
    "recursion": (lambda: deep(0), "RecursionError", "maximum recursion depth exceeded"),
    "cannot be unpickled": (
        lambda: (_ for _ in ()).throw(TwoArgumentsError(1, 2)),
        "TwoArgumentsError",
        "1 and 2",
    ),
    "base exception": (raising(asyncio.CancelledError("c")), "CancelledError", "c"),
}


def run_ten(bad: Callable[[], object], where: str, **run_kwargs: Any) -> Any:
    """Ten inputs, of which the one called BAD calls `bad` in `where`; all others must be done."""

    def check(n: int) -> list[Any]:
        if where == "check" and n == BAD:
            bad()
        return [n == 0, {"k": n}]

    def process(n: int) -> Any:
        if where == "process" and n == BAD:
            bad()
        if where == "pairs" and n == BAD:
            return iterating(bad)
        return {"k": n}

    return at_once_dask.run(
        range(10), check, process, on_error="return", progress=False, **run_kwargs
    )


def iterating(bad: Callable[[], object]) -> Iterator[tuple[str, int]]:
    yield "k", -1
    bad()


def check_the_others(report: at_once_dask.Report, expect_skipped: int = 1) -> None:
    wanted = ["skipped"] * expect_skipped + ["processed"] * (10 - expect_skipped)
    wanted[BAD] = "failed"
    assert statuses(report) == wanted
    assert list(report.failures.index) == [BAD]


@pytest.mark.parametrize("name", RAISES)
@pytest.mark.parametrize("where", ["check", "process", "pairs"])
def test_anything_raised(cluster: Client, name: str, where: str) -> None:
    bad, error, message = RAISES[name]
    if (name, where) == ("stop iteration", "pairs"):
        error, message = "RuntimeError", "generator raised StopIteration"
    result = run_ten(bad, where, reduce_fn=list)
    check_the_others(result.report)
    assert result == {"k": [n for n in range(10) if n != BAD]}
    failure = result.report.failures.iloc[0]
    assert failure["input"] == BAD
    assert failure["stage"] == ("check" if where == "check" else "process")
    assert failure["kind"] == "exception"
    assert failure["error"] == error
    assert message in failure["message"]
    assert error in failure["traceback"]
    assert "test_failures.py" in failure["traceback"]
    assert "at_once_dask/worker/" not in failure["traceback"]
    assert failure["attempts"] == 1
    assert failure["exit"] is None
    assert failure["worker"] in cluster.nthreads()


@pytest.mark.parametrize(
    "error", [UnpicklableError("locked"), BrokenStrError()], ids=["lock", "str"]
)
@pytest.mark.parametrize("where", ["check", "process"])
def test_exceptions_that_cannot_be_sent_or_shown(
    cluster: Client, error: Exception, where: str
) -> None:
    kind, args = type(error), error.args

    def bad() -> None:
        raise kind(*args)

    report = run_ten(bad, where)
    check_the_others(report)
    assert report.failures.iloc[0]["error"] == kind.__name__
    text = report.failures.iloc[0]["message"]
    assert text == (
        "locked" if kind is UnpicklableError else "<str of this exception raised RuntimeError>"
    )


WRONG_ANSWERS = [None, [], [True], (1, 2, 3), "ab", {"a": 1, "b": 2}, 0]


@pytest.mark.parametrize("answer", WRONG_ANSWERS, ids=repr)
def test_an_answer_of_check_inp_that_is_no_pair(cluster: Client, answer: Any) -> None:
    def check(n: int) -> Any:
        return answer if n == BAD else (n == 0, None)

    report = at_once_dask.run(range(10), check, lambda n: None, on_error="return", progress=False)
    check_the_others(report)
    failure = report.failures.iloc[0]
    assert failure["stage"] == "check"
    assert failure["message"].startswith(f"check_inp returned {answer!r}; return [is_done, value]")


async def nothing() -> None:
    pass


WRONG_PAIRS: list[tuple[str, Callable[[], Any], str]] = [
    (
        "numbers",
        lambda: [1, 2],
        "process_inp returned an iterable with 1 in it; in a map-reduce run",
    ),
    ("number", lambda: 7, "process_inp returned 7; in a map-reduce run return a mapping or"),
    ("text", lambda: "ab", "process_inp returned 'ab'; in a map-reduce run return"),
    ("triples", lambda: [(1, 2, 3)], "an iterable with (1, 2, 3) in it"),
    ("unhashable", lambda: [([1], 2)], "the key [1], which is not hashable; use a tuple"),
    ("nan", lambda: {float("nan"): 1}, "the key nan, which is not equal to itself"),
    ("nan inside", lambda: {(float("nan"),): 1}, "the key (nan,), which is not equal to itself"),
    ("object", lambda: {object(): 1}, "not equal to itself (or not to its copy"),
    ("awaitable", lambda: nothing(), "process_inp returned an awaitable, which nobody awaits"),
]


@pytest.mark.parametrize(
    ("result", "text"), [w[1:] for w in WRONG_PAIRS], ids=[w[0] for w in WRONG_PAIRS]
)
@pytest.mark.parametrize("how", ["reduce_fn", "combine_fn"])
def test_a_result_that_is_no_pairs(
    cluster: Client, result: Callable[[], Any], text: str, how: str
) -> None:
    functions: dict[str, Any] = {"reduce_fn": list, "combine_fn": lambda a, b: a + b}
    reduced: Any = at_once_dask.run(
        range(10),
        None,
        lambda n: result() if n == BAD else {"k": [n]},
        on_error="return",
        progress=False,
        **{how: functions[how]},
    )
    check_the_others(reduced.report, expect_skipped=0)
    assert text in reduced.report.failures.iloc[0]["message"]
    assert reduced.report.failures.iloc[0]["stage"] == "process"


def test_map_only_drops_results_but_refuses_what_never_ran(cluster: Client) -> None:
    def generator() -> Iterator[int]:
        yield 1

    lazy: dict[int, Callable[[], Any]] = {2: nothing, BAD: generator, 7: delayed(generator)}
    report = at_once_dask.run(
        range(10),
        None,
        lambda n: lazy[n]() if n in lazy else threading.Lock(),
        on_error="return",
        progress=False,
    )
    assert list(report.failures.index) == [2, BAD, 7]
    messages = list(report.failures["message"])
    assert "awaitable" in messages[0]
    assert "generator, whose body never ran" in messages[1]
    assert "a Delayed of Dask, which nobody computes" in messages[2]


def test_a_done_input_without_a_value(cluster: Client) -> None:
    reduced = at_once_dask.run(
        range(10),
        lambda n: [n in (0, BAD), {"k": n} if n == 0 else None],
        lambda n: {"k": n},
        reduce_fn=sum,
        on_error="return",
        progress=False,
    )
    check_the_others(reduced.report)
    assert reduced == {"k": sum(range(10)) - BAD}
    failure = reduced.report.failures.iloc[0]
    assert failure["stage"] == "check"
    assert "return [True, value]" in failure["message"]


@pytest.mark.parametrize("check", [None, lambda n: [False, None]], ids=["no check", "not done"])
def test_none_from_process_inp_needs_a_value_from_check_inp(cluster: Client, check: Any) -> None:
    reduced = at_once_dask.run(
        range(10),
        check,
        lambda n: None if n == BAD else {"k": n},
        reduce_fn=sum,
        on_error="return",
        progress=False,
    )
    check_the_others(reduced.report, expect_skipped=0)
    assert "process_inp returned None" in reduced.report.failures.iloc[0]["message"]


class Unpicklable:
    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> Any:
        raise TypeError(f"no pickling of {self.n}")


def explode(n: int) -> None:
    raise RuntimeError(f"cannot be made again: {n}")


class Unreadable:
    """Pickles, and raises when it is unpickled."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> Any:
        return explode, (self.n,)


@pytest.mark.parametrize("kind", [Unpicklable, Unreadable])
def test_an_input_that_cannot_cross(cluster: Client, kind: type) -> None:
    inputs: list[Any] = list(range(10))
    inputs[BAD] = kind(BAD)
    reduced = at_once_dask.run(
        inputs, None, lambda n: {"k": n}, reduce_fn=list, on_error="return", progress=False
    )
    check_the_others(reduced.report, expect_skipped=0)
    assert reduced == {"k": [n for n in range(10) if n != BAD]}
    failure = reduced.report.failures.iloc[0]
    assert (failure["stage"], failure["kind"]) == ("send", "exception")
    assert failure["input"] is inputs[BAD]
    assert re.search("no pickling of 5|cannot be made again: 5", failure["message"])


@pytest.mark.thorough
def test_many_inputs_that_cannot_cross(cluster: Client) -> None:
    inputs = [
        Unpicklable(n) if n % 3 == 0 else Unreadable(n) if n % 3 == 1 else n for n in range(900)
    ]
    report = at_once_dask.run(inputs, None, lambda n: None, on_error="return", progress=False)
    assert statuses(report) == ["failed", "failed", "processed"] * 300
    assert list(report.causes["count"]) == [300, 300]


@pytest.mark.parametrize("how", ["reduce_fn", "combine_fn"])
def test_a_value_that_cannot_cross(cluster: Client, how: str) -> None:
    functions: dict[str, Any] = {"reduce_fn": list, "combine_fn": lambda a, b: a + b}

    def work(n: int) -> dict[str, Any]:
        return {"k": [n], "lock": [threading.Lock() if n == BAD else None]}

    reduced: Any = at_once_dask.run(
        range(10), None, work, on_error="return", progress=False, **{how: functions[how]}
    )
    check_the_others(reduced.report, expect_skipped=0)
    failure = reduced.report.failures.iloc[0]
    assert (failure["stage"], failure["error"]) == ("collect", "TypeError")
    assert len(reduced["k"]) == len(reduced["lock"]) == 9


def test_a_key_whose_reduce_fn_fails(cluster: Client) -> None:
    def reduce(values: list[int]) -> Any:
        if values[0] == 2:
            raise ValueError("two")
        return threading.Lock() if values[0] == 3 else values

    with pytest.raises(at_once_dask.RunFailed) as failed:
        at_once_dask.run(
            range(20), None, lambda n: {n % 5: n % 5}, reduce_fn=reduce, progress=False
        )
    report = failed.value.report
    assert (report.n_failed, report.n_keys_failed, report.n_processed) == (0, 2, 20)
    assert not report.ok
    assert list(report.failures.index.isna()) == [True, True]
    assert list(report.failures["key"]) == [2, 3]
    assert list(report.failures["input"]) == [None, None]
    assert set(report.failures["stage"]) == {"reduce"}
    assert failed.value.partial == {n: [n] * 4 for n in (0, 1, 4)}
    assert "2 keys failed" in str(failed.value)
    assert "e.g. key 2: two" in str(failed.value)
    log = at_once_dask.read_log(run=report.run)
    assert sorted(log["input"]) == ["2", "3"]


def test_a_key_whose_combine_fn_fails(cluster: Client) -> None:
    def combine(a: int, b: int) -> int:
        if a == 2:
            raise SystemExit("two")
        return a

    reduced = at_once_dask.run(
        range(500),
        None,
        lambda n: {n % 5: n % 5},
        combine_fn=combine,
        on_error="return",
        progress=False,
    )
    assert reduced == {n: n for n in (0, 1, 3, 4)}
    assert reduced.report.n_keys_failed == 1
    assert reduced.report.n_failed == 0
    failure = reduced.report.failures.iloc[0]
    assert (failure["key"], failure["error"], failure["stage"]) == (2, "SystemExit", "reduce")


class BrokenRepr:
    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_a_failed_input_whose_repr_raises_or_is_huge(cluster: Client) -> None:
    def work(inp: Any) -> None:
        raise ValueError("bad")

    inputs = [BrokenRepr(1), "x" * 1_000_000, list(range(1_000_000))]
    with pytest.raises(at_once_dask.RunFailed) as failed:
        at_once_dask.run(inputs, None, work, progress=False)
    assert len(str(failed.value)) < 2000
    log = at_once_dask.read_log().sort_values("index")
    assert log["input"].str.len().max() <= 200
    assert "whose repr raised RuntimeError" in log["input"].iloc[0]
    assert failed.value.report.failures.loc[0, "input"] is inputs[0]


def test_on_error_stop(cluster: Client, folder: Path) -> None:
    def work(n: int) -> None:
        if n == 100:
            raise ValueError("stop here")
        (folder / str(n)).touch()

    with pytest.raises(at_once_dask.RunStopped, match="Stopped early: an input failed") as stopped:
        at_once_dask.run(range(100_000), None, work, on_error="stop", progress=False)
    report = stopped.value.report
    assert report.n_inputs == 100_000
    assert report.n_failed == 1
    assert report.n_left > 90_000
    assert report.n_processed == len(list(folder.glob("[0-9]*")))
    assert stopped.value.partial is None
    assert at_once_dask.last_report().ok is False  # type: ignore[union-attr]


def test_on_error_stop_ends_what_is_running(cluster: Client, folder: Path) -> None:
    """The other worker waits for an hour; the run is over in seconds, and the next one runs."""

    def work(n: int) -> None:
        if n == 0:
            (folder / "sleeping").touch()
            threading.Event().wait(3600)
        while not (folder / "sleeping").exists():
            pass
        raise ValueError("stop")

    with pytest.raises(at_once_dask.RunStopped) as stopped:
        at_once_dask.run(range(2), None, work, on_error="stop", progress=False)
    assert stopped.value.report.seconds < 5
    assert (stopped.value.report.n_failed, stopped.value.report.n_left) == (1, 1)
    assert at_once_dask.run(range(10), None, lambda n: None, progress=False).ok


@pytest.mark.parametrize("how", [{"on_error": "stop"}, {"max_failures": 0}])
def test_a_stop_does_not_wait_for_the_next_input(cluster: Client, how: dict[str, Any]) -> None:
    """That of the same partition, which would take an hour, never begins."""

    def work(n: int) -> None:
        if n == 0:
            raise ValueError("stop")
        if n == 1:
            threading.Event().wait(3600)

    with pytest.raises(at_once_dask.RunStopped) as stopped:
        at_once_dask.run(range(8), None, work, progress=False, **how)
    report = stopped.value.report
    assert report.seconds < 0.9  # what runs when a run stops gets a second
    assert report.failures.index.tolist() == [0]
    assert statuses(report)[1] == "left"


def test_run_failed_pickles_and_says_what_to_do(cluster: Client, folder: Path) -> None:
    inputs: list[Any] = [*range(1000), Unpicklable(7)]

    def work(n: int) -> dict[int, int]:
        if n % 100 == 50:
            raise ValueError(f"bad number\nin {n}")
        return {n % 2: 1}

    with pytest.raises(at_once_dask.RunFailed) as failed:
        at_once_dask.run(inputs, lambda n: [n == 3, {1: 1}], work, reduce_fn=sum, progress=False)
    for error in (failed.value, pickle.loads(pickle.dumps(failed.value))):
        text = str(error)
        assert "1,001 inputs in" in text
        assert "989 processed, 1 skipped, 11 failed, 0 left" in text
        assert re.search(r"10 x ValueError in process at .*test_failures.py:\d+ in work", text)
        assert "e.g. inputs 50, 150, 250, 350, 450: bad number\n" in text
        log, run = folder / "log.jsonl", error.report.run
        assert f"Log: {log} (run {run})\n" in text
        assert f": python -m at_once_dask.failures {log} --run {run}\n" in text
        assert "1 x TypeError in send" in text
        assert str(folder / "log.jsonl") in text
        assert text.endswith(
            "Next: fix the cause and run the same again:"
            " the 990 inputs that are done will be skipped.\n"
            "The rest is reduced, 2 keys: error.partial"
        )
        assert error.partial == {0: 490, 1: 500}
        assert error.partial.report.n_failed == 11
        assert list(error.report.failures["error"].value_counts()) == [10, 1]
    assert at_once_dask.last_report() is not None
    assert at_once_dask.last_report().run == failed.value.report.run  # type: ignore[union-attr]


def test_run_stopped_pickles(cluster: Client) -> None:
    def work(n: int) -> None:
        raise ValueError(n)

    with pytest.raises(at_once_dask.RunStopped) as stopped:
        at_once_dask.run(range(100), None, work, on_error="stop", progress=False)
    copy = pickle.loads(pickle.dumps(stopped.value))
    assert str(copy) == str(stopped.value)
    assert copy.reason == "an input failed, and on_error is 'stop'"
    assert isinstance(copy, at_once_dask.RunFailed)


def test_frames_have_the_same_types_when_empty(cluster: Client) -> None:
    def work(n: int) -> None:
        if n == 1:
            raise ValueError(n)

    good = at_once_dask.run(range(3), None, abs, progress=False)
    bad = at_once_dask.run(range(3), None, work, on_error="return", progress=False)
    none = at_once_dask.run([], None, work)
    for name in ("failures", "causes", "items"):
        frames = [getattr(report, name) for report in (good, bad, none)]
        for frame in frames:
            assert list(frame.dtypes.drop("worker", errors="ignore").astype(str)) == list(
                frames[1].dtypes.drop("worker", errors="ignore").astype(str)
            ), name
            assert frame.index.dtype == frames[1].index.dtype
    assert str(good.items.index.dtype) == str(good.failures.index.dtype) == "Int64"
    assert str(good.items["start"].dtype) == "datetime64[ns, UTC]"
    assert good.items["seconds"].between(0, 1).all()


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize("how", ["reduce_fn", "combine_fn"])
def test_a_value_whose_pickling_exits(cluster: Client, how: str) -> None:
    functions: dict[str, Any] = {"reduce_fn": list, "combine_fn": lambda a, b: a + b}
    reduced: Any = at_once_dask.run(
        range(10),
        None,
        lambda n: {"k": ExitsWhenPickled() if n == BAD else [n]},
        on_error="return",
        progress=False,
        **{how: functions[how]},
    )
    check_the_others(reduced.report, expect_skipped=0)
    failure = reduced.report.failures.iloc[0]
    assert (failure["stage"], failure["error"]) == ("collect", "SystemExit")


def test_a_reduced_value_that_cannot_be_unpickled_fails_its_key(cluster: Client) -> None:
    reduced = at_once_dask.run(
        range(10),
        None,
        lambda n: {n % 2: n},
        reduce_fn=lambda values: TwoArgumentsError(1, 2) if 1 in values else sum(values),
        on_error="return",
        progress=False,
    )
    assert reduced == {0: 20}
    assert list(reduced.report.failures["key"]) == [1]
    assert list(at_once_dask.read_log(run=reduced.report.run)["input"]) == ["1"]


def test_a_report_with_an_input_that_cannot_be_unpickled_pickles(cluster: Client) -> None:
    report = at_once_dask.run(
        [1, Unreadable(2)], None, lambda n: None, on_error="return", progress=False
    )
    copy = pickle.loads(pickle.dumps(report))
    assert "Unreadable object" in repr(copy.failures["input"].iloc[0])


def test_a_log_that_is_deleted_meanwhile(cluster: Client, folder: Path) -> None:
    def inputs() -> Iterator[Any]:
        yield 1
        (folder / "log.jsonl").unlink(missing_ok=True)
        yield Unpicklable(2)

    report = at_once_dask.run(inputs(), None, lambda n: None, on_error="return", progress=False)
    assert statuses(report) == ["processed", "failed"]


def test_causes_come_with_the_most_frequent_first(cluster: Client) -> None:
    def work(n: int) -> None:
        raise (KeyError if n < 3 else ValueError)(n)

    report = at_once_dask.run(range(10), None, work, on_error="return", progress=False)
    assert list(report.causes["error"]) == ["ValueError", "KeyError"]
    assert list(report.causes["count"]) == [7, 3]
    assert list(report.causes["example"]) == [3, 0]


def test_the_first_inputs_of_a_cause_are_named(cluster: Client) -> None:
    """By their place in the list, in whatever order they failed."""

    def work(name: str) -> None:
        raise {"o": OSError, "k": KeyError, "v": ValueError}[name[0]]("no")

    names = ["k0", *(f"o{n}" for n in range(300)), "v0", "v1", "v" * 300, "v2"]
    report = at_once_dask.run(names, None, work, True, on_error="return", progress=False)
    text = report.summary()
    assert "e.g. inputs 'o0', 'o1', 'o2', 'o3', 'o4': no\n" in text
    assert "e.g. inputs 'v0', 'v1': no\n" in text  # no room for the long one, and those behind it
    assert "e.g. input 'k0': 'no'\n" in text
    copy = pickle.loads(pickle.dumps(report))
    assert copy.summary() == text
    few = at_once_dask.run(["o7", "o8"], None, work, on_error="return", progress=False)
    assert ", inputs 'o7', 'o8': no\n" in few.summary()


ODD = "caf\udce9 \N{SNOWMAN}"  # as Python gives a file name that is not UTF-8


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_are_not_utf8_can_be_told(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Wherever: on a terminal, in the log, in frames, in the page."""

    def work(name: str) -> dict[str, int]:
        print("reading", name)
        at_once_dask.log(f"reading {name}")
        raise ValueError(f"cannot read {name}")

    (folder / ODD).mkdir()
    monkeypatch.setattr(at_once_dask, "logfile", folder / ODD / "log.jsonl")
    with pytest.raises(at_once_dask.RunFailed) as failed:
        at_once_dask.run(
            [ODD], None, work, reduce_fn=sum, progress=False, report_path=folder / ODD / "r.html"
        )
    report = failed.value.report
    with io.TextIOWrapper(io.BytesIO(), encoding, "strict") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        print(failed.value, report, sep="\n")
        terminal.flush()
        told = terminal.buffer.getvalue().decode(encoding)
        monkeypatch.undo()
    snowman = "\N{SNOWMAN}" if encoding == "utf-8" else "\\u2603"
    assert told.count(f"cannot read caf\\udce9 {snowman}\n") == 2
    texts = [
        report.summary(),
        report._repr_html_(),
        (folder / ODD / "r.html").read_text("utf-8"),
        *report.failures[["message", "traceback"]].iloc[0],
        *report.causes[["where", "message"]].iloc[0],
        *at_once_dask.read_log(report.logfile)["msg"],
    ]
    assert all(text.encode() for text in texts)
    assert sum("caf\\udce9 \N{SNOWMAN}" in text for text in texts) == len(texts) - 1
    assert report.failures["input"].iloc[0] == ODD


def run_program(code: str) -> None:
    subprocess.run(["/bin/sh", "-c", code], check=True, capture_output=True, timeout=20)


def explain_bare_assert(n: int) -> None:
    assert n > 5


def explain_signal(n: int) -> None:
    signal.signal(signal.SIGALRM, print)


def explain_program(n: int) -> None:
    run_program("echo frame 1 >&2; echo unknown codec foo >&2; exit 3")


def explain_text_of_program(n: int) -> None:
    subprocess.run("echo no such host; exit 1", shell=True, check=True, stdout=-1, text=True)


def explain_long_words_of_program(n: int) -> None:
    run_program("seq 100000 >&2; printf 'caf\\351' >&2; exit 3")


def explain_slow_program(n: int) -> None:
    subprocess.run("echo begun; exec sleep 60", shell=True, stdout=-1, timeout=0.3)


def explain_silent_program(n: int) -> None:
    subprocess.run(["/bin/false"], check=True)


EXPLAINED: dict[Any, str] = {
    explain_bare_assert: "assert n > 5",
    explain_signal: (
        "signal only works in main thread of the main interpreter; inputs run in a thread of their"
        " worker; to limit the time of an input, write"
        " run(inp_list, check_inp, process_inp, timeout=60) instead"
    ),
    explain_program: (
        "Command '['/bin/sh', '-c', 'echo frame 1 >&2; echo unknown codec foo >&2; exit 3']'"
        " returned non-zero exit status 3; it ended with: unknown codec foo\nframe 1\nunknown"
        " codec foo"
    ),
    explain_text_of_program: (
        "Command 'echo no such host; exit 1' returned non-zero exit status 1; it ended with: no"
        " such host"
    ),
    explain_slow_program: (
        "Command 'echo begun; exec sleep 60' timed out after 0.3 seconds; it ended with: begun"
    ),
    explain_silent_program: "Command '['/bin/false']' returned non-zero exit status 1.",
}


@pytest.mark.parametrize("work", EXPLAINED, ids=lambda work: work.__name__)
def test_a_failure_tells_what_its_exception_does_not(cluster: Client, work: Any) -> None:
    report = at_once_dask.run([1], None, work, on_error="return", progress=False)
    assert report.failures.loc[0, "message"] == EXPLAINED[work]
    logged = at_once_dask.read_log(run=report.run)["msg"].iloc[0]
    assert EXPLAINED[work].splitlines()[-1] in logged
    assert "test_failures.py:" in report.causes["where"].iloc[0]


def test_of_the_words_of_a_program_the_end_is_kept(cluster: Client) -> None:
    report = at_once_dask.run(
        [1], None, explain_long_words_of_program, on_error="return", progress=False
    )
    message, traceback = report.failures[["message", "traceback"]].iloc[0]
    assert message.endswith("\n99999\n100000\ncaf\\xe9")
    assert "; it ended with: caf\\xe9\n…" in message
    assert len(message) < 1_500
    assert traceback.endswith("\n100000\ncaf\\xe9")


def test_a_breakpoint_in_a_worker_says_where_it_would_stop(cluster: Client) -> None:
    def work(n: int) -> None:
        raise bdb.BdbQuit  # as `breakpoint()` ends where there is nothing to read from

    report = at_once_dask.run([1], None, work, on_error="return", progress=False)
    failure = report.failures.iloc[0]
    assert failure["error"] == "BdbQuit"
    assert "report.replay(position)" in failure["message"]


def test_what_cannot_be_pickled_points_at_no_line_of_pickle(cluster: Client) -> None:
    inputs = [1, (n for n in range(3)), threading.Lock()]
    result = at_once_dask.run(
        inputs,
        None,
        lambda n: {n: threading.Lock()},
        reduce_fn=list,
        on_error="return",
        progress=False,
    )
    causes = result.report.causes
    assert sorted(set(causes["stage"])) == ["collect", "send"]
    assert set(causes["where"]) == {""}
