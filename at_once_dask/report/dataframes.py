"""The ledger as pandas frames of documented types."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from at_once_dask.protocol.status import NAMES
from at_once_dask.report.ledger import Cause, Failed, Ledger

if TYPE_CHECKING:
    import pandas as pd

_FAILURE_COLUMNS = {
    "input": "object",
    "key": "object",
    "stage": "object",
    "kind": "object",
    "error": "object",
    "message": "object",
    "traceback": "object",
    "worker": "object",
    "host": "object",
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
    "host": "object",
}


def failures_frame(failed: Sequence[Failed]) -> pd.DataFrame:
    """Failures as a frame, by position in the list as given; keys come last.

    Returns
    -------
    pandas.DataFrame
        Indexed by position (Int64, named ``index``, ``<NA>`` for keys): ``input``, ``key``,
        ``stage``, ``kind``, ``error``, ``message``, ``traceback``, ``worker``, ``host``, ``exit``
        (object),
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


def causes_frame(causes: Sequence[Cause]) -> pd.DataFrame:
    """Causes as a frame, in their order; see ``Report.causes``."""
    rows = [
        (f.kind, f.stage, f.error, f.where, cause.count, cause.example.inp, f.message, cause.host)
        for cause in causes
        for f in [cause.example.failure]
    ]
    return _frame(rows, _CAUSE_COLUMNS)


def items_frame(ledger: Ledger) -> pd.DataFrame:
    """One row an input; see ``Report.items``."""
    import numpy as np
    import pandas as pd

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
