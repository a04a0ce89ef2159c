"""Private parts of Dask, and of `multiprocessing` below it, that the driver leans on.

Each says what breaks without it; ``tests/unit/cluster/test_dask_internals.py`` fails when it
changes. What the worker leans on is in ``worker/dask_internals.py``.
"""

from __future__ import annotations

import multiprocessing.process
import socket
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import distributed.utils
from distributed import CancelledError, Client, Future, LocalCluster, Nanny
from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import CommClosedError
from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.scheduler import KilledWorker

from at_once_dask.cluster.forkserver import WORKER_PROCESS
from at_once_dask.worker import package, scheduler_plugin

PYTHON = sys.version_info[:2]

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


async def begin_run(client: Client, plugin: bytes) -> Any:
    """Without this there is no limit to how long a scheduler may take that does not answer.

    Where at_once_dask is not installed in the scheduler, it is sent there first.
    """
    try:
        return await client._run_on_scheduler(scheduler_plugin.begin, plugin)
    except Exception as error:
        if not package.is_missing(error) or await python_of_scheduler(client) != PYTHON:
            raise
    function, arguments = package.to_install()
    scheduler: Any = client.scheduler
    await scheduler.run_function(function=function, args=arguments, wait=True)
    return await client._run_on_scheduler(scheduler_plugin.begin, plugin)


async def python_of_scheduler(client: Client) -> tuple[int, int]:
    """By a function that every Python has."""
    found: tuple[int, int] = await client._run_on_scheduler(eval, package.PYTHON_THERE)
    return found


async def version_of_scheduler(client: Client) -> str:
    """The version of at_once_dask there; an error without one."""
    found: str = await client._run_on_scheduler(eval, package.VERSION_THERE)
    return found


def scheduler_has_ended(client: Client) -> bool:
    """Without this a run waits for half a minute: whether its host is there, and nobody listens."""
    address = str(client.scheduler.address)  # type: ignore[union-attr]
    try:
        socket.create_connection(get_address_host_port(address), timeout=0.5).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # it cannot be reached, or takes its time
        return False
    return False


def end_run(client: Client, topic: str, patience: float) -> None:
    """Without this nobody limits how long that may take."""
    client.sync(
        client._run_on_scheduler,
        scheduler_plugin.forget,
        topic,
        patience,
        callback_timeout=2 * patience,
    )


def forget_events(topic: str, dask_scheduler: Any) -> None:
    """Without this the scheduler keeps the last thousand deaths, with the values in their files."""
    if topic in dask_scheduler._broker._topics:
        dask_scheduler._broker._topics[topic].events.clear()


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
