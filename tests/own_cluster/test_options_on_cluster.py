"""Options where a cluster runs: what is refused then, and that all that is right is taken."""

from __future__ import annotations

import asyncio
import functools
import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from calls import (
    OTHER_CLIENT,
    check,
    check_logfile_text,
    fetch,
    nothing_started,
    pairs,
    plan,
    process,
    refused,
    run,
    start,
)
from distributed import Client
from helpers import poll_for
from tqdm import tqdm

import at_once_dask
from at_once_dask.report import html


@pytest.fixture
def untouched(folder: Path) -> Iterator[None]:
    with nothing_started(folder):
        yield


def test_other_settings_than_those_in_force(cluster: Client) -> None:
    text = refused(lambda: start(3, dashboard_address="127.0.0.1:0"))
    others = "memory_limit='auto', dashboard_address='127.0.0.1:0'"
    assert text == (
        f"a cluster with n_workers=2, {others} is running; call at_once_dask.close() first, then"
        f" at_once_dask.start(n_workers=3, {others})"
    )
    assert start(2, dashboard_address="127.0.0.1:0") is cluster


def in_process(**client_kwargs: Any) -> Client:
    return Client(
        processes=False,
        n_workers=1,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        set_as_default=False,
        **client_kwargs,
    )


def test_a_client_of_threads_and_a_closed_one(untouched: None) -> None:
    with in_process() as client:
        text = refused(lambda: run([1], check, process, client=client))
        assert text == (
            f"client is of a cluster whose workers are threads of this process{OTHER_CLIENT}"
        )
    text = refused(lambda: run([1], check, process, client=client))
    assert text == f"client is closed{OTHER_CLIENT}"


def test_an_asynchronous_client(untouched: None) -> None:
    async def main() -> str:
        async with in_process(asynchronous=True) as client:
            return refused(lambda: run([1], check, process, client=client))

    assert asyncio.run(main()) == f"client is asynchronous{OTHER_CLIENT}"


def test_a_default_client_of_threads(untouched: None) -> None:
    with in_process() as client, client.as_current():
        text = refused(lambda: run([1], check, process))
    assert text.startswith("client is of a cluster whose workers are threads of this process")


