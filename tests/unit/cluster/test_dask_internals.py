"""What is leaned on that is not public: a test fails when Dask, or `multiprocessing`, changes it.

A Scheduler and a Client in this process are real; there is no worker.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.popen_forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import multiprocessing.spawn
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import dask
import distributed.client
import distributed.utils
import pytest
from dask.bag import Bag
from distributed import Client, LocalCluster, Nanny, NannyPlugin, Scheduler
from distributed.comm.core import CommClosedError
from distributed.core import Status
from distributed.deploy import spec
from distributed.deploy.cluster import Cluster
from distributed.nanny import WorkerProcess
from distributed.scheduler import KilledWorker, WorkerState
from distributed.utils import LoopRunner

import at_once_dask
from at_once_dask.cluster import dask_internals
from at_once_dask.worker import dask_internals as in_worker

TOPIC = "at_once_dask-test"


def names_in(function: Any) -> set[str]:
    """The attributes and globals that its code names."""
    return set(inspect.unwrap(function).__code__.co_names)


def in_scheduler(check: Callable[[Scheduler, Client], Awaitable[None]]) -> None:
    """`check` with a Scheduler as that of the own cluster, and a Client on the same event loop."""

    async def main() -> None:
        listening: dict[str, Any] = {
            "protocol": ["tcp", "inproc"],
            "host": ["127.0.0.1", None],
            "port": [0, None],
            "dashboard_address": "127.0.0.1:0",
        }
        async with Scheduler(dashboard=False, **listening) as scheduler:
            address = scheduler.listeners[1].contact_address
            async with Client(address, asynchronous=True, set_as_default=False) as client:
                await check(scheduler, client)

    asyncio.run(main())


# ----- the start of workers


def test_what_dask_preloads_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def find_none(name: str) -> None:
        imported.append(name)
        raise ImportError

    ours = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    kind = type(multiprocessing.get_context("forkserver"))
    monkeypatch.setattr(kind, "set_forkserver_preload", lambda context, names: None)
    monkeypatch.setattr(importlib, "import_module", find_none)
    monkeypatch.setattr(distributed.utils, "_forkserver_preload_set", False)
    with ours:
        dask_internals.import_nothing_to_find_out()
        distributed.utils.get_mp_context()
        assert imported == []
        monkeypatch.setattr(distributed.utils, "_forkserver_preload_set", False)
        distributed.utils.get_mp_context()
    assert "numpy" in imported


def test_multiprocessing_asks_for_what_it_tells_a_process_where_we_change_it() -> None:
    """``spawn.get_preparation_data(name)``, when the fork server is started, and each process."""
    assert list(inspect.signature(multiprocessing.spawn.get_preparation_data).parameters) == [
        "name"
    ]
    started: Any = multiprocessing.popen_forkserver.Popen._launch  # type: ignore[attr-defined]
    assert {"spawn", "get_preparation_data"} <= names_in(started)
    server: Any = multiprocessing.forkserver.ForkServer.ensure_running
    assert {"spawn", "get_preparation_data"} <= names_in(server)


def test_a_child_can_forget_the_fork_server() -> None:
    server: Any = multiprocessing.forkserver._forkserver
    new: Any = type(server)()
    assert (new._forkserver_pid, new._forkserver_alive_fd) == (None, None)
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    assert hasattr(tracker, "_pid")
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    assert isinstance(config, dict)
    assert "tempdir" in multiprocessing.util.get_temp_dir.__code__.co_consts


# ----- nannies


def test_a_nanny_is_told_of_the_end_of_its_worker_by_a_method_that_can_be_replaced() -> None:
    assert list(inspect.signature(Nanny._on_worker_exit_sync).parameters) == ["self", "exitcode"]
    assert "_on_worker_exit_sync" in names_in(Nanny.instantiate)
    assert "on_exit" in inspect.signature(WorkerProcess.__init__).parameters
    assert "on_exit" in names_in(WorkerProcess.mark_stopped)  # looked up when the worker has ended


def test_a_nanny_puts_nothing_into_the_drivers_environment_when_it_has_nothing_to_put() -> None:
    assert "pre_spawn_env" in names_in(Nanny.__init__)
    assert "pre_spawn_env" in names_in(Nanny.instantiate)


class Noted(NannyPlugin):
    """A plugin whose set-up may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.nannies: list[Nanny] = []

    def setup(self, nanny: Nanny) -> None:
        if self.fails:
            raise OSError("no space")
        self.nannies.append(nanny)


