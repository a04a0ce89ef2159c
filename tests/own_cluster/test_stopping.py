"""Retries, `max_failures`, `verify`, `inspect` and `replay`."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from helpers import poll_for, same

import at_once_dask
from at_once_dask.driver import inputs
from at_once_dask.live.console import let_inspect

run: Any = at_once_dask.run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come after hundredths of a second."""
    monkeypatch.setattr(inputs, "BACKOFF_SECONDS", 0.01)


def failing(folder: Path, n: int, times: int) -> Callable[[int], list[tuple[str, int]]]:
    """A `process_inp` in which every `n`-th input fails for some times."""

    def process(inp: int) -> list[tuple[str, int]]:
        with (folder / f"{inp}.attempts").open("a") as attempts:
            attempts.write("x")
            if inp % n == 0 and attempts.tell() <= times:
                raise ValueError(f"attempt {attempts.tell()}")
        return [("all", inp)]

    return process


# ----- retries


@pytest.mark.parametrize("reducing", [False, True])
def test_retries(cluster: Client, folder: Path, quick: None, reducing: bool) -> None:
    result = run(
        range(40),
        None,
        failing(folder, 5, times=2),
        retries=2,
        reduce_fn=list if reducing else None,
        progress=False,
    )
    report = result.report if reducing else result
    assert (report.n_processed, report.n_failed) == (40, 0)
    sizes = [(folder / f"{n}.attempts").stat().st_size for n in range(40)]
    assert sizes == [1 + 2 * (n % 5 == 0) for n in range(40)]
    if reducing:
        assert same(dict(result), {"all": list(range(40))})


def test_attempts_are_counted_and_logged(cluster: Client, folder: Path, quick: None) -> None:
    report = run(
        range(4), None, failing(folder, 4, times=9), retries=2, on_error="return", progress=False
    )
    assert report.failures["attempts"].tolist() == [3]
    assert report.failures.loc[0, "message"] == "attempt 3"
    log = at_once_dask.read_log()
    assert log["level"].tolist() == ["WARNING", "WARNING", "ERROR"]
    assert [f"(attempt {n} of 3)" in msg for n, msg in enumerate(log["msg"], 1)] == [True] * 3


def test_others_go_on_while_one_waits(cluster: Client, folder: Path) -> None:
    """It waits for a quarter of a second at least."""
    begun = time.monotonic()
    report = run(range(500), None, failing(folder, 500, times=1), retries=1, progress=False)
    assert report.ok
    assert time.monotonic() - begun >= 0.25
    items = report.items
    assert (items["start"].iloc[1:] < items["start"].iloc[0]).mean() > 0.9


def test_keys_are_tried_again_too(cluster: Client, folder: Path, quick: None) -> None:
    def reduce(values: list[int]) -> int:
        if values[0] == 1 and not (folder / "tried").exists():
            (folder / "tried").touch()
            raise ValueError("once")
        return sum(values)

    result = run(
        range(6), None, lambda n: [(n % 3, n)], reduce_fn=reduce, retries=1, progress=False
    )
    assert dict(result) == {0: 3, 1: 5, 2: 7}


def test_an_input_that_cannot_be_sent_is_not_tried_again(cluster: Client) -> None:
    report = run([threading.Lock()], None, print, retries=3, on_error="return", progress=False)
    assert report.failures[["stage", "attempts"]].values.tolist() == [["send", 1]]


# ----- max_failures


@pytest.mark.parametrize("on_error", ["raise", "return"])
@pytest.mark.parametrize(("most", "failed"), [(0, 1), (5, 6), (0.2, None)])
def test_max_failures(
    cluster: Client, folder: Path, on_error: str, most: float, failed: int | None
) -> None:
    with pytest.raises(at_once_dask.RunStopped, match=f"more than max_failures={most}") as stopped:
        run(
            range(100_000),
            None,
            failing(folder, 3, times=1),
            max_failures=most,
            on_error=on_error,
            progress=False,
        )
    report = stopped.value.report
    assert report.n_left > 0
    assert stopped.value.partial is None
    if failed is None:
        assert report.n_failed + report.n_processed >= 20
        assert report.n_failed > most * (report.n_failed + report.n_processed)
    else:
        assert report.n_failed >= failed


@pytest.mark.parametrize("most", [3, 0.6])
def test_as_many_as_allowed(cluster: Client, folder: Path, most: float) -> None:
    report = run(
        range(6),
        None,
        failing(folder, 2, times=1),
        max_failures=most,
        on_error="return",
        progress=False,
    )
    assert (report.n_failed, report.n_left) == (3, 0)


def test_a_share_is_not_judged_before_twenty(cluster: Client, folder: Path) -> None:
    report = run(
        range(19),
        None,
        failing(folder, 1, times=1),
        max_failures=0.01,
        on_error="return",
        progress=False,
    )
    assert (report.n_failed, report.n_left) == (19, 0)


def test_what_was_done_before_is_good_in_a_share(cluster: Client, folder: Path) -> None:
    """A run that is resumed has the bad inputs left."""
    report = run(
        range(1000),
        lambda n: [n < 960, None],
        failing(folder, 1, times=1),
        max_failures=0.05,
        on_error="return",
        progress=False,
    )
    assert (report.n_skipped, report.n_failed, report.n_left) == (960, 40, 0)


