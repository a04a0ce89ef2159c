"""Private parts of Dask, and of `multiprocessing` below it, that the driver leans on.

Each says what breaks without it; ``tests/unit/cluster/test_dask_internals.py`` fails when it
changes. What the worker leans on is in ``worker/dask_internals.py``.
"""

from __future__ import annotations

import asyncio
import multiprocessing.process
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import distributed.utils
from distributed import CancelledError, Client, Future, LocalCluster, Nanny
from distributed.comm.core import CommClosedError
from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.scheduler import KilledWorker

from at_once_dask.cluster.forkserver import WORKER_PROCESS

FORGET_SECONDS = 5.0  # for workers and nannies to forget a run

# How a future says that the worker of its task is gone: without these a death breaks the run.
LOST = (KilledWorker, CancelledError, CommClosedError)

GIVEN_UP = (Status.failed, Status.closed)  # of a nanny: it will start no worker any more


def import_nothing_to_find_out() -> None:
    """Without this the driver imports NumPy and pandas, to see whether workers can."""
    distributed.utils._forkserver_preload_set = True


def stop_loop(opened: Client | LocalCluster) -> None:
    """Without this the thread of an event loop stays, when its other half was closed before."""
    opened._loop_runner.stop()


def client_address(cluster: LocalCluster) -> str:
    """Without this the client takes the scheduler's socket and TLS, though both are here."""
    scheduler = cluster.scheduler
    assert scheduler is not None
    _, for_client = scheduler.listeners
    address: str = for_client.contact_address
    return address


def watch_nothing(nanny: Nanny) -> None:
    """Without this each nanny lists all open files of the driver twice a second.

    And it measures, fifty times a second, how busy the event loop is that it shares.
    """
    for name in ("monitor", "tick", "ticks"):
        nanny.periodic_callbacks.pop(name)


def worker_states(cluster: LocalCluster) -> list[Any]:
    """Without this the scheduler, which is here, is asked by message, and is slow to answer.

    Plain ``dict.values``: those of its SortedDict may change while they are sorted.
    """
    return list(dict.values(cluster.scheduler.workers))  # type: ignore[union-attr]


async def close_connections(scheduler: Any) -> None:
    """Without this browsers keep connections that nobody answers: Dask only stops listening."""
    server = scheduler.http_server
    server.stop()
    await server.close_all_connections()


def unsubscribe(client: Client, topic: str) -> None:
    """Without this the client keeps the handler, and with it the run, as with Dask's own way.

    The scheduler has forgotten the topic with all who listen; Dask's own way would make it again.
    """
    client._event_handlers.pop(topic, None)


async def ended(future: Future[Any]) -> None:
    """Without this what a worker has left in a file is fetched from the worker all the same."""
    await future._state.wait()  # type: ignore[union-attr]


async def forget_plugins(nannies: Iterable[Nanny], topic: str) -> None:
    """Without this the nannies of this process keep a run that is over."""
    asked = [nanny.plugin_remove(name=topic) for nanny in nannies]
    await asyncio.gather(*asked, return_exceptions=True)


def forget_run(client: Client, topic: str, nannies: list[str], patience: float) -> None:
    """Without this the scheduler brings the run's plugin to each worker that ever comes.

    ``run_on_scheduler`` would wait for ever where the scheduler does not answer.
    """
    client.sync(
        client._run_on_scheduler, _forget_run, topic, nannies, callback_timeout=2 * patience
    )


async def _forget_run(topic: str, nannies: Iterable[str], dask_scheduler: Any) -> None:
    """Runs in the scheduler; the last parameter's name is Dask's.

    A worker that dies now takes its plugin along. A nanny that is just replacing its worker is not
    reached by Dask's own way, which goes by the workers; so each is asked by its address. The topic
    comes last: an event that arrives meanwhile would make it again.
    """
    asked = [dask_scheduler.rpc(nanny).plugin_remove(name=topic) for nanny in nannies]
    if topic in dask_scheduler.worker_plugins:
        asked.append(dask_scheduler.unregister_worker_plugin(None, topic))
    try:
        await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), FORGET_SECONDS)
    finally:
        dask_scheduler._broker._topics.pop(topic, None)


def forget_events(topic: str, dask_scheduler: Any) -> None:
    """Without this the scheduler keeps the last thousand deaths, with the values in their files."""
    if topic in dask_scheduler._broker._topics:
        dask_scheduler._broker._topics[topic].events.clear()


async def add_nanny_plugin(plugin: Any, name: str, dask_worker: Any) -> str | None:
    """Runs in a nanny, and gives its worker's address; the last parameter's name is Dask's.

    Without it a nanny that is replacing its worker never gets the plugin.
    """
    if name not in dask_worker.plugins:
        answer = await dask_worker.plugin_add(plugin=plugin, name=name)
        if answer["status"] != "OK":
            why = answer.get("exception_text", answer)
            raise RuntimeError(f"its plugin cannot be set up: {why}")
    address: str | None = dask_worker.worker_address
    return address


async def listed(client: Client) -> dict[str, Any]:
    """The workers by address, as the scheduler knows them; on the client's event loop.

    ``Client.scheduler_info`` returns what the Client knows, and that is overwritten every two
    seconds by an answer that leaves out workers.
    """
    if client.scheduler is None:
        raise CommClosedError("the client is closed")
    answer = await client.scheduler.identity(n_workers=-1)
    workers: dict[str, Any] = answer["workers"]
    return workers


def forget_parents() -> None:
    """In a child that was forked: without this Dask tidies up at its end what is the parent's."""
    for finalizer, kept in list(finalizers().items()):
        if getattr(kept.func, "__module__", "").startswith("distributed."):
            finalizer.detach()
    children: set[Any] = multiprocessing.process._children  # type: ignore[attr-defined]
    children -= {child for child in children if child.name.startswith(WORKER_PROCESS)}
    distributed.utils._offload_executor = ThreadPoolExecutor(
        max_workers=1, thread_name_prefix="Dask-Offload"
    )


def forget_cluster(client: Client, cluster: LocalCluster) -> None:
    """In a child that was forked: without this the child's end closes the parent's cluster."""
    client.status = "closed"
    cluster.status = Status.closed
    SpecCluster._instances.discard(cluster)


def finalizers() -> dict[Any, Any]:
    """The finalizers of this process, of everybody: Dask removes folders there."""
    found: dict[Any, Any] = weakref.finalize._registry  # type: ignore[attr-defined]
    return found
