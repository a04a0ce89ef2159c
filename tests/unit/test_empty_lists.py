"""A list of nothing: no cluster, no file, and a report all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import at_once_dask
from at_once_dask.cluster import connect


@pytest.mark.parametrize("reduce_fn", [None, sum])
@pytest.mark.parametrize(
    "empty", [[], (), iter(()), range(0), {}.keys()], ids=lambda empty: type(empty).__name__
)
def test_an_empty_list_starts_no_cluster(empty: Any, reduce_fn: Any, folder: Path) -> None:
    at_once_dask.close()
    result: Any = at_once_dask.run(empty, None, lambda n: None, reduce_fn=reduce_fn)
    report = result if reduce_fn is None else result.report
    assert (report.n_inputs, report.ok, report.dashboard_link) == (0, True, None)
    assert connect._own is None
    assert list(folder.iterdir()) == []
    if reduce_fn is not None:
        assert result == {}