def test_failures_that_are_tried_again_do_not_count(
    cluster: Client, folder: Path, quick: None
) -> None:
    report = run(
        range(20), None, failing(folder, 2, times=1), max_failures=0, retries=1, progress=False
    )
    assert report.ok


# ----- verify


@pytest.mark.parametrize("reducing", [False, True])
def test_verify(cluster: Client, folder: Path, reducing: bool) -> None:
    def check(inp: int) -> list[Any]:
        return [(folder / f"{inp}.done").exists(), [(inp % 2, inp)]]

    def process(inp: int) -> Any:
        if inp != 3:
            (folder / f"{inp}.done").touch()
        return [(inp % 2, inp)]

    with pytest.raises(at_once_dask.RunFailed, match="still says that the input is not done") as e:
        run(
            range(6),
            check,
            process,
            verify=True,
            reduce_fn=list if reducing else None,
            progress=False,
        )
    failures = e.value.report.failures
    assert failures.index.tolist() == [3]
    assert failures["stage"].tolist() == ["verify"]
    if reducing:
        assert e.value.partial == {0: [0, 2, 4], 1: [1, 5]}


def test_verify_asks_once_where_the_value_is_asked_for(cluster: Client, folder: Path) -> None:
    """`process_inp` gives nothing: one question answers whether it is done, and with what."""

    def check(inp: int) -> list[Any]:
        with (folder / f"{inp}.asked").open("a") as asked:
            asked.write("x")
            return [asked.tell() > 1, [("n", inp)]]

    result = run(range(3), check, lambda inp: None, verify=True, reduce_fn=sum, progress=False)
    assert dict(result) == {"n": 3}
    assert [(folder / f"{n}.asked").stat().st_size for n in range(3)] == [2] * 3


# ----- inspect


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """A real terminal in place of stdin and stderr; its other end."""
    ours, theirs = pty.openpty()
    with (
        os.fdopen(os.dup(theirs), "r") as stdin,
        os.fdopen(theirs, "w", buffering=1) as stderr,
        pytest.MonkeyPatch.context() as patch,  # in the test: pytest sets them before each phase
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stderr", stderr)
        yield ours
    os.close(ours)


def test_inspect_waits_for_enter(cluster: Client) -> None:
    ended: list[at_once_dask.Report] = []

    def inspected() -> None:
        call = {"on_error": "return", "inspect": True, "progress": False}
        ended.append(run([0], None, lambda n: 1 / n, **call))

    with terminal() as screen:
        thread = threading.Thread(target=inspected)
        thread.start()
        shown = b""
        while b"Enter or Ctrl-C goes on" not in shown:
            shown += os.read(screen, 4096)
        assert ended == []
        page = cluster.dashboard_link.replace("/status", "/at-once")
        assert f"Inspect: {page} or {cluster.dashboard_link}\r\n".encode() in shown
        assert b"ZeroDivisionError" in shown
        os.write(screen, b"\n")
        poll_for(lambda: ended, "Enter does not go on")
        thread.join()


def test_inspect_has_nothing_to_show_when_all_went_well(cluster: Client) -> None:
    with terminal():
        assert run([1], None, lambda n: None, inspect=True, progress=False).ok


def test_inspect_does_nothing_without_a_terminal(
    cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    report = run([0], None, lambda n: 1 / n, inspect=True, on_error="return", progress=False)
    let_inspect(report)
    assert report.n_failed == 1


# ----- replay


def test_replay_raises_what_happened_here(cluster: Client) -> None:
    def process(inp: int) -> int:
        here = os.getpid()
        return here // inp

    report = run([5, 0], None, process, on_error="return", progress=False)
    at_once_dask.close()  # the cluster is not needed
    with pytest.raises(ZeroDivisionError) as error:
        report.replay(1)
    frame = error.traceback[-1].frame
    assert frame.code.name == "process"
    assert frame.f_locals["here"] == os.getpid()
    at_once_dask.start(2, dashboard_address="127.0.0.1:0")


def test_replay_goes_by_the_position_as_given(cluster: Client) -> None:
    report = run(
        [3, 0, 7],
        None,
        lambda n: {"n": 1 // n},
        True,
        reduce_fn=sum,
        random_state=1,
        on_error="return",
        progress=False,
    ).report
    with pytest.raises(ZeroDivisionError):
        report.replay(report.failures.index[0])


def test_replay_of_what_works_by_now(cluster: Client, folder: Path) -> None:
    def process(inp: int) -> dict[str, int]:
        if not (folder / "fixed").exists():
            raise ValueError
        return {"n": inp}

    report = run([4], None, process, reduce_fn=sum, on_error="return", progress=False).report
    (folder / "fixed").touch()
    assert report.replay(0) == [("n", 4)]


def test_replay_of_a_wrong_answer(cluster: Client) -> None:
    report = run([1], lambda n: 3, print, on_error="return", progress=False)
    with pytest.raises(Exception, match=r"check_inp returned 3; return \[is_done, value\]"):
        report.replay(0)


def test_what_cannot_be_replayed(cluster: Client) -> None:
    import pickle

    report = run([0, 1], None, lambda n: 1 // n, on_error="return", progress=False)
    with pytest.raises(at_once_dask.InputError, match=r"position 1 has failed; one that has is 0"):
        report.replay(1)
    with pytest.raises(at_once_dask.InputError, match="does not take along to another process"):
        pickle.loads(pickle.dumps(report)).replay(0)
