"""A cluster of several hosts: nothing but the network and one folder is common to them."""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import pytest
from dask_processes import by_value, client_of
from distributed import Client
from helpers import oracle, poll_for, same
from hosts import Hosts, hosts, why_not

import at_once_dask
from at_once_dask.driver.hosts import IN_A_ROW
from at_once_dask.protocol.task import host_of

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

N_HOSTS = 3
WORKERS = 2  # on each host


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    with by_value(helpers, sys.modules[__name__]):
        yield


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts with workers; the scheduler runs beside the driver."""
    with hosts(N_HOSTS, tmp_path_factory.mktemp("hosts")) as net:
        net.scheduler()
        for host in range(1, N_HOSTS + 1):
            net.worker(host, nworkers=WORKERS)
        yield net


@pytest.fixture(scope="module")
def module_client(net: Hosts) -> Iterator[Client]:
    with client_of(net.scheduler_file, set_as_default=False) as client:
        client.wait_for_workers(N_HOSTS * WORKERS, timeout=60)
        yield client


@pytest.fixture
def client(module_client: Client) -> Client:
    """The Client of that cluster, which has all its workers."""
    module_client.wait_for_workers(N_HOSTS * WORKERS, timeout=60)
    return module_client


def run(client: Client, inputs: range, process: Callable[[int], Any], **run_kwargs: Any) -> Any:
    """A run without progress bar, in which nothing is done yet."""
    return at_once_dask.run(
        inputs, None, process, client=client, progress=False, on_error="return", **run_kwargs
    )


def pairs_of(n: int) -> list[tuple[str, int]]:
    if n % 50 == 7:
        raise ValueError(f"no {n}")
    return [("all", n), (f"{n % 3}", n)]


def words_of(n: int) -> list[tuple[str, int]]:
    """The words of a line of text."""
    return [(f"word {n * place % 97}", 1) for place in range(20)]


def test_files(net: Hosts, client: Client) -> None:
    """The files in the common folder are those of a plain loop, and all hosts made them."""
    there = net.shared

    def square(n: int) -> None:
        time.sleep(0.005)
        with at_once_dask.atomic_write(there / f"{n}.txt") as file:
            file.write(f"{n * n} {platform.node()}")

    assert run(client, range(400), square).ok
    found = {int(path.stem): path.read_text().split() for path in there.glob("*.txt")}
    assert {n: int(text) for n, (text, _) in found.items()} == {n: n * n for n in range(400)}
    assert {host for _, (_, host) in found.items()} == {"host1", "host2", "host3"}
    report = at_once_dask.run(
        range(400),
        lambda n: [(there / f"{n}.txt").exists(), None],
        square,
        client=client,
        progress=False,
    )
    assert report.n_skipped == 400


def test_nothing_else_is_common(net: Hosts, client: Client, folder: Path) -> None:
    """The driver's folder is seen by no worker, and each host has a `/tmp` of its own."""
    assert not any(client.run(lambda: folder.exists()).values())

    def mark() -> list[str]:
        Path("/tmp", platform.node()).touch()
        return [path.name for path in Path("/tmp").glob("host[0-9]")]

    client.run(mark)
    assert all(len(names) == 1 for names in client.run(mark).values())


def test_map_reduce(client: Client) -> None:
    reduced = run(client, range(400), pairs_of, reduce_fn=list)
    assert same(reduced, oracle(range(400), pairs_of, list))
    assert list(reduced.report.failures["input"]) == [n for n in range(400) if n % 50 == 7]


def test_a_segfault(client: Client) -> None:
    """Only the input that did it is named."""

    def process(n: int) -> None:
        if n == 123:
            ctypes.string_at(0)

    report = run(client, range(400), process)
    failures = report.failures[["input", "kind", "exit"]]
    assert failures.values.tolist() == [[123, "crash", "SIGSEGV"]]
    assert report.n_processed == 399


def test_a_timeout(client: Client) -> None:
    """Only the input that takes too long is named."""
    report = run(client, range(40), lambda n: time.sleep(30 if n == 17 else 0), timeout=1)
    assert report.failures[["input", "kind"]].values.tolist() == [[17, "timeout"]]
    assert report.n_processed == 39