@pytest.mark.parametrize("given", ["no such folder/log.jsonl", "."])
def test_a_logfile_that_cannot_be_written_while_a_cluster_runs(
    cluster: Client, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setattr(at_once_dask, "logfile", given)
    report = at_once_dask.last_report()
    check_logfile_text(refused(lambda: run([1], check, process)), given)
    assert at_once_dask.last_report() is report


def run_on_threads(inputs: Iterable[int], **run_kwargs: Any) -> None:
    with in_process() as client, client.as_current():
        run(inputs, None, process, **run_kwargs)


INSIDE = (
    "run() was called inside one of its own functions; call it after the other run, or do the inner"
    " work with a plain loop: [process(part) for part in parts]"
)


@pytest.mark.parametrize("inner", ["run", "plan"])
@pytest.mark.parametrize("where", ["check_inp", "process_inp", "reduce_fn"])
def test_a_run_inside_a_run(cluster: Client, inner: str, where: str) -> None:
    def nested(inp: Any) -> Any:
        if inner == "run":
            return at_once_dask.run([1], None, abs, progress=False)
        return at_once_dask.plan([1], None, progress=False)

    functions: dict[str, Any] = {"check_inp": None, "process_inp": lambda inp: {1: 1}}
    with pytest.raises(at_once_dask.RunFailed) as failed:
        run([1], **functions | {where: nested}, progress=False)
    failure = failed.value.report.failures.iloc[0]
    assert failure["error"] == "InputError"
    assert failure["message"] == INSIDE
    assert f"1 x InputError in {failure['stage']}" in str(failed.value)
    assert INSIDE in str(failed.value)


def test_a_run_while_another_one_is_going_on(cluster: Client, folder: Path) -> None:
    def wait(inp: Any) -> None:
        (folder / "running").touch()
        while not (folder / "go on").exists():
            pass

    texts: list[str] = []

    def meanwhile() -> None:
        poll_for((folder / "running").exists, "the first run does not run")
        texts.append(refused(lambda: run([1], None, abs)))
        texts.append(refused(lambda: plan([1], None)))
        (folder / "go on").touch()

    thread = threading.Thread(target=meanwhile)
    thread.start()
    report = run([1, 2], None, wait, progress=False)
    thread.join()
    assert report.n_processed == 2
    assert at_once_dask.last_report().run == report.run  # type: ignore[union-attr]
    assert texts == 2 * [
        (
            "run() was called while another run is going on in this process; wait for that one, or"
            " pass both lists in one call, as in run(first + second, check_inp, process_inp)"
        )
    ]
    assert run([1], None, abs, progress=False).ok  # and the next one runs


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "check_inp a bool": (
        {"check_inp": lambda inp: True},
        (
            "check_inp returned True; in a map-reduce run return [is_done, value], for example"
            " `return [path.exists(), json.loads(path.read_text()) if path.exists() else None]`"
        ),
    ),
    "check_inp nothing": (
        {"check_inp": lambda inp: None},
        (
            "check_inp returned None; in a map-reduce run return [is_done, value], for example"
            " `return [path.exists(), json.loads(path.read_text()) if path.exists() else None]`"
        ),
    ),
    "process_inp numbers": (
        {"process_inp": lambda inp: [1, 2]},
        (
            "process_inp returned an iterable with 1 in it; in a map-reduce run return a mapping or"
            " (key, value) pairs, for example `return {key: value}` or `return [(key, value)]`"
        ),
    ),
    "process_inp a number": (
        {"process_inp": lambda inp: 7},
        (
            "process_inp returned 7; in a map-reduce run return a mapping or"
            " (key, value) pairs, for example `return {key: value}` or `return [(key, value)]`"
        ),
    ),
    "process_inp nothing": (
        {"process_inp": lambda inp: None},
        (
            "process_inp returned None and there is no check_inp to ask; in a map-reduce run return"
            " a mapping or (key, value) pairs, for example `return {key: value}` or"
            " `return [(key, value)]`"
        ),
    ),
    "a done input without a value": (
        {"check_inp": lambda inp: [True, None]},
        (
            "check_inp returned [True, None]: in a map-reduce run a done input counts with its"
            " value; return [True, value], with the value that process_inp would give"
        ),
    ),
    "a hidden async def": (
        {"process_inp": lambda inp: fetch(inp)},
        "process_inp returned an awaitable, which nobody awaits; use asyncio.run(...) in it",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_text_of_a_failed_run_shows_what_to_return(cluster: Client, name: str) -> None:
    functions, expected = ANSWERS[name]
    call = {"check_inp": None, "process_inp": process} | functions
    with pytest.raises(at_once_dask.RunFailed) as failed:
        run(range(3), **call, reduce_fn=sum, progress=False)
    assert expected + "\n" in str(failed.value)
    assert "3 x TypeError in" in str(failed.value)
    assert ", inputs 0, 1, 2: " in str(failed.value)


class OldSequence:
    """Nothing but `__getitem__` and `__len__`."""

    def __getitem__(self, index: int) -> str:
        return "abc"[index]

    def __len__(self) -> int:
        return 3


class Word(str):
    pass


class Stream:
    """It has a ``__len__``, and no length."""

    def __init__(self, letters: str, error: Exception) -> None:
        self.letters = letters
        self.error = error

    def __iter__(self) -> Iterator[str]:
        return iter(self.letters)

    def __len__(self) -> int:
        raise self.error


def silent_tqdm(inputs: Iterable[Any]) -> Any:
    kind: Any = type("silent_tqdm", (tqdm,), {"monitor_interval": 0})  # or its thread stays
    return kind(inputs, file=io.StringIO())


FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=["i", "j"])


KINDS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "list": (lambda: ["a", "b"], ["a", "b"]),
    "tuple": (lambda: ("a", "b"), ["a", "b"]),
    "set": (lambda: {"a"}, ["a"]),
    "frozenset": (lambda: frozenset({"a"}), ["a"]),
    "range": (lambda: range(2), [0, 1]),
    "array": (lambda: np.array([1.5, 2.5]), [1.5, 2.5]),
    "matrix": (lambda: np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "Series": (lambda: FRAME["b"], ["x", "y"]),
    "Index": (lambda: FRAME.index, ["i", "j"]),
    "keys": (lambda: {"a": 1}.keys(), ["a"]),
    "values": (lambda: {"a": 1}.values(), [1]),
    "items": (lambda: {"a": 1}.items(), [("a", 1)]),
    "generator": (lambda: (letter for letter in "ab"), ["a", "b"]),
    "map": (lambda: map(str.upper, "ab"), ["A", "B"]),
    "rows": (lambda: FRAME.itertuples(), [("i", 1, "x"), ("j", 2, "y")]),
    "records": (lambda: FRAME.to_dict("records"), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    "old sequence": (lambda: OldSequence(), ["a", "b", "c"]),
    "tqdm": (lambda: silent_tqdm(["a", "b"]), ["a", "b"]),
    "tqdm of a generator": (lambda: silent_tqdm(letter for letter in "ab"), ["a", "b"]),
    "no length": (lambda: Stream("ab", TypeError("no len()")), ["a", "b"]),
    "no length known": (lambda: Stream("ab", NotImplementedError()), ["a", "b"]),
    "nothing, of no length": (lambda: Stream("", TypeError("no len()")), []),
    "str": (lambda: ["a.txt"], ["a.txt"]),
    "paths": (lambda: [Path("a.txt")], [Path("a.txt")]),
    "mixed": (lambda: [None, "a", b"b", Path("c")], [None, "a", b"b", Path("c")]),
    "subclass": (lambda: [Word("a")], ["a"]),
    "file": (lambda: open("lines"), ["one\n", "two\n"]),  # noqa: SIM115  the test closes it
}


@pytest.mark.parametrize("name", KINDS)
def test_lists_of_every_kind(cluster: Client, folder: Path, name: str) -> None:
    (folder / "lines").write_text("one\ntwo\n")
    make, expected = KINDS[name]

    def keep(inp: Any) -> list[tuple[str, Any]]:
        return [("all", inp.tolist() if hasattr(inp, "tolist") else inp)]

    for do_shuffle in (False, True):
        inputs = make()
        result = run(inputs, None, keep, do_shuffle, list, progress=False)
        if hasattr(inputs, "close"):
            inputs.close()
        found = result.get("all", [])
        assert result.report.n_inputs == len(expected)
        if do_shuffle:
            assert sorted(found, key=repr) == sorted(expected, key=repr)
        else:
            assert found == expected


@pytest.mark.parametrize("error", [TypeError("no len()"), NotImplementedError(), ValueError()])
def test_a_plan_and_the_words_for_a_list_of_no_length(cluster: Client, error: Exception) -> None:
    found = plan(Stream("abc", error), lambda letter: [letter < "c", None], progress=False)
    assert (found.n_inputs, found.pending) == (3, ["c"])
    report = run(Stream("abc", error), None, print, progress=False)
    assert report.n_inputs == 3
    assert ">Stream<" in re.sub(r"\s+", "", html.page(report._summary))


def test_rows_of_a_frame_keep_their_names(cluster: Client) -> None:
    sums = run(FRAME.itertuples(), None, lambda row: {row.b: row.a}, reduce_fn=sum, progress=False)
    assert sums == {"x": 1, "y": 2}


def test_the_order_of_the_arguments_is_that_of_the_older_library(cluster: Client) -> None:
    inp_list, do_shuffle, reduce_fn = [3, 1, 2], False, list

    def check_inp(inp: int) -> list[Any]:
        return [inp == 1, {"all": -1}]

    def process_inp(inp: int) -> dict[str, int]:
        return {"all": inp}

    assert run(inp_list, check_inp, process_inp, do_shuffle, reduce_fn) == {"all": [3, -1, 2]}


class Job:
    """Callables that are no functions."""

    def __call__(self, inp: int) -> dict[str, int]:
        return {"n": inp}

    @classmethod
    def make(cls, inp: int) -> dict[str, int]:
        return {"n": inp}

    def method(self, inp: int) -> dict[str, int]:
        return {"n": inp}


@pytest.mark.parametrize(
    "function",
    [Job(), Job.make, Job().method, functools.partial(Job().method), lambda inp: {"n": inp}],
)
def test_callables_of_every_kind(cluster: Client, function: Any) -> None:
    assert run([1, 2], None, function, reduce_fn=np.sum, progress=False) == {"n": 3}


def test_a_class_whose_objects_are_async_is_no_async_function(cluster: Client) -> None:
    assert run([1, 2], None, FetcherOf, progress=False).ok


class FetcherOf:
    def __init__(self, inp: int) -> None:
        self.inp = inp

    async def __call__(self) -> None:
        pass


def test_flags_of_every_kind(cluster: Client) -> None:
    for yes, no in ((True, False), (1, 0), (np.True_, np.False_)):
        assert run([1, 2], None, process, yes, progress=no).ok
        assert run([1, 2], None, process, no, progress=no).ok
        assert plan([1, 2], None, progress=no).n_pending == 2


def test_seeds_of_every_kind(cluster: Client) -> None:
    def shuffled(seed: Any) -> Any:
        return run(range(20), None, lambda n: {1: n}, True, list, progress=False, random_state=seed)

    for seed in (0, 1.5, "seed", b"seed", bytearray(b"seed"), np.float64(2.5)):
        first = shuffled(seed)
        assert first == shuffled(seed)
        assert sorted(first[1]) == list(range(20)) != first[1]


def test_a_generator_function_in_a_map_reduce_run(cluster: Client) -> None:
    assert run([1, 2], None, pairs, reduce_fn=sum, progress=False) == {"n": 2}


@pytest.mark.parametrize("do_shuffle", [False, True])
def test_nothing_is_drawn_before_a_default_client_is_known_to_do(
    untouched: None, do_shuffle: bool
) -> None:
    inputs = iter(range(3))
    refused(lambda: run_on_threads(inputs, do_shuffle=do_shuffle))
    assert list(inputs) == [0, 1, 2]