def test_a_plugin_can_be_added_to_a_nanny_that_replaces_its_worker() -> None:
    async def main() -> None:
        nanny = Nanny("tcp://127.0.0.1:1", nthreads=1)
        plugin = Noted()
        watch = in_worker.watch_worker
        for _ in range(2):  # the second time it is there
            waiting = asyncio.ensure_future(watch(plugin, TOPIC, "tcp://worker", nanny))
            await asyncio.sleep(0)
        assert (plugin.nannies, nanny.plugins[TOPIC]) == ([nanny], plugin)
        with pytest.raises(RuntimeError, match=r"cannot be set up: OSError\('no space'\)$"):
            await watch(Noted(fails=True), "other", "tcp://worker", dask_worker=nanny)
        assert not waiting.done()  # it is not connected to that worker
        await nanny.plugin_remove(name=TOPIC)
        await waiting
        assert TOPIC not in nanny.plugins
        await nanny.close()

    asyncio.run(main())


def test_a_nanny_of_many_measures_nothing_in_the_process_that_they_share() -> None:
    async def main() -> None:
        nanny = Nanny("tcp://127.0.0.1:1", nthreads=1)
        before = set(nanny.periodic_callbacks)
        dask_internals.watch_nothing(nanny)
        assert before - set(nanny.periodic_callbacks) == {"monitor", "tick", "ticks"}
        assert "memory_monitor" in nanny.periodic_callbacks
        await nanny.close()

    asyncio.run(main())


def test_a_nanny_that_has_given_up_says_so() -> None:
    assert (Status.failed, Status.closed) == dask_internals.GIVEN_UP
    assert "status" in dir(Nanny)


# ----- the scheduler, and what a client asks of it


def test_the_client_has_an_address_of_its_own_in_the_process() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        class Started:
            """What is asked of a LocalCluster."""

        cluster: Any = Started()
        cluster.scheduler = scheduler
        address = dask_internals.client_address(cluster)
        assert address.startswith("inproc://")
        assert [listener.contact_address[:3] for listener in scheduler.listeners] == ["tcp", "inp"]

    in_scheduler(check)
    assert "scheduler" in names_in(LocalCluster.__init__) | set(dir(LocalCluster)) | names_in(
        spec.SpecCluster.__init__
    )


def test_the_scheduler_says_itself_which_workers_there_are() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        assert await dask_internals.listed(client) == {}
        assert "n_workers" in inspect.signature(scheduler.identity).parameters

    in_scheduler(check)


def test_the_workers_of_a_scheduler_in_this_process_are_read_where_it_has_them() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        assert isinstance(scheduler.workers, dict)
        cluster: Any = SimpleNamespace(scheduler=scheduler)
        assert dask_internals.worker_states(cluster) == []
        names = {"address", "nthreads", "status", "local_directory", "nanny"}
        assert names <= set(WorkerState.__slots__)

    in_scheduler(check)


def test_the_end_of_a_future_is_waited_for_without_its_result() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        future = client.submit(print, key="never")
        waiting = asyncio.ensure_future(dask_internals.ended(future))
        await client._cancel([future], force=True)
        await asyncio.wait_for(waiting, 10)
        assert future.status == "cancelled"

    in_scheduler(check)


def test_a_client_that_is_closed_has_no_scheduler_to_ask() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        await client.close()
        with pytest.raises(CommClosedError, match="the client is closed"):
            await dask_internals.listed(client)

    in_scheduler(check)


