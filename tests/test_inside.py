"""What a function does as in a plain loop: asyncio, Dask, processes of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import dask.bag
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
