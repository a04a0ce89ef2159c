"""Many deaths, anywhere: exactly the guilty are named, and nothing is lost or run a third time."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import deaths
import helpers
import pytest
from dask_processes import by_value, client_of, dask_command
from distributed import Client
from helpers import oracle, poll_for, same
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import at_once_dask
from at_once_dask.driver.stop_rule import BARREN_DEATHS
from at_once_dask.worker import last_stack

run: Any = at_once_dask.run  # what it gives depends on what is passed here

DEADLY = (deaths.os_exit, deaths.sigkill, deaths.segfault, deaths.abort)


def note(log: Path, inp: Any) -> None:
    """One line, one write: it is there when the process dies next."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{inp} {time.time()}\n".encode())
    os.close(descriptor)


def noted(log: Path) -> list[tuple[int, float]]:
    """Which inputs were begun, and when."""
    lines = log.read_text().splitlines()
    return [(int(inp), float(when)) for inp, when in (line.split() for line in lines)]


def counts(log: Path) -> Counter[int]:
    """How often each input was begun."""
    return Counter(inp for inp, _ in noted(log))


def dying(log: Path, fatal: Iterable[int]) -> Callable[[int], list[tuple[str, int]]]:
    """A `process_inp` that gives pairs, and dies of some inputs, each in another way."""
    ways = dict(zip(sorted(fatal), DEADLY * 20, strict=False))

    def process(inp: int) -> list[tuple[str, int]]:
        note(log, inp)
        if inp in ways:
            ways[inp]()
        return pairs(inp)

    return process


def pairs(inp: int) -> list[tuple[str, int]]:
    return [("all", inp), (f"{inp % 3}", inp)]


def without(fatal: Iterable[int], n: int) -> dict[str, list[int]]:
    left = sorted(set(range(n)).difference(fatal))
    return oracle(left, pairs, list)


# ----- clusters: the own one, and what `dask worker` starts


