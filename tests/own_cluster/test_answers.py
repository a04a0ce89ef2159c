"""What `check_inp` and `process_inp` answer: what counts, what is dropped, and what is refused."""

from __future__ import annotations

import gc
import json
import operator
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import at_once_dask

PAIRED = "is_done is True or False, as in `return [path.exists(), None]`"


def run(*args: Any, **kwargs: Any) -> Any:
    return at_once_dask.run(*args, progress=False, **kwargs)


# ----- is_done


@pytest.mark.parametrize(
    ("is_done", "done"),
    [
        *((False, False), (None, False), (0, False), (True, True), (1, True)),
        *((np.bool_(True), True), (np.bool_(False), False), (np.int64(1), True)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("reducing", [False, True])
def test_what_is_done_may_be(cluster: Client, is_done: Any, done: bool, reducing: bool) -> None:
    if reducing:
        result = run([5], lambda n: [is_done, {"c": n}], lambda n: {"p": n}, reduce_fn=sum)
        assert dict(result) == {("c" if done else "p"): 5}
    else:
        report = run([5], lambda n: (is_done, None), lambda n: None)
        assert (report.n_skipped, report.n_processed) == (int(done), int(not done))


@pytest.mark.parametrize(
    "is_done",
    ["no", "", 2, -1, 0.5, 1.0, [], {"a": 1}, b"x", np.float64(1), np.array([True])],
    ids=repr,
)
def test_what_is_done_may_not_be(cluster: Client, is_done: Any) -> None:
    report = run([1, 2], lambda n: [is_done, None], lambda n: None, on_error="return")
    assert report.failures["stage"].tolist() == ["check"] * 2
    for message in report.failures["message"]:
        assert message == f"check_inp returned {is_done!r} as is_done; {PAIRED}"


@pytest.mark.parametrize("bare", [False, True])
def test_a_method_that_was_not_called(cluster: Client, folder: Path, bare: bool) -> None:
    path = folder / "result"
    report = run(
        [1], lambda n: path.exists if bare else [path.exists, None], print, on_error="return"
    )
    assert report.failures["stage"].tolist() == ["check"]
    message = report.failures["message"].iloc[0]
    assert message.startswith(f"check_inp returned {path.exists!r}")
    assert message.endswith("was not called; write `return [path.exists(), None]`")


@pytest.mark.parametrize("answer", [True, False, np.bool_(True), np.bool_(False)], ids=repr)
def test_a_bare_bool_will_do_where_there_is_no_value(cluster: Client, answer: Any) -> None:
    report = run([1, 2], lambda n: answer, lambda n: None)
    assert (report.n_skipped, report.n_processed) == ((2, 0) if answer else (0, 2))
    assert at_once_dask.plan([1, 2], lambda n: answer, progress=False).n_done == 2 * bool(answer)


def test_a_bare_bool_will_not_do_where_the_value_counts(cluster: Client) -> None:
    result = run([1], lambda n: True, lambda n: {n: n}, reduce_fn=sum, on_error="return")
    (message,) = result.report.failures["message"]
    assert message == (
        "check_inp returned True; in a map-reduce run return [is_done, value], for example `return"
        " [path.exists(), json.loads(path.read_text()) if path.exists() else None]`"
    )


# ----- what a resumed map-reduce would give


class Results:
    """Results in files, as somebody saves and loads them."""

    def __init__(self, folder: Path, load: Callable[[Any], Any], bad: int = -1) -> None:
        self.folder = folder
        self.load = load
        self.bad = bad

    def check(self, n: int) -> list[Any]:
        path = self.folder / f"{n}.json"
        return [path.exists(), self.load(json.loads(path.read_text())) if path.exists() else None]

    def process(self, n: int) -> dict[int, int]:
        if n == self.bad:
            raise ValueError("not yet")
        with at_once_dask.atomic_write(self.folder / f"{n}.json") as file:
            json.dump({n % 3: n * n}, file)
        return {n % 3: n * n}


def as_it_is(value: Any) -> Any:
    return value


def with_int_keys(value: Any) -> Any:
    return {int(key): number for key, number in value.items()}


EXPECTED = {k: sum(n * n for n in range(60) if n % 3 == k) for k in range(3)}


@pytest.mark.parametrize("folds", [{"reduce_fn": sum}, {"combine_fn": operator.add}])
@pytest.mark.parametrize("verify", [False, True])
def test_keys_that_json_makes_text_of_are_seen(
    cluster: Client, folder: Path, folds: dict[str, Any], verify: bool
) -> None:
    results = Results(folder, as_it_is)
    with pytest.raises(at_once_dask.RunFailed) as raised:
        run(range(60), results.check, results.process, verify=verify, **folds)
    failures = raised.value.report.failures
    assert set(failures["stage"]) == {"verify"}
    assert len(failures) == (60 if verify else 1)  # without `verify` one is compared in a run
    n = failures["input"].iloc[0]
    message = failures["message"].iloc[0]
    assert message.startswith(
        f"process_inp returned [({n % 3}, {n * n})], and check_inp then gives"
    )
    assert f"gives [('{n % 3}', {n * n})] (JSON makes text of keys" in message


@pytest.mark.parametrize("folds", [{"reduce_fn": sum}, {"combine_fn": operator.add}])
@pytest.mark.parametrize("verify", [False, True])
def test_a_resumed_run_gives_the_same_as_one_undisturbed(
    cluster: Client, folder: Path, folds: dict[str, Any], verify: bool
) -> None:
    bad = Results(folder, with_int_keys, bad=7)
    with pytest.raises(at_once_dask.RunFailed) as raised:
        run(range(60), bad.check, bad.process, verify=verify, **folds)
    assert raised.value.report.failures["input"].tolist() == [7]
    good = Results(folder, with_int_keys)
    result = run(range(60), good.check, good.process, verify=verify, **folds)
    assert (dict(result), result.report.n_skipped) == (EXPECTED, 59)


def test_few_inputs_are_compared_in_a_run(cluster: Client, folder: Path) -> None:
    def check(n: int) -> list[Any]:
        with open("asked", "a") as file:
            file.write(f"{n}\n")
        return [(folder / f"{n}").exists(), {"a": 1}]

    def process(n: int) -> dict[str, int]:
        (folder / f"{n}").touch()
        return {"a": 1}

    assert dict(run(range(200), check, process, reduce_fn=len)) == {"a": 200}
    # One in each of the partitions that are in flight together.
    assert 200 < len((folder / "asked").read_text().split()) <= 204


def test_where_check_inp_never_has_a_value_nothing_is_compared(cluster: Client) -> None:
    result = run(range(50), lambda n: [False, None], lambda n: {"a": n}, reduce_fn=sum)
    assert dict(result) == {"a": 1225}


# ----- what a map-only run drops


def dropped(report: at_once_dask.Report) -> list[str]:
    return [line for line in report.summary().splitlines() if "process_inp returns" in line]


def test_a_value_that_is_dropped_is_pointed_out_once(
    cluster: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    report = at_once_dask.run(["a"] * 5_000, None, str.upper)
    line = (
        "process_inp returns values, such as 'A' for input 'a', and in a map-only run they are"
        " dropped; save them in process_inp, or get them back by position:"
        " run(enumerate(inp_list), None, lambda item: {item[0]: process_inp(item[1])},"
        " reduce_fn=lambda values: values[0])"
    )
    assert dropped(report) == [f"Note: {line}"]
    err = capfd.readouterr().err
    assert err.count("process_inp returns") == 1
    assert line in err
    assert "process_inp returns values" in report._repr_html_()


def test_that_advice_gives_the_values_back(cluster: Client) -> None:
    def process_inp(text: str) -> str:
        return text.upper()

    inp_list = ["a", "b", "c"]
    found = run(
        enumerate(inp_list),
        None,
        lambda item: {item[0]: process_inp(item[1])},
        reduce_fn=lambda values: values[0],
    )
    assert dict(found) == {0: "A", 1: "B", 2: "C"}


def test_nothing_is_pointed_out_where_nothing_is_dropped(
    cluster: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not dropped(at_once_dask.run(range(100), None, lambda n: None))
    result = at_once_dask.run(range(100), None, lambda n: {n: n}, reduce_fn=sum)
    assert not dropped(result.report)
    silent = at_once_dask.run(range(100), None, lambda n: n, progress=False)
    assert len(dropped(silent)) == 1
    assert "process_inp returns" not in capfd.readouterr().err


# ----- a reduction that failed


def large(n: int) -> dict[int, Any]:
    return {n % 3: np.full(100_000, n)}


def fails_for_one(values: list[Any]) -> int:
    if values[0][0] == 1:
        raise ValueError("one is not reduced")
    return total(values)


def total(values: list[Any]) -> int:
    return sum(int(value.sum()) for value in values)


TOTALS = {k: sum(100_000 * n for n in range(20) if n % 3 == k) for k in range(3)}


def test_values_can_be_reduced_again_without_the_map(cluster: Client, folder: Path) -> None:
    def noted(n: int) -> dict[int, Any]:
        with open("mapped", "a") as file:
            file.write(f"{n}\n")
        return large(n)

    with pytest.raises(at_once_dask.RunFailed) as raised:
        run(range(20), None, noted, reduce_fn=fails_for_one)
    assert "call at_once_dask.last_report().reduce(reduce_fn)" in str(raised.value)
    with pytest.raises(at_once_dask.RunFailed, match="one is not reduced") as again:
        raised.value.report.reduce(fails_for_one)
    assert again.value.partial == {0: TOTALS[0], 2: TOTALS[2]}
    for report in (again.value.report, raised.value.report):
        result = report.reduce(total)
        assert list(result.items()) == list(TOTALS.items())
        assert result.report.ok
        assert (result.report.n_processed, result.report.n_keys_failed) == (20, 0)
    assert len((folder / "mapped").read_text().split()) == 20


def test_what_was_kept_goes_with_the_report(cluster: Client) -> None:
    scheduler: Any = cluster.cluster
    scratch = Path(scheduler.scheduler.local_directory).parents[1]
    gc.collect()
    before = set(scratch.iterdir())
    report = run(range(20), None, large, reduce_fn=fails_for_one, on_error="return").report
    assert len(set(scratch.iterdir()) - before) == 1
    del report
    assert run([], None, large).ok  # `last_report` kept it
    gc.collect()
    assert set(scratch.iterdir()) == before


def test_a_report_that_keeps_nothing_says_so(cluster: Client) -> None:
    report = run([1], None, lambda n: {n: n}, reduce_fn=sum).report
    for kept_not in (report, pickle.loads(pickle.dumps(report))):
        with pytest.raises(at_once_dask.InputError, match="keeps no values to reduce"):
            kept_not.reduce(sum)


def test_reduce_takes_a_function(cluster: Client) -> None:
    report = run([1], None, lambda n: {n: n}, reduce_fn=lambda v: 1 / 0, on_error="return").report
    with pytest.raises(at_once_dask.InputError) as raised:
        report.reduce(3)
    assert str(raised.value) == "reduce_fn is 3; it takes a function: report.reduce(sum)"
    assert report.reduce(sum) == {1: 1}


# ----- where the output went


def test_a_run_that_has_printed_says_where_it_went(
    cluster: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    def talks(n: int) -> None:
        print("one")
        print("two", file=sys.stderr)

    report = at_once_dask.run(range(3), None, talks)
    line = f'6 lines of output: at_once_dask.read_log(run="{report.run}")'
    assert capfd.readouterr().err.splitlines()[-1] == line
    assert f"Note: {line}" in report.summary().splitlines()
    assert len(at_once_dask.read_log(run=report.run)) == 6

    silent = at_once_dask.run(range(3), None, lambda n: None)
    assert "of output" not in silent.summary() + capfd.readouterr().err


# ----- what a review found


@pytest.mark.parametrize("verify", [False, True])
def test_a_difference_is_no_matter_of_another_attempt(
    cluster: Client, folder: Path, verify: bool
) -> None:
    results = Results(folder, as_it_is)
    with pytest.raises(at_once_dask.RunFailed) as raised:
        run(range(60), results.check, results.process, reduce_fn=sum, retries=2, verify=verify)
    failures = raised.value.report.failures
    assert set(failures["stage"]) == {"verify"}
    assert set(failures["attempts"]) == {1}
    assert len(failures) == (60 if verify else 1)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 3), (5, 6), (10, 13), (300, 320)])
def test_what_was_done_before_hides_no_difference(
    cluster: Client, folder: Path, first: int, then: int
) -> None:
    results = Results(folder, as_it_is)
    for n in (first, then):
        with pytest.raises(at_once_dask.RunFailed) as raised:
            run(range(n), results.check, results.process, reduce_fn=sum)
        assert raised.value.report.failures["stage"].tolist() == ["verify"]
    assert raised.value.report.n_skipped == first


def test_a_check_inp_that_nobody_had_to_ask_fails_nothing(cluster: Client, folder: Path) -> None:
    def check(n: int) -> list[Any]:
        if (folder / f"{n}").exists():
            raise ValueError("it cannot read what was just saved")
        return [False, None]

    def process(n: int) -> dict[str, int]:
        (folder / f"{n}").touch()
        return {"a": n}

    assert dict(run(range(20), check, process, reduce_fn=sum)) == {"a": 190}


def test_values_of_which_some_are_missing_are_not_returned_without_a_word(
    cluster: Client,
) -> None:
    def process(n: int) -> dict[str, int]:
        return {"a": 10 // (n - 3)}

    with pytest.raises(at_once_dask.RunFailed) as raised:
        run(range(6), None, process, reduce_fn=lambda values: values / 2)
    with pytest.raises(at_once_dask.RunFailed, match="ZeroDivisionError") as again:
        raised.value.report.reduce(len)
    assert again.value.partial == {"a": 5}
    assert "Next: fix the cause and run the same again" in str(again.value)


def test_a_forked_child_leaves_the_values_to_its_parent(cluster: Client) -> None:
    report = run(range(20), None, large, reduce_fn=fails_for_one, on_error="return").report
    pid = os.fork()
    if pid == 0:
        del report
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert dict(report.reduce(total)) == TOTALS


def test_what_a_difference_asks_for_and_how_it_is_looked_into(
    cluster: Client, folder: Path
) -> None:
    results = Results(folder, as_it_is)
    report = run(range(3), results.check, results.process, reduce_fn=sum, on_error="return").report
    assert "Next: have check_inp give what process_inp returns, or return None" in str(report)
    (position,) = report.failures.index
    (folder / f"{position}.json").unlink()
    with pytest.raises(Exception, match=r"process_inp returned .* and check_inp then gives"):
        report.replay(position)


def test_a_check_inp_without_a_value_is_pointed_out_while_there_is_time(
    cluster: Client, folder: Path
) -> None:
    def check(n: int) -> list[Any]:
        return [(folder / f"{n}").exists(), None]

    def process(n: int) -> dict[str, int]:
        (folder / f"{n}").touch()
        return {"a": n}

    result = run(range(5), check, process, reduce_fn=sum)
    assert dict(result) == {"a": 10}
    (note,) = [line for line in str(result.report).splitlines() if line.startswith("Note: ")]
    assert note.startswith("Note: check_inp returns [True, None] after process_inp has returned a")


def test_the_rest_of_a_reduction_is_named(cluster: Client) -> None:
    with pytest.raises(at_once_dask.RunFailed) as raised:
        run(range(5), None, lambda n: {n: 1 // n}, reduce_fn=sum)
    assert str(raised.value).endswith("\nThe rest is reduced, 4 keys: error.partial")
