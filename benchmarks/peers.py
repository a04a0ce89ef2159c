"""The tools that benchmarks/speed.py compares, each used as its documentation shows.

A tool is a context manager: it imports what it needs, starts its workers, and gives a function that
does one `Work` and returns an `Outcome`. All use one worker process a core. Pools are forked, which
is the fastest start and costs them nothing later.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import math
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORKERS = os.cpu_count() or 1
CHUNKS = 4  # for each worker, as Pool.map cuts them
PARTITIONS = 8  # for each worker, of a bag
IMAP_CHUNK = 1000  # where Pool.imap is given one


@dataclass(frozen=True)
class Work:
    """What is to be done, once for all tools.

    A map-reduce names `reduce_fn` or `combine_fn` for at_once_dask, `gather` for tools that have no
    such thing, which folds all results in the parent, and `foldby` for a bag.
    """

    function: Callable[[Any], Any]
    inputs: Iterable[Any]
    n: int
    expected: Any = None  # the list of values in order, or the dict; None: they are not known
    check_inp: Callable[[Any], list[Any]] | None = None  # says done for every input
    plain: Callable[[Any], Any] | None = None  # `function` for tools that cannot send a lambda
    reduce_fn: Callable[[list[Any]], Any] | None = None
    combine_fn: Callable[[Any, Any], Any] | None = None
    gather: Callable[[Iterable[dict[Any, Any]]], dict[Any, Any]] | None = None
    foldby: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a tool has done: `count` inputs, with these `values` if it hands them over."""

    count: int
    values: Any = None
    report: Any = None  # of at_once_dask
    seconds: float | None = None  # where only a part is to be timed

    @property
    def durations(self) -> list[float]:
        """How long each input took, where the function returns that."""
        return self.values if self.report is None else self.report.items["seconds"].tolist()

    def check(self, work: Work) -> None:
        """What is quick and wrong is worth nothing."""
        if self.count != work.n:
            raise ValueError(f"{self.count} of {work.n} inputs are done")
        if self.report is not None and work.check_inp is not None:
            if self.report.n_skipped != work.n:
                raise ValueError(f"{self.report.n_skipped} of {work.n} inputs were skipped")
        if self.values is not None and work.expected is not None:
            if self.values != work.expected:
                raise ValueError("the values are wrong")


Use = Callable[[Work], Outcome]
Opening = Iterator[Use]


def by_values(
    mapped: Callable[[Callable[[Any], Any], Any], Iterable[Any]], lambdas: bool = False
) -> Use:
    """For a tool that maps a function over inputs and gives the values."""

    def use(work: Work) -> Outcome:
        function = work.function if lambdas else work.plain or work.function
        values = list(mapped(function, work.inputs))
        return Outcome(len(values), values if work.gather is None else work.gather(values))

    return use


# The tools. Each is imported where it is used: a cell has no modules of the others.


@contextmanager
def at_once() -> Opening:
    import at_once_dask

    at_once_dask.logfile = str(Path.cwd() / "log.jsonl")  # each cell has a folder of its own
    # The dashboard's usual port may be taken.
    at_once_dask.start(WORKERS, dashboard_address="127.0.0.1:0")
    try:
        yield _at_once_run
    finally:
        at_once_dask.close()


def _at_once_run(work: Work) -> Outcome:
    import at_once_dask

    result: Any = at_once_dask.run(
        work.inputs,
        work.check_inp,
        work.function,
        reduce_fn=work.reduce_fn,
        combine_fn=work.combine_fn,
        progress=False,
    )
    map_only = work.gather is None
    report = result if map_only else result.report
    values = None if map_only else result  # a map-only run drops what the function returns
    return Outcome(report.n_processed + report.n_skipped, values, report)


@contextmanager
def pool() -> Iterator[Any]:
    with multiprocessing.get_context("fork").Pool(WORKERS) as opened:
        yield opened


@contextmanager
def pool_imap() -> Opening:
    with pool() as opened:
        yield by_values(opened.imap)


