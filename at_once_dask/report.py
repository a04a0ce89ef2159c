"""What comes back: the report of a run, its frames, the reduction and the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from at_once_dask import pickles
from at_once_dask.errors import InputError
from at_once_dask.failure import cut, first_line, safe_repr
from at_once_dask.ledger import Cause, Failed, Ledger
from at_once_dask.states import FAILED, LEFT, NAMES, PROCESSED, SKIPPED

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

CAUSES_IN_TEXT = 5

latest: Report | None = None  # of this process's latest run, however it ended


class Unpicklable:
    """Stands for an input that failed and could not be pickled with its report."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Facts:
    """What a report says of its run besides what the ledger holds."""

    run: str
    seconds: float
    dashboard_link: str | None
    logfile: str
    checked: bool
    replay: Callable[[Any], Any]


class Report:
    """What became of a run.

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

    def __init__(self, facts: Facts, ledger: Ledger) -> None:
        self.run = facts.run
        self.seconds = facts.seconds
        self.dashboard_link = facts.dashboard_link
        self.logfile = facts.logfile
        self._checked = facts.checked
        self._replay: Callable[[Any], Any] | None = facts.replay
        self._ledger = ledger
        counts = ledger.counts
        self.n_inputs = sum(counts)
        self.n_skipped, self.n_processed = counts[SKIPPED], counts[PROCESSED]
        self.n_failed, self.n_left = counts[FAILED], counts[LEFT]
        self.n_keys_failed = sum(failed.index is None for failed in ledger.failed)

    @property
    def ok(self) -> bool:
        """No input or key failed and none is left."""
        return not (self.n_failed or self.n_keys_failed or self.n_left)

    @property
    def failures(self) -> pd.DataFrame:
        """One row an input that failed, by its position in the list; keys that failed come last.

        Returns
        -------
        pandas.DataFrame
            Indexed by position (Int64, named ``index``, ``<NA>`` for keys): ``input``, ``key``,
            ``stage`` (check, process, verify, reduce, send or collect), ``kind`` (exception, crash,
            memory or timeout), ``error``, ``message``, ``traceback``, ``worker``, ``seconds``
            (float64), ``attempts`` (int64) and ``exit`` (signal or exit code of a death).
        """
        return failures_frame(self._ledger.failed)

    @property
    def causes(self) -> pd.DataFrame:
        """Equal failures grouped, the most frequent first.

        Returns
        -------
        pandas.DataFrame
            ``kind``, ``stage``, ``error``, ``where`` (file, line and function), ``count`` (int64),
            ``example`` (the first input or key that failed so) and ``message`` (of the example).
        """
        rows = [
            (f.kind, f.stage, f.error, f.where, cause.count, cause.example.inp, f.message)
            for cause in self._ledger.causes()
            for f in [cause.example.failure]
        ]
        return _frame(rows, _CAUSE_COLUMNS)

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
        import numpy as np
        import pandas as pd

        ledger = self._ledger
        frame = pd.DataFrame(
            {
                "status": pd.Categorical.from_codes(
                    np.array(ledger.states, dtype=np.int8), pd.Index(NAMES)
                ),
                "start": pd.to_datetime(np.array(ledger.starts), unit="s", utc=True).astype(
                    "datetime64[ns, UTC]"
                ),
                "seconds": np.array(ledger.seconds, dtype="float64"),
                "worker": pd.Categorical.from_codes(
                    np.array(ledger.workers, dtype=np.int32), pd.Index(ledger.names, dtype=object)
                ),
            },
            index=_positions(range(len(ledger.states)) if ledger.order is None else ledger.order),
        )
        return frame if ledger.order is None else frame.sort_index()

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
        failed = {found.index: found for found in self._ledger.failed if found.index is not None}
        if self._replay is None:
            raise InputError(
                "replay() needs the functions of the run, which a report does not take along to"
                f" another process; call process_inp(report.failures.loc[{position!r}, 'input'])"
            )
        if position not in failed:
            example = f"one that has is {min(failed)}" if failed else "none has"
            raise InputError(
                f"no input at position {safe_repr(position)} has failed; {example}, see"
                " report.failures.index; write report.replay(report.failures.index[0])"
            )
        return self._replay(failed[position].inp)

    def summary(self) -> str:
        """The run in a few lines: counts, largest causes with an example, log and next step."""
        lines = [self._counts()]
        causes = self._ledger.causes()
        lines += [_cause_line(cause) for cause in causes[:CAUSES_IN_TEXT]]
        if len(causes) > CAUSES_IN_TEXT:
            lines.append(f"  and {len(causes) - CAUSES_IN_TEXT} more: see report.causes")
        lines.append(f"Log: {self.logfile}")
        if not self.ok:
            lines.append(self._next_step())
        return "\n".join(lines)

    __str__ = summary

    def __repr__(self) -> str:
        return f"<Report of run {self.run}: {self._counts()}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ledger": self._ledger.changed(_portable), "_replay": None}

    def _counts(self) -> str:
        text = (
            f"{self.n_inputs:,} inputs in {self.seconds:.1f} s: {self.n_processed:,} processed,"
            f" {self.n_skipped:,} skipped, {self.n_failed:,} failed, {self.n_left:,} left"
        )
        if self.n_keys_failed:
            text += f"; {self.n_keys_failed:,} keys failed"
        return text

    def _next_step(self) -> str:
        if self.n_failed or self.n_keys_failed:
            step = "fix the cause and run the same again"
        else:
            step = "run the same again to go on"
        done = self.n_processed + self.n_skipped
        if self._checked:
            return f"Next: {step}: the {done:,} inputs that are done will be skipped."
        return f"Next: {step}; pass a check_inp, so that the {done:,} inputs done can be skipped."


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


@dataclass(frozen=True)
class Plan(Generic[T]):
    """What a run would do.

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
        return failures_frame(self.failed)

    def __repr__(self) -> str:
        return (
            f"<Plan: {self.n_inputs:,} inputs, {self.n_done:,} done, {self.n_pending:,} pending,"
            f" {len(self.failed):,} failed>"
        )