def test_the_handler_of_a_topic_is_forgotten_with_it() -> None:
    """Dask's own way keeps it; were that so no more, the line could go."""

    async def check(scheduler: Scheduler, client: Client) -> None:
        client.subscribe_topic(TOPIC, print)
        client.unsubscribe_topic(TOPIC)
        assert TOPIC in client._event_handlers
        client.subscribe_topic(TOPIC, print)
        dask_internals.unsubscribe(client, TOPIC)
        assert TOPIC not in client._event_handlers
        dask_internals.unsubscribe(client, TOPIC)  # a second time, or before it began

    in_scheduler(check)


def test_a_topic_that_the_scheduler_has_forgotten_stays_so() -> None:
    """Dask's own way makes it again; were that so no more, ours could go."""

    async def check(scheduler: Scheduler, client: Client) -> None:
        scheduler._broker.unsubscribe(TOPIC, client.id)
        assert TOPIC in scheduler._broker._topics
        scheduler._broker._topics.pop(TOPIC)
        dask_internals.unsubscribe(client, TOPIC)
        await client._run_on_scheduler(dask_internals.forget_events, TOPIC)  # it has come so far
        assert TOPIC not in scheduler._broker._topics

    in_scheduler(check)


def test_events_that_passed_through_the_scheduler_can_be_forgotten() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        scheduler.log_event(TOPIC, {"kind": "WorkerDied"})
        assert len(scheduler.get_events(TOPIC)) == 1
        await client._run_on_scheduler(dask_internals.forget_events, TOPIC)
        assert scheduler.get_events(TOPIC) == ()
        await client._run_on_scheduler(dask_internals.forget_events, "unknown")
        assert "unknown" not in scheduler._broker._topics

    in_scheduler(check)


def test_a_scheduler_that_does_not_answer_is_waited_for_so_long() -> None:
    assert inspect.iscoroutinefunction(Client._run_on_scheduler)
    assert "callback_timeout" in inspect.signature(Client.sync).parameters


def test_browsers_are_hung_up_on() -> None:
    async def check(scheduler: Scheduler, client: Client) -> None:
        assert inspect.iscoroutinefunction(scheduler.http_server.close_all_connections)
        await dask_internals.close_connections(scheduler)

    in_scheduler(check)


# ----- how a future says that its worker is gone


def test_errors_that_stand_for_a_death_are_those_of_futures() -> None:
    assert issubclass(KilledWorker, dask_internals.LOST)
    assert issubclass(distributed.client.FutureCancelledError, dask_internals.LOST)
    assert issubclass(CancelledError, dask_internals.LOST)
    assert issubclass(CommClosedError, OSError)


# ----- event loops


def test_the_loop_of_a_client_and_of_a_cluster_can_be_stopped() -> None:
    for kind in (Client, Cluster):
        assert "_loop_runner" in names_in(kind.__init__)

    class Opened:
        _loop_runner = LoopRunner()

    opened: Any = Opened()
    before = threading.active_count()
    opened._loop_runner.start()
    assert threading.active_count() == before + 1
    dask_internals.stop_loop(opened)
    assert not opened._loop_runner.is_started()


# ----- children that were forked


def test_finalizers_are_found_with_their_functions() -> None:
    class Held: ...

    held = Held()
    called: list[int] = []
    finalizer = weakref.finalize(held, called.append, 1)
    assert dask_internals.finalizers()[finalizer].func == called.append
    finalizer.detach()
    assert finalizer not in dask_internals.finalizers()


