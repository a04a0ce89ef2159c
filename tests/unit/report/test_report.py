"""A report without the run that made it: it pickles, and says what it cannot replay."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from runs import report_of

import at_once_dask
from at_once_dask.protocol.failure import Failure
from at_once_dask.report.ledger import Ledger


def test_a_report_with_an_input_that_only_cloudpickle_takes_pickles() -> None:
    ledger = Ledger()
    ledger.draw(1)
    ledger.refuse(Failure(0, "process", "exception", "E", "no"), lambda: 3)
    copy = pickle.loads(pickle.dumps(report_of(ledger)))
    assert "<lambda>" in repr(copy.failures.loc[0, "input"])


@pytest.mark.parametrize("position", [[0], {0}, (0, [1]), 7, "x"])
def test_replay_of_what_has_not_failed(position: Any) -> None:
    ledger = Ledger()
    ledger.draw(1)
    ledger.refuse(Failure(0, "process", "exception", "E", "no"), 3)
    with pytest.raises(at_once_dask.InputError) as refused:
        report_of(ledger).replay(position)
    assert str(refused.value).startswith(f"no input at position {position!r} has failed; ")
