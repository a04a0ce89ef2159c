"""The results of a call: report, reduction and plan."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from at_once_dask import files
from at_once_dask.errors import InputError, cut_short
from at_once_dask.protocol.failure import without_our_frames
from at_once_dask.report.ledger import Failed
from at_once_dask.report.summary import Summary, counted
from at_once_dask.user_code.text import printable, safe_repr

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.plotting import figure

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Frames:
    """The fate of the inputs, as pandas frames."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    @property
    def failures(self) -> pd.DataFrame:
        """One row an input that failed, by its position in the list; keys that failed come last.

        Returns
        -------
        pandas.DataFrame
            Indexed by position (Int64, named ``index``, ``<NA>`` for keys): ``input``, ``key``,
            ``stage`` (check, process, verify, reduce, send or collect), ``kind`` (exception, crash,
            memory, timeout or lost), ``error``, ``message``, ``traceback``, ``worker``, ``host``
            (its name), ``seconds`` (float64), ``attempts`` (int64) and ``exit`` (signal or exit
            code of a death); the same columns when empty.
        """
        from at_once_dask.report import dataframes

        return dataframes.failures_frame(self._summary.ledger.failed)

    @property
    def causes(self) -> pd.DataFrame:
        """Equal failures grouped, the most frequent first.

        Returns
        -------
        pandas.DataFrame
            ``kind``, ``stage``, ``error``, ``where`` (file, line and function), ``count`` (int64),
            ``example`` (the first input or key that failed so), ``message`` (of the example) and
            ``host`` (where all of them were, if that is one; else empty).
        """
        from at_once_dask.report import dataframes

        return dataframes.causes_frame(self._summary.ledger.causes())

    @property
    def items(self) -> pd.DataFrame:
        """One row an input, in the order of the list as given.

        Returns
        -------
        pandas.DataFrame
            Indexed by position (Int64, named ``index``): ``status`` (category: skipped, processed,
            failed, pending or left), ``start`` (datetime64[ns, UTC]), ``seconds`` (float64) and
            ``worker`` (category: addresses); the last three are missing for what is left.
        """
        from at_once_dask.report import dataframes

        return dataframes.items_frame(self._summary.ledger)


latest: Report | None = None  # of this process's latest run, however it ended