@contextmanager
def pool_imap_chunks() -> Opening:
    """The values are counted and dropped, as they come: there may be too many to keep."""
    with pool() as opened:
        yield lambda work: Outcome(
            sum(1 for _ in opened.imap(work.function, work.inputs, IMAP_CHUNK))
        )


@contextmanager
def pool_map() -> Opening:
    with pool() as opened:
        yield by_values(opened.map)


@contextmanager
def executor() -> Opening:
    """Left alone it sends inputs one by one; its chunks are those of Pool.map."""
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=fork) as opened:
        yield by_values(
            lambda function, inputs: opened.map(
                function, inputs, chunksize=math.ceil(len(inputs) / (CHUNKS * WORKERS))
            )
        )


@contextmanager
def joblib_parallel() -> Opening:
    from joblib import Parallel, delayed

    with Parallel(n_jobs=WORKERS) as parallel:
        yield by_values(lambda function, inputs: parallel(delayed(function)(inp) for inp in inputs))


@contextmanager
def mpire_map() -> Opening:
    from mpire import WorkerPool

    with WorkerPool(WORKERS, start_method="fork", keep_alive=True) as opened:
        yield by_values(opened.map)


@contextmanager
def dask_client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def dask_bag() -> Opening:
    with dask_client():
        yield _bag_compute


def _bag_compute(work: Work) -> Outcome:
    """`filter` stands for leaving out what is done."""
    import dask.bag

    bag = dask.bag.from_sequence(work.inputs, npartitions=PARTITIONS * WORKERS)
    values = bag.filter(_is_pending).map(work.function)
    if work.foldby is None:
        found = values.compute()
        return Outcome(len(found), found)
    pairs = values.map(_items).flatten().foldby(_first, **work.foldby)
    return Outcome(work.n, dict(pairs.compute()))


def _is_pending(inp: Any) -> bool:
    return True


def _items(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return list(mapping.items())


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


@contextmanager
def client_map() -> Opening:
    """Not `pure`: no time goes into hashing the inputs, and nothing is taken from a run before."""
    with dask_client() as client:
        yield by_values(
            lambda function, inputs: client.gather(client.map(function, inputs, pure=False)),
            lambdas=True,
        )


@contextmanager
def pickle_there_and_back() -> Opening:
    """No tool, but what any tool must do at least: one process pickles the values and unpickles."""
    yield _pickled


def _pickled(work: Work) -> Outcome:
    values = [work.function(inp) for inp in work.inputs]
    begin = time.perf_counter()
    back = [pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)) for value in values]
    seconds = time.perf_counter() - begin
    return Outcome(len(back), back if work.gather is None else work.gather(back), seconds=seconds)


@dataclass(frozen=True)
class Peer:
    """A tool by its name, the module it needs, and whose version is told."""

    name: str
    open: Callable[[], AbstractContextManager[Use]]
    module: str = "multiprocessing"

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


PEERS = {
    "at_once_dask": Peer("at_once_dask", at_once, "at_once_dask"),
    "pool-imap": Peer("Pool.imap, one by one", pool_imap),
    "pool-imap-1000": Peer(f"Pool.imap, chunks of {IMAP_CHUNK}", pool_imap_chunks),
    "pool-map": Peer("Pool.map", pool_map),
    "executor": Peer("ProcessPoolExecutor.map, chunks", executor),
    "joblib": Peer("joblib.Parallel", joblib_parallel, "joblib"),
    "mpire": Peer("mpire.WorkerPool.map", mpire_map, "mpire"),
    "dask-bag": Peer("dask.bag", dask_bag, "distributed"),
    "client-map": Peer("Dask, Client.map", client_map, "distributed"),
    "client-submit": Peer("Dask, a Client and one submit", client_map, "distributed"),
    "pickle": Peer("pickle there and back", pickle_there_and_back),
}


def versions() -> dict[str, str]:
    names = ("at_once_dask", "dask", "distributed", "joblib", "mpire")
    return {name: version(name) for name in names if importlib.util.find_spec(name) is not None}
