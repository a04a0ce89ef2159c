"""What a function does as in a plain loop: asyncio, Dask, processes of its own."""

from __future__ import annotations

import asyncio
import csv
import decimal
import os
import socket
import sys
import time
from typing import Any

import dask.bag
import numpy as np
import pytest
from dask.delayed import delayed
from distributed import Client

import at_once_dask

running = 0


def slow(x: int) -> int:
    time.sleep(0.01)
    return x


def computes(n: int) -> list[tuple[str, int]]:
    global running
    running += 1
    most = running
    total = delayed(sum)([delayed(slow)(x) for x in range(n)]).compute()
    bag = dask.bag.from_sequence(range(1, n + 1), npartitions=2).map(slow).sum().compute()
    most = max(most, running)
    running -= 1
    return [("total", total + bag), ("most", most)]


def test_what_is_computed_with_dask_starts_no_other_input(cluster: Client) -> None:
    result = at_once_dask.run(range(2, 10), None, computes, reduce_fn=list, progress=False)
    assert dict(result) == {"total": [n * n for n in range(2, 10)], "most": [1] * 8}


def test_the_scheduler_somebody_named_is_kept(cluster: Client) -> None:
    def named(n: int) -> dict[str, Any]:
        with dask.config.set(scheduler="threads"):
            return {"sum": delayed(slow)(n).compute()}

    assert dict(at_once_dask.run([1, 2], None, named, reduce_fn=sum, progress=False)) == {"sum": 3}


@pytest.mark.parametrize("closes", [False, True])
def test_a_thread_has_an_event_loop(cluster: Client, closes: bool) -> None:
    async def answer(n: int) -> int:
        await asyncio.sleep(0)
        return n

    def loops(n: int) -> dict[str, int]:
        loop = asyncio.get_event_loop()
        try:
            return {"sum": loop.run_until_complete(answer(n))}
        finally:
            if closes:
                loop.close()

    for n in range(3):
        assert dict(at_once_dask.run([n], None, loops, reduce_fn=sum, progress=False)) == {"sum": n}


def test_asyncio_run_works_in_each_input(cluster: Client) -> None:
    async def answer(n: int) -> int:
        await asyncio.sleep(0)
        return n

    result = at_once_dask.run(
        range(20), None, lambda n: {"sum": asyncio.run(answer(n))}, reduce_fn=sum, progress=False
    )
    assert dict(result) == {"sum": 190}


# ----- what a script sets at its top


def test_settings_that_change_results_go_along(cluster: Client) -> None:
    before = sys.getrecursionlimit(), csv.field_size_limit(), socket.getdefaulttimeout()

    def depth(n: int) -> int:
        return n and 1 + depth(n - 1)

    def found(n: int) -> dict[str, Any]:
        try:
            divided = str(np.float64(1) / np.float64(0))
        except FloatingPointError as error:
            divided = str(error)
        third = str(decimal.Decimal(1) / 3)
        deep = depth(3_000) if sys.getrecursionlimit() > 3_500 else 0
        limits = csv.field_size_limit(), socket.getdefaulttimeout(), deep
        return {"all": (divided, third, limits)}

    try:
        sys.setrecursionlimit(5_000)
        csv.field_size_limit(10**7)
        socket.setdefaulttimeout(77)
        with np.errstate(all="raise"), decimal.localcontext() as context:
            context.prec = 5
            result = at_once_dask.run([1, 2], None, found, reduce_fn=list, progress=False)
    finally:
        sys.setrecursionlimit(before[0])
        csv.field_size_limit(before[1])
        socket.setdefaulttimeout(before[2])
    expected = ("divide by zero encountered in scalar divide", "0.33333", (10**7, 77.0, 3_000))
    assert result["all"] == [expected] * 2
    with np.errstate(all="ignore"):
        (later,) = at_once_dask.run([1], None, found, reduce_fn=list, progress=False)["all"]
    assert later == ("inf", "0.3333333333333333333333333333", (before[1], before[2], 0))


# ----- children of an input


@pytest.mark.parametrize(
    ("ends", "code"), [("returns", 0), ("exits", 3), ("raises", 1), ("exits with words", 1)]
)
def test_a_child_that_an_input_forks_ends_with_it(cluster: Client, ends: str, code: int) -> None:
    def work(n: int) -> dict[str, int]:
        pid = os.fork() if n == 1 else os.getpid()
        if pid == 0:
            if ends == "exits":
                sys.exit(3)
            if ends == "raises":
                raise ValueError("in the child")
            if ends == "exits with words":
                sys.exit("no number")
            return {"child": 1}
        found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if n == 1 else 0
        return {"sum": n, "codes": found}

    result = at_once_dask.run(range(20), None, work, reduce_fn=sum, timeout=20, progress=False)
    assert dict(result) == {"sum": 190, "codes": code}