class Unpicklable:
    """Stands for an input that failed and could not be pickled with its report."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Report(Frames):
    """The report of a run: what became of its inputs.

    Pickles, with the failed inputs that pickle; the others are replaced by their ``repr``.

    Attributes
    ----------
    run : str
        The run's id, also in the log.
    n_inputs : int
        Length of the list; of an iterator what was drawn.
    n_skipped, n_processed, n_failed, n_left : int
        Done before, done now, failed for good, not handled; they add up to `n_inputs`.
    n_keys_failed : int
        Keys whose reduction failed.
    ok : bool
        No input or key failed and none is left.
    seconds : float
        Wall-clock time of the run.
    dashboard_link : str or None
        Address of the Dask dashboard; None where no cluster was needed.
    logfile : str
        Absolute path of the log.

    Examples
    --------
    >>> import at_once_dask
    >>> report = at_once_dask.run([], None, print)
    >>> report.n_inputs, report.ok
    (0, True)
    """

    def __init__(self, summary: Summary, replay: Callable[[Any], Any]) -> None:
        super().__init__(summary)
        self._replay: Callable[[Any], Any] | None = replay
        self._again: Callable[[Any], Reduction[Any, Any]] | None = None
        facts = summary.facts
        self.run = facts.run
        self.seconds = facts.seconds
        self.dashboard_link = facts.dashboard_link
        self.logfile = facts.logfile
        self.n_inputs = summary.n_inputs
        self.n_skipped, self.n_processed = summary.n_skipped, summary.n_processed
        self.n_failed, self.n_left = summary.n_failed, summary.n_left
        self.n_keys_failed = summary.n_keys_failed

    @property
    def ok(self) -> bool:
        """No input or key failed and none is left."""
        return self._summary.ok

    def replay(self, position: int) -> Any:
        """Run a failed input again here, in this process, with the functions of the run.

        What goes wrong is raised as it is, so that ``%debug`` and ``pdb`` land in your code. No
        cluster is needed. What ended a worker ends this process too: replay that in one that may
        die, or under a debugger for C.

        Parameters
        ----------
        position : int
            In the list as given: the index of `failures`.

        Returns
        -------
        object
            In a map-reduce run the input's pairs, when nothing goes wrong any more; else None.

        Raises
        ------
        InputError
            When no input at this position has failed, or the report comes from another process.

        Examples
        --------
        >>> import at_once_dask
        >>> report = at_once_dask.run([1, 0], None, lambda n: 1 // n, on_error="return")
        >>> report.replay(1)
        Traceback (most recent call last):
        ZeroDivisionError: integer division or modulo by zero
        """
        failed = {
            found.index: found for found in self._summary.ledger.failed if found.index is not None
        }
        if self._replay is None:
            raise InputError(
                "replay() needs the functions of the run, which a report does not take along to"
                " another process; call"
                f" process_inp(report.failures.loc[{safe_repr(position)}, 'input'])"
            )
        if not _is_hashable(position) or position not in failed:
            example = f"one that has is {min(failed)}" if failed else "none has"
            raise InputError(
                f"no input at position {safe_repr(position)} has failed; {example}, see"
                " report.failures.index; write report.replay(report.failures.index[0])"
            )
        __tracebackhide__ = True
        try:
            return self._replay(failed[position].inp)
        except BaseException as error:
            error.with_traceback(without_our_frames(error.__traceback__))
            raise

    @cut_short
    def reduce(self, reduce_fn: Callable[[list[Any]], Any]) -> Reduction[Any, Any]:
        """Reduce the values that the run has grouped again, with another function.

        For when `reduce_fn` failed for a key, or the run was stopped while it reduced: nothing is
        mapped again. The values are kept as long as this report is, where a map-reduce with
        `reduce_fn` did not come to its end; large ones until the own cluster is closed.

        Parameters
        ----------
        reduce_fn : callable
            As of ``run``: it gets the list of all values of a key, and runs on the workers.

        Returns
        -------
        Reduction
            Of all keys.

        Raises
        ------
        InputError
            When no values are kept.
        RunFailed
            When a key has failed again, and as ``run`` does when inputs had failed or are left: the
            values of the others are at ``.partial``.

        Examples
        --------
        >>> import at_once_dask
        >>> found = at_once_dask.run(
        ...     [3, 4], None, lambda n: {"n": n}, reduce_fn=lambda ns: ns / 2, on_error="return",
        ...     progress=False,
        ... )
        >>> found, found.report.reduce(sum)
        ({}, {'n': 7})
        """
        if self._again is None:
            raise InputError(
                "this report keeps no values to reduce: they are kept, in the process of the run,"
                " when reduce_fn failed for a key or the reduction was stopped; call"
                " run(inp_list, check_inp, process_inp, reduce_fn=reduce_fn)"
            )
        return self._again(reduce_fn)

    def reduce_by(self, again: Callable[[Any], Reduction[Any, Any]]) -> None:
        """Not for users: what `reduce` does."""
        self._again = again

    def plot(self) -> figure:
        """When each worker was at what, as a Bokeh figure: show it with ``bokeh.plotting.show``.

        One row a worker, coloured by status; on hovering each bar tells the input's position and
        how long it took. Where inputs are many, neighbours share a bar.

        Returns
        -------
        bokeh.plotting.figure

        Examples
        --------
        >>> import at_once_dask
        >>> report = at_once_dask.run([], None, print)
        >>> report.plot().xaxis.axis_label
        'seconds since the first input began'
        """
        from at_once_dask.report import bokeh_timeline

        return bokeh_timeline.timeline_figure(self._summary.ledger, self.run)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file, to be looked at anywhere, without a network.

        How the run ended, the causes, the failures with tracebacks and records of the log, a
        timeline of the workers, durations, the slowest inputs, settings and versions. Of very many
        failures it shows the first of each cause. ``run(..., report_path=path)`` writes the same.

        Parameters
        ----------
        path : path
            Of the file; its folder must exist.

        Raises
        ------
        InputError
            When no file can be written there.

        Examples
        --------
        >>> import at_once_dask
        >>> report = at_once_dask.run([], None, print)
        >>> report.to_html(tmp_path / "report.html")
        >>> (tmp_path / "report.html").read_text().startswith("<!doctype html>")
        True
        """
        reason = files.why_not(path)
        if reason is not None:
            example = repr(files.possible("report.html", files.why_not))
            raise InputError(
                f"path is {safe_repr(path)}, {reason}; name a file in a folder that exists:"
                f" report.to_html({example})"
            )
        from at_once_dask.report import html

        page = html.page(self._summary)
        with files.atomic_write(path, encoding="utf-8") as file:
            file.write(page)

    def summary(self) -> str:
        """The run in a few lines: counts, largest causes with an example, log and next step."""
        return self._summary.summary

    def __str__(self) -> str:
        return printable(self.summary())

    def __repr__(self) -> str:
        return f"<Report of run {self.run}: {self._summary.counts}>"

    def _repr_html_(self) -> str:
        from at_once_dask.report import html

        return html.report_card(self._summary)

    def __getstate__(self) -> dict[str, Any]:
        ledger = self._summary.ledger.changed(_portable)
        return self.__dict__ | {
            "_summary": Summary(self._summary.facts, ledger),
            "_replay": None,
            "_again": None,
        }


class Reduction(dict[K, V]):
    """The result of a map-reduce run: a dict of each key's reduced value.

    Keys come in order of first appearance in the list.

    Attributes
    ----------
    report : Report
        What became of the inputs.

    Examples
    --------
    >>> import at_once_dask
    >>> sums = at_once_dask.run([], None, lambda inp: {}, reduce_fn=sum)
    >>> sums, sums.report.ok
    ({}, True)
    """

    report: Report

    def _repr_html_(self) -> str:
        report = getattr(self, "report", None)  # a copy that somebody made has none
        from at_once_dask.report import html

        card = html.reduction_card(self.items(), len(self))
        return card if report is None else card + report._repr_html_()


@dataclass(frozen=True)
class Plan(Generic[T]):
    """The inputs that a run would process.

    Attributes
    ----------
    n_inputs, n_done, n_pending : int
        Together with the failures of ``check_inp``, the first is the sum of the others.
    pending : sequence
        The inputs that a run would process, in the order of the list.
    failures : pandas.DataFrame
        Inputs whose ``check_inp`` failed, as in ``Report.failures``.
    """

    n_inputs: int
    n_done: int
    pending: Sequence[T]
    failed: tuple[Failed, ...]

    @property
    def n_pending(self) -> int:
        return len(self.pending)

    @property
    def failures(self) -> pd.DataFrame:
        from at_once_dask.report import dataframes

        return dataframes.failures_frame(self.failed)

    def __repr__(self) -> str:
        return (
            f"<Plan: {counted(self.n_inputs, 'input')}, {self.n_done:,} done,"
            f" {self.n_pending:,} pending, {len(self.failed):,} failed>"
        )

    def _repr_html_(self) -> str:
        from at_once_dask.report import html

        return html.plan_card(self.n_inputs, self.n_done, self.pending, self.failed)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _portable(failed: Failed) -> Failed:
    try:  # plain pickle, for that is what a report is pickled with
        pickle.loads(pickle.dumps(failed.inp, protocol=5))
    except Exception:
        return Failed(failed.failure, Unpicklable(safe_repr(failed.inp)), failed.index)
    return failed