def test_a_child_leaves_alone_what_dask_would_tidy_up_for_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Held: ...

    class Child:
        def __init__(self, name: str) -> None:
            self.name = name

    held = Held()
    ours = weakref.finalize(held, len, ())
    dasks = weakref.finalize(held, distributed.utils.has_arg, len, "obj")
    worker, another = Child("Dask Worker process (from Nanny)"), Child("Process-1")
    monkeypatch.setattr(multiprocessing.process, "_children", {worker, another})
    monkeypatch.setattr(distributed.utils, "_offload_executor", None)

    dask_internals.forget_parents()

    assert (ours.alive, dasks.alive) == (True, False)
    assert multiprocessing.process._children == {another}  # type: ignore[attr-defined]
    executor: Any = distributed.utils._offload_executor
    assert isinstance(executor, ThreadPoolExecutor)
    ours.detach()


def test_what_is_offloaded_goes_to_the_executor_that_a_child_replaces() -> None:
    assert "_offload_executor" in names_in(distributed.utils.offload)
    assert isinstance(multiprocessing.process._children, set)  # type: ignore[attr-defined]


def test_dask_closes_at_the_end_what_is_among_the_instances() -> None:
    assert isinstance(spec.SpecCluster._instances, weakref.WeakSet)
    assert "_instances" in names_in(spec.close_clusters)
    assert "_instances" in names_in(spec.SpecCluster.__init__)


def test_a_client_or_cluster_that_says_it_is_closed_is_not_closed_again() -> None:
    assert "status" in names_in(Client.close)
    assert "status" in names_in(Cluster.__init__) & names_in(Cluster.close)
    assert "status" in spec.close_clusters.__code__.co_consts  # asked for with getattr


# ----- what workers and nannies lean on


def test_who_wants_it_hears_of_the_end_of_a_nannys_workers_and_then_the_nanny_does() -> None:
    async def main() -> None:
        nanny: Any = Nanny("tcp://127.0.0.1:1", nthreads=1)
        nanny.process = process = Running()
        process.on_exit = usual = nanny._on_worker_exit_sync
        heard: list[tuple[str, int]] = []
        in_worker.watch_exits(nanny, "first", lambda code: heard.append(("first", code)))
        in_worker.watch_exits(nanny, "second", lambda code: heard.append(("second", code)))

        process.on_exit(-9)
        in_worker.forget_exits(nanny, "first")
        nanny._on_worker_exit_sync(3)  # as for the next process
        assert heard == [("first", -9), ("second", -9), ("second", 3)]

        in_worker.forget_exits(nanny, "second")
        assert "_on_worker_exit_sync" not in vars(nanny)
        assert process.on_exit == nanny._on_worker_exit_sync == usual
        nanny.process = None
        await nanny.close()

    asyncio.run(main())


class Running:
    """A worker process, to its nanny."""

    on_exit: Any = None


def test_exit_codes_are_read_where_we_can_put_a_lock_around_it() -> None:
    at_once_dask.close()  # it wants the codes so while it lives
    popen: Any = multiprocessing.popen_forkserver.Popen
    assert list(inspect.signature(in_worker._read_exit_code).parameters) == ["self", "flag"]
    assert {"returncode", "sentinel"} <= names_in(in_worker._read_exit_code)
    with in_worker.exit_codes_read_once():
        assert popen.poll is in_worker._poll
    assert popen.poll is in_worker._read_exit_code


def test_a_daemonic_process_may_start_others_meanwhile() -> None:
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    start = inspect.unwrap(multiprocessing.process.BaseProcess.start)
    assert "_config" in names_in(start)
    assert "daemon" in start.__code__.co_consts
    config["daemon"] = True
    try:
        with in_worker.may_be_started():
            assert not config["daemon"]
        assert config["daemon"]
    finally:
        del config["daemon"]


# ----- bags


def test_a_bag_leaves_the_keys_alone_that_it_is_told_not_to_fuse() -> None:
    """Else the partition would be fused into the chain for good."""
    source = ("partition", 0)
    bag = Bag({source: [1, 2]}, "partition", 1).map(abs).map_partitions(list)
    keys = bag.__dask_keys__()
    kept = in_worker.optimised(bag, source)
    fused = Bag.__dask_optimize__(bag.dask, keys)
    assert source in kept
    assert source not in fused