@contextlib.contextmanager
def of_dask(folder: Path, *options: str) -> Iterator[Client]:
    """A cluster of two workers, started from the command line."""
    path = folder / "scheduler.json"
    with dask_command("scheduler", path, "--port", "0"):
        # Workers that are forked are replaced in a tenth of the time.
        forked = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"}
        with dask_command("worker", path, "--nworkers", "2", *options, **forked):
            with client_of(path, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
                yield client


PLACES = {
    "spread": [17 + 120 * n for n in range(8)],
    "first and last": [0, 1, *range(498, 502), 998, 999],
    "together": list(range(600, 608)),
    "twenty": [17 + 49 * n for n in range(20)],
}


@pytest.mark.parametrize(
    ("where", "reducing"),
    [
        ("spread", True),
        pytest.param("first and last", False, marks=pytest.mark.thorough),
        pytest.param("together", True, marks=pytest.mark.thorough),
        pytest.param("twenty", True, marks=pytest.mark.slow),
    ],
)
def test_some_of_a_thousand(cluster: Client, folder: Path, where: str, reducing: bool) -> None:
    check_some_of_a_thousand(None, folder, PLACES[where], reducing)
    if not reducing:  # what was passed stays done, without its value
        assert max(counts(folder / "begun").values()) == 1


@pytest.mark.thorough
@pytest.mark.parametrize(("n_threads", "reducing"), [(1, True), (2, False)])
def test_some_of_a_thousand_elsewhere(folder: Path, n_threads: int, reducing: bool) -> None:
    """Workers of others have one thread, or two."""
    with by_value(deaths, helpers, sys.modules[__name__]):
        with of_dask(folder, "--nthreads", str(n_threads)) as borrowed:
            check_some_of_a_thousand(borrowed, folder, PLACES["spread"], reducing)


def check_some_of_a_thousand(
    client: Client | None, folder: Path, fatal: list[int], reducing: bool
) -> None:
    result = run(
        range(1_000),
        None,
        dying(folder / "begun", fatal),
        reduce_fn=list if reducing else None,
        on_error="return",
        client=client,
        progress=False,
    )
    report = result.report if reducing else result
    assert report.failures.index.tolist() == fatal, str(report)
    assert set(report.failures["kind"]) == {"crash"}
    expected_exits = ["exit 3", "SIGKILL", "SIGSEGV", "SIGABRT"] * 5
    assert report.failures["exit"].tolist() == expected_exits[: len(fatal)]
    assert (report.n_processed, report.n_left) == (1_000 - len(fatal), 0)
    begun = counts(folder / "begun")
    assert len(begun) == 1_000
    assert max(begun.values()) <= 2
    if reducing:
        assert same(dict(result), without(fatal, 1_000))


@pytest.mark.thorough
@pytest.mark.parametrize("n", [BARREN_DEATHS + 2, pytest.param(50, marks=pytest.mark.slow)])
def test_all_of_them(cluster: Client, folder: Path, n: int) -> None:
    report = run(
        range(n), None, dying(folder / "begun", range(n)), on_error="return", progress=False
    )

    assert report.failures.index.tolist() == list(range(n))
    assert report.seconds < 2 * n


def test_max_failures_ends_it_early(cluster: Client, folder: Path) -> None:
    with pytest.raises(at_once_dask.RunStopped, match="more than max_failures=3 allows") as stopped:
        run(
            range(1_000),
            None,
            dying(folder / "begun", range(1_000)),
            max_failures=3,
            on_error="return",
            progress=False,
        )

    report = stopped.value.report
    assert 4 <= report.n_failed <= 6
    assert report.n_failed + report.n_left == 1_000


def test_what_was_delivered_is_not_made_again(cluster: Client, folder: Path) -> None:
    """What ran long before the death had reached the driver; a partition takes half a second.

    Which worker gets which inputs when is not known: so the one that is the 171st to begin is the
    fatal one. In the 1.5 s before, two workers begin 100 at most.
    """
    log, fatal = folder / "begun", folder / "fatal"

    def process(inp: int) -> list[tuple[str, int]]:
        time.sleep(0.03)  # so that there are many partitions
        note(log, inp)
        with contextlib.suppress(FileExistsError):
            if len(noted(log)) > 170:
                with fatal.open("x") as file:
                    file.write(f"{inp} {time.time()}")
                os._exit(3)
        if fatal.exists() and fatal.read_text().startswith(f"{inp} "):
            os._exit(3)
        return pairs(inp)

    result = run(range(200), None, process, reduce_fn=list, on_error="return", progress=False)

    culprit, died = fatal.read_text().split()
    assert same(dict(result), without([int(culprit)], 200))
    early = {inp for inp, when in noted(log) if when < float(died) - 1.5}
    assert len(early) > 50
    assert {counts(log)[inp] for inp in early} == {1}


def test_no_worker_stops_for_another_ones_time_limit(cluster: Client, folder: Path) -> None:
    def process(inp: int) -> None:
        note(folder / "begun", inp)
        if inp == 0:
            deaths.hang_in_c()
        time.sleep(0.01)

    report = run(range(150), None, process, timeout=1, on_error="return", progress=False)

    assert report.failures.index.tolist() == [0]
    assert 1 <= report.failures.loc[0, "seconds"] < 2
    hung = dict(noted(folder / "begun"))[0]
    meanwhile = [when for inp, when in noted(folder / "begun") if hung < when < hung + 1]
    assert len(meanwhile) > 20


def test_a_worker_on_a_busy_machine_has_the_time_to_tell_where_it_hangs(
    cluster: Client, folder: Path
) -> None:
    def process(inp: int) -> None:
        with at_once_dask.atomic_write(folder / "pid") as file:
            file.write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        deaths.hang()

    def resume() -> None:
        """A fifth of a second after it was asked."""
        poll_for((folder / "pid").exists, "the input has not begun")
        pid = int((folder / "pid").read_text())
        poll_for(lambda: is_pending(pid, last_stack.ASK), "it is not asked")
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)

    with ThreadPoolExecutor(1) as pool:
        resumed = pool.submit(resume)
        report = run([0], None, process, timeout=1, on_error="return", progress=False)
        resumed.result()

    failure = report.failures.loc[0]
    assert failure["kind"] == "timeout"
    assert "in process\n" in failure["traceback"]


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal waits for a process to go on."""
    pending = re.search(r"^ShdPnd:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return pending is not None and bool(int(pending[1], 16) >> (number - 1) & 1)


def test_a_healthy_input_may_hold_the_gil(folder: Path) -> None:
    """Own workers are not given up for being silent, as Dask does after its `worker-ttl`."""
    import dask

    at_once_dask.close()
    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}):
        at_once_dask.start(1, dashboard_address="127.0.0.1:0")
        try:
            report = run([3], None, hold_the_gil, progress=False)
            assert report.ok
        finally:
            at_once_dask.close()


def test_what_waits_behind_an_input_that_holds_the_gil_runs_elsewhere(
    cluster: Client, folder: Path
) -> None:
    """No question reaches such a worker; what it has not started is seen and taken in its file."""

    def process(inp: int) -> None:
        if inp == 0:
            hold_the_gil(3)
        note(folder / "done", inp)

    report = run(range(400), None, process, progress=False)

    assert report.ok
    assert counts(folder / "done") == Counter(range(400))
    assert noted(folder / "done")[-1][0] == 0


def hold_the_gil(seconds: int) -> None:
    import ctypes

    ctypes.PyDLL(None).sleep(seconds)


@pytest.mark.thorough
def test_the_functions_themselves_end_every_worker(cluster: Client) -> None:
    """No input is blamed for it, and the run does not try for ever."""

    def process(inp: int) -> None:
        pass

    class Deadly:
        def __call__(self, inp: int) -> None:
            pass

        def __reduce__(self) -> Any:
            return deaths.segfault, ()

    with pytest.raises(
        at_once_dask.RunStopped, match="before they had started any input"
    ) as stopped:
        run(range(10), None, Deadly(), progress=False)

    assert stopped.value.report.n_left == 10
    assert "SIGSEGV" in stopped.value.reason
    assert run(range(10), None, process, progress=False).ok


# ----- everything at once

FATES = ("fine", "done", "fails", "dies", "fails once", "dies once", "fails in check", "unsendable")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[str], int, bool]:
    """What befalls each input, how many retries there are, and whether values are combined."""
    odd = st.sampled_from(FATES)
    fates = draw(
        st.lists(st.one_of(st.just("fine"), st.just("fine"), odd), min_size=1, max_size=40)
    )
    return fates, draw(st.integers(0, 2)), draw(st.booleans())


@pytest.mark.thorough
@pytest.mark.parametrize("n_worlds", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_a_reduction_through_it_all(
    cluster: Client, tmp_path_factory: pytest.TempPathFactory, n_worlds: int
) -> None:
    """Deaths, failures, retries and a resume: the oracle's result over those that succeeded."""

    @given(world=worlds())
    @settings(
        max_examples=n_worlds,
        deadline=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def in_any(world: tuple[list[str], int, bool]) -> None:
        check_world(tmp_path_factory.mktemp("world"), *world)

    in_any()


def check_world(folder: Path, fates: list[str], retries: int, combining: bool) -> None:
    at_once_dask.logfile = folder / "log.jsonl"
    check, process = befalling(folder, fates)
    how = {"combine_fn": add} if combining else {"reduce_fn": join}

    call = partial(
        run,
        range(len(fates)),
        check,
        process,
        on_error="return",
        retries=retries,
        progress=False,
        **how,
    )

    first = call()
    fatal = {n for n, fate in enumerate(fates) if is_fatal(fate, retries)}
    assert first.report.failures.index.tolist() == sorted(fatal), fates
    assert first.report.n_left == 0
    assert same(dict(first), told_by_oracle(set(range(len(fates))) - fatal))
    for n in fatal:
        kind = first.report.failures.loc[n, "kind"]
        assert kind == ("crash" if fates[n].startswith("dies") else "exception")
        assert first.report.failures.loc[n, "attempts"] == retries + 1

    (folder / "fixed").touch()
    assert same(dict(call()), told_by_oracle(set(range(len(fates)))))


def told_by_oracle(inputs: set[int]) -> dict[Any, Any]:
    return oracle(sorted(inputs), texts, join)


def texts(inp: int) -> list[tuple[str, str]]:
    return [(f"{inp % 3}", f"<{inp}>"), ("all", f"<{inp}>")]


def add(a: str, b: str) -> str:
    """Associative, and not commutative."""
    return a + b


def join(values: list[str]) -> str:
    return "".join(values)


def is_fatal(fate: str, retries: int) -> bool:
    return fate in ("fails", "dies", "fails in check", "unsendable") or (
        "once" in fate and not retries
    )


def befalling(folder: Path, fates: list[str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`check_inp` and `process_inp` in which each input meets its fate, until there is `fixed`."""

    def check(inp: int) -> list[Any]:
        if fates[inp] == "fails in check" and not (folder / "fixed").exists():
            raise ValueError(inp)
        is_done = fates[inp] == "done" or (folder / f"{inp}.done").exists()
        return [is_done, texts(inp)]

    def process(inp: int) -> Any:
        fate = fates[inp]
        before = folder / f"{inp}.before"
        first = not before.exists()
        before.touch()
        if not (folder / "fixed").exists() and ("once" not in fate or first):
            if fate.startswith("fails"):
                raise ValueError(inp)
            if fate.startswith("dies"):
                deaths.sigkill()
            if fate == "unsendable":
                return [("0", "never seen"), ("1", threading.Lock())]
        (folder / f"{inp}.done").touch()
        return texts(inp)

    return check, process


def test_an_error_that_dask_could_mean_is_taken_for_the_functions(
    cluster: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their module raises FileExistsError on the workers; the run does not try for ever."""
    module = folder / "makes_a_folder.py"
    module.write_text("import os\nos.makedirs('out')\ndef process(inp): pass\n")
    monkeypatch.syspath_prepend(str(folder))
    makes_a_folder = importlib.import_module("makes_a_folder")
    with pytest.raises(at_once_dask.AtOnceError, match="FileExistsError"):
        run(range(10), None, makes_a_folder.process, progress=False)


def test_a_check_that_dies_in_a_plan(cluster: Client) -> None:
    def check(inp: int) -> list[Any]:
        if inp == 3:
            deaths.segfault()
        return [inp % 2 == 0, None]

    plan = at_once_dask.plan(range(6), check, progress=False)
    assert plan.pending == [1, 5]
    assert plan.failures[["input", "stage", "exit"]].values.tolist() == [[3, "check", "SIGSEGV"]]


def test_deaths_in_a_shuffled_generator(cluster: Client, folder: Path) -> None:
    fatal = [3, 50, 97]
    result = run(
        (n for n in range(100)),
        None,
        dying(folder / "begun", fatal),
        True,
        list,
        random_state=1,
        on_error="return",
        progress=False,
    )
    assert result.report.failures.index.tolist() == fatal
    assert sorted(result["all"]) == sorted(set(range(100)).difference(fatal))