def test_log(client: Client) -> None:
    """What 100 inputs say in three ways is in the driver's log, each with its input."""

    def say(n: int) -> None:
        print(f"printed {n}")
        logging.getLogger("here").warning(f"warned {n}")
        at_once_dask.log(f"logged {n}")

    report = run(client, range(100), say)
    log = at_once_dask.read_log(run=report.run)
    for level, words in [("STDOUT", "printed"), ("WARNING", "here: warned"), ("INFO", "logged")]:
        said = log[log["level"] == level]
        assert sorted(said["index"]) == list(range(100)), level
        assert list(said["input"]) == [f"{n}" for n in said["index"]]
        assert list(said["msg"]) == [f"{words} {n}" for n in said["index"]]
        assert set(said["worker"]) <= {*client.nthreads()}


@pytest.mark.parametrize("retries", [0, 1])
def test_a_host_that_fails_everything(net: Hosts, client: Client, retries: int) -> None:
    """It would eat the list; so it gets nothing more, and further attempts go elsewhere."""

    def process(n: int) -> None:
        if platform.node() == "host2":
            raise OSError("no disk here")
        time.sleep(0.005)

    report = run(client, range(2_000), process, retries=retries)
    note = "host2 gets nothing more: "
    assert note in report.summary()
    if retries:
        assert report.ok
        return
    failures, (cause,) = report.failures, report.causes.to_dict("records")
    assert IN_A_ROW <= len(failures) <= 6 * IN_A_ROW  # some partitions were on their way
    assert set(failures["host"]) == {cause["host"]} == {"host2"}
    assert f"{len(failures)} x OSError in process at" in report.summary()
    assert ", all on host2, " in report.summary()


def test_neighbours_in_the_list_that_fail_are_no_bad_host(net: Hosts, client: Client) -> None:
    def process(n: int) -> None:
        if 300 <= n < 900:
            raise ValueError("a bad part of the list")
        time.sleep(0.005)

    report = run(client, range(2_000), process)
    assert list(report.failures.index) == list(range(300, 900))
    assert set(report.items["worker"][1_500:].map(host_of)) == {net.address(n) for n in (1, 2, 3)}


@pytest.mark.thorough
def test_a_slow_network(net: Hosts, client: Client) -> None:
    """20 ms each way cost less than a third of the time: some six round trips a run."""

    def seconds(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def sleeps() -> None:
        assert run(client, range(4_000), lambda n: time.sleep(0.001)).ok

    def words() -> None:
        reduced = run(client, range(4_000), words_of_file, reduce_fn=sum)
        assert same(reduced, expected)

    def words_of_file(n: int) -> list[tuple[str, int]]:
        time.sleep(0.001)  # as if it was read
        return words_of(n)

    expected = oracle(range(4_000), words_of, sum)
    for work in (sleeps, words):
        fast = min(seconds(work) for _ in range(3))
        net.delay(0.02)
        try:
            slow = min(seconds(work) for _ in range(3))
        finally:
            net.delay(0)
        assert slow <= 1.3 * fast, (work.__name__, slow, fast)


@pytest.mark.thorough
def test_a_host_that_is_lost(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No input is lost with it."""
    timeout = "11s"  # without an answer, and a host is gone; the least that Dask takes
    with hosts(2, tmp_path_factory.mktemp("lost")) as net:
        net.scheduler(DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=timeout)
        for host in (1, 2):
            net.worker(host, nworkers=WORKERS, DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=timeout)
        works = net.shared / "host2 works"

        def process(n: int) -> list[tuple[str, int]]:
            if n >= 100 and platform.node() == "host2":
                works.touch()
                time.sleep(600)  # until its host is lost
            time.sleep(0.005)
            return pairs_of(n)

        def lose() -> None:
            poll_for(works.exists, "host2 does nothing", seconds=60)
            net.lose(2)

        with client_of(net.scheduler_file, set_as_default=False) as client:
            client.wait_for_workers(2 * WORKERS, timeout=60)
            with ThreadPoolExecutor(1) as pool:
                lost = pool.submit(lose)
                reduced = run(client, range(1, 400, 2), process, reduce_fn=list)
                lost.result()
    assert same(reduced, oracle(range(1, 400, 2), pairs_of, list))
