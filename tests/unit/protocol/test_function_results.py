"""Which values are the same: what a resumed run gives must be what the first one gave."""

from __future__ import annotations

import io
import re
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from at_once_dask.protocol.function_results import same


class Plain:
    """No ``==`` of its own."""

    def __init__(self, value: Any) -> None:
        self.value = value


FRAME = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None]})


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        (1, 1.0, True),
        (1, "1", False),
        (True, 1, True),
        ((1, 2), [1, 2], False),
        ({1, 2}, {2, 1}, True),
        (float("nan"), float("nan"), True),
        ([np.array([1, 2]), "x"], [np.array([1, 2]), "x"], True),
        (np.array([1, 2]), np.array([1, 3]), False),
        (np.array([1, np.nan]), np.array([1, np.nan]), True),
        (FRAME, FRAME.copy(), True),
        (FRAME, FRAME.assign(a=[1.0, 0.0]), False),
        (Plain([1, {"a": 2}]), Plain([1, {"a": 2}]), True),
        (Plain([1, {"a": 2}]), Plain([1, {"a": "2"}]), True),  # nobody can say
        (np.int64(5), 5, True),
        (np.str_("a"), "a", True),
        (Counter("ab"), {"a": 1, "b": 1}, True),
        (np.array([[1, 2], [3, 4]]), np.asfortranarray([[1, 2], [3, 4]]), True),
        (np.array([0.0]), np.array([-0.0]), True),
        (FRAME, pd.read_csv(io.StringIO(FRAME.to_csv(index=False))), True),
        (pd.Series([1, 2]), pd.Series([1, 3]), False),
        (date(2024, 1, 1), "2024-01-01", False),
        ({"a": (1,)}, {"a": [1]}, False),
        (pd.Timestamp("2024-01-01"), "2024-01-01", False),
        (Path("a"), "a", False),
        (lambda: 1, lambda: 1, True),  # nobody can say
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_what_is_the_same(one: Any, other: Any, are_same: bool) -> None:
    assert same(one, other) is are_same
    assert same(other, one) is are_same
    assert same({"key": [one]}, {"key": [other]}) is are_same
