"""The public functions: what they take, and what they do in a few words.

All that takes its time to import comes in with the first call, while the process that forks the
workers imports the same.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from at_once_dask.cluster import forkserver
from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.options import ClusterSettings, OnError, Options, front_door, length
from at_once_dask.report import report
from at_once_dask.report.report import Plan, Reduction, Report

if TYPE_CHECKING:
    from types import ModuleType

    from distributed import Client

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Pairs = Mapping[K, Any] | Iterable[tuple[K, Any]] | None


class Keywords(TypedDict, total=False):
    """The types of what all forms of ``run`` take by name; defaults are those of Options."""

    on_error: OnError
    max_failures: float | None
    retries: int
    timeout: float | None
    verify: bool
    inspect: bool
    report_path: str | os.PathLike[str] | None
    client: Client | None
    progress: bool
    random_state: float | str | bytes | bytearray | None


@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], object],
    do_shuffle: bool = ...,
    reduce_fn: None = None,
    *,
    combine_fn: None = None,
    **more: Unpack[Keywords],
) -> Report: ...
@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], Pairs[K]],
    do_shuffle: bool = ...,
    *,
    reduce_fn: Callable[[list[Any]], V],
    **more: Unpack[Keywords],
) -> Reduction[K, V]: ...
@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], Pairs[K]],
    do_shuffle: bool,
    reduce_fn: Callable[[list[Any]], V],
    **more: Unpack[Keywords],
) -> Reduction[K, V]: ...
@overload
def run(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    process_inp: Callable[[T], Pairs[K]],
    do_shuffle: bool = ...,
    reduce_fn: None = None,
    *,
    combine_fn: Callable[[V, V], V],
    **more: Unpack[Keywords],
) -> Reduction[K, V]: ...
@front_door(Options.signature())
def run(*args: Any, **kwargs: Any) -> Report | Reduction[Any, Any]:
    """Apply `process_inp` to every input that is not done yet, on all cores.

    Each input costs what it costs, and no other: one that fails is reported with its cause, all
    others are done, and the same call again does the rest.

    Parameters
    ----------
    inp_list : iterable
        The inputs, any picklable objects; drawn from as they are needed and never modified.
    check_inp : callable or None
        ``check_inp(inp)`` returns ``[is_done, value]``, right before `process_inp` would run, in
        the same worker. `value` counts in a map-reduce run only. ``None``: nothing is done yet.
    process_inp : callable
        ``process_inp(inp)``. In a map-only run it saves its result itself, and what it returns is
        dropped. In a map-reduce run it returns a mapping or pairs ``(key, value)``; or ``None``,
        and `check_inp` must then give the value.
    do_shuffle : bool
        Use a shuffled copy of the list.
    reduce_fn : callable, optional
        ``reduce_fn(values)`` gets the list of all values of a key, in input order; its result
        becomes the key's value. Runs on the workers.
    combine_fn : callable, optional
        Instead of `reduce_fn`: ``combine_fn(a, b)``, associative, folds the values of a key
        pairwise where they are made. A lone value is not passed to it.
    on_error : {"raise", "return", "stop"}
        Finish everything else, then raise; finish and return; or stop at the first failed input.
    max_failures : int or float, optional
        Stop when more inputs than this have failed for good, whatever `on_error` says; a float
        between 0 and 1 is the share failed / (failed + processed + skipped), judged from 20 inputs
        on.
    retries : int
        Further attempts for an input or key that failed in any way: after half a second, then
        twice as long each time up to a minute, give or take a half, while others go on.
    timeout : float, optional
        Seconds that one attempt at one input may take, check and process and verify together, or
        one key in the reduction. Past it the worker is ended and replaced.
    verify : bool
        After `process_inp`, `check_inp` must say done; else the input has failed.
    inspect : bool
        When inputs failed, keep the dashboard up until Enter or Ctrl-C, where there is a terminal.
    report_path : path, optional
        The run's report is written there as one HTML file, however the run ends.
    client : distributed.Client, optional
        Of the cluster to use. By default the session's default one, if there is one, else a
        cluster of the library's own: one worker a core, started at the first need, kept.
    progress : bool
        Show progress on stderr.
    random_state : int, float, str or bytes, optional
        Seeds the shuffling: ``random.Random(random_state).shuffle``. Needs `do_shuffle`.

    Returns
    -------
    Report or Reduction
        A map-only run gives its Report; a map-reduce run a Reduction, the dict of each key's
        value, with the Report at ``.report``.

    Raises
    ------
    InputError
        For a wrong argument, before anything starts.
    RunFailed
        At the end, when inputs or keys failed.
    RunStopped
        When the run stopped early.

    Notes
    -----
    The functions cross to each worker once a run, pickled by value where they are of ``__main__``,
    with the variables they use as of the call. Inputs, keys and values cross pickled.

    Examples
    --------
    >>> import at_once_dask
    >>> def count_letters(word):
    ...     return {letter: 1 for letter in word}
    >>> at_once_dask.run(["ab", "b"], None, count_letters, reduce_fn=sum, progress=False)
    {'a': 1, 'b': 2}
    """
    options = Options(*args, **kwargs).checked()
    with Interrupts() as interrupts:
        call = _call(options, interrupts)
        this = call.run(options, interrupts)
    result: Report | Reduction[Any, Any] = call.verdict(this)
    return result


@front_door()
def plan(
    inp_list: Iterable[T],
    check_inp: Callable[[T], Sequence[Any]] | None,
    *,
    client: Client | None = None,
    progress: bool = True,
) -> Plan[T]:
    """Find out what a run would do; nothing is processed.

    Parameters
    ----------
    inp_list, check_inp, client, progress
        As for ``run``.

    Returns
    -------
    Plan
        The counts, and the pending inputs in order.

    Raises
    ------
    InputError
        For a wrong argument.

    Examples
    --------
    >>> import at_once_dask
    >>> at_once_dask.plan([1, 2, 3], lambda n: [n < 3, None], progress=False).pending
    [3]
    """
    options = Options(inp_list, check_inp, on_error="return", client=client, progress=progress)
    with Interrupts() as interrupts:
        planned: Plan[T] = _call(options, interrupts).plan(options, interrupts)
    return planned


def last_report() -> Report | None:
    """The report of this process's latest run, however it ended; None before the first.

    Examples
    --------
    >>> import at_once_dask
    >>> _ = at_once_dask.run([], None, print)
    >>> at_once_dask.last_report().ok
    True
    """
    return report.latest


@front_door()
def start(
    n_workers: int | None = ClusterSettings.n_workers,
    *,
    memory_limit: str | int | float | None = ClusterSettings.memory_limit,
    dashboard_address: str = ClusterSettings.dashboard_address,
) -> Client:
    """Start the own cluster, or return the Client of the one that runs with these settings.

    Calling it is needed only for settings of one's own: ``run`` starts the cluster by itself.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes, of one thread each; by default one a core.
    memory_limit : str, int, float or None
        For each worker: bytes, text such as ``"4 GiB"``, a share of the machine's memory below 1,
        ``"auto"`` (the memory divided by the cores) or ``None`` for no limit.
    dashboard_address : str
        ``host:port``. When the default port is taken, another one is used; one given here must be
        free. Port 0 takes any.

    Returns
    -------
    distributed.Client

    Raises
    ------
    InputError
        For an argument that cannot be used, or when a cluster with other settings is running.

    Notes
    -----
    Client and scheduler are both in this process: ``publish_dataset`` publishes the very object
    that it is given, and not a copy of it.

    Examples
    --------
    >>> import at_once_dask
    >>> client = at_once_dask.start(2, dashboard_address="127.0.0.1:0")
    >>> len(client.nthreads())
    2
    >>> at_once_dask.close()
    """
    from at_once_dask import call

    return call.start(ClusterSettings(n_workers, memory_limit, dashboard_address))


def close() -> None:
    """Stop the own cluster; nothing happens when there is none.

    A Client that was passed in is never closed. The next ``run`` starts a new cluster.

    Examples
    --------
    >>> import at_once_dask
    >>> at_once_dask.close()
    """
    if "at_once_dask.cluster.connect" in sys.modules:
        from at_once_dask.cluster import connect

        connect.close()


def _call(options: Options, interrupts: Interrupts) -> ModuleType:
    """Import what runs it; in the first call the workers' start does not wait for that.

    Without distributed there is neither a cluster nor a Client yet. A Ctrl-C during the imports
    counts when the run starts: it ends with a report, as any other.
    """
    forkserver.hold_standard_streams()
    with interrupts.at_once():  # nobody knows what a list's own `__len__` does
        is_empty = length(options.inp_list) == 0
    if "distributed" not in sys.modules and not is_empty:
        forkserver.start()
    collects = gc.isenabled()
    gc.disable()  # nothing that an import makes is garbage: the first call takes 7 % less
    try:
        from at_once_dask import call
    finally:
        if collects:
            gc.enable()
    return call