_FAILURE_COLUMNS = {
    "input": "object",
    "key": "object",
    "stage": "object",
    "kind": "object",
    "error": "object",
    "message": "object",
    "traceback": "object",
    "worker": "object",
    "seconds": "float64",
    "attempts": "int64",
    "exit": "object",
}


_CAUSE_COLUMNS = {
    "kind": "object",
    "stage": "object",
    "error": "object",
    "where": "object",
    "count": "int64",
    "example": "object",
    "message": "object",
}


def failures_frame(failed: Sequence[Failed]) -> pd.DataFrame:
    """Failures as a frame, by position in the list as given; keys come last.

    Returns
    -------
    pandas.DataFrame
        Indexed by position (Int64, named ``index``, ``<NA>`` for keys): ``input``, ``key``,
        ``stage``, ``kind``, ``error``, ``message``, ``traceback``, ``worker``, ``exit`` (object),
        ``seconds`` (float64) and ``attempts`` (int64); the same when empty.
    """
    import pandas as pd

    failed = sorted(failed, key=attrgetter("order"))
    rows = [
        (
            None if row.index is None else row.inp,
            row.inp if row.index is None else None,
            *(getattr(row.failure, name) for name in list(_FAILURE_COLUMNS)[2:]),
        )
        for row in failed
    ]
    index = _positions([pd.NA if row.index is None else row.index for row in failed])
    return _frame(rows, _FAILURE_COLUMNS, index)


def _frame(rows: list[tuple[Any, ...]], columns: dict[str, str], index: Any = None) -> pd.DataFrame:
    import pandas as pd

    series = {
        name: _series([row[place] for row in rows], dtype, index)
        for place, (name, dtype) in enumerate(columns.items())
    }
    return pd.DataFrame(series)


def _series(values: list[Any], dtype: str, index: Any) -> Any:
    """A column; filled one by one, for pandas would take inputs that are lists apart."""
    import numpy as np
    import pandas as pd

    column = np.empty(len(values), dtype=dtype)
    for row, value in enumerate(values):
        column[row] = value
    return pd.Series(column, index=index, dtype=dtype)


def _positions(positions: Any) -> Any:
    import pandas as pd

    return pd.Index(pd.array(list(positions), dtype="Int64"), name="index")


def _cause_line(cause: Cause) -> str:
    example, failure = cause.example, cause.example.failure
    what = "key" if example.index is None else "input"
    line = cut(first_line(failure.message), 300)
    place = f" at {failure.where}" if failure.where else ""
    return (
        f"  {cause.count:,} x {failure.error} in {failure.stage}{place},"
        f" e.g. {what} {safe_repr(example.inp)}: {line}"
    )


def _portable(failed: Failed) -> Failed:
    try:
        pickles.loads(pickles.dumps(failed.inp))
    except Exception:
        return Failed(failed.failure, Unpicklable(safe_repr(failed.inp)), failed.index)
    return failed
