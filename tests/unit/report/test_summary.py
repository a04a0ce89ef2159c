"""How durations and speeds are said."""

from __future__ import annotations

import pytest

from at_once_dask.report.summary import duration, speed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3599.6, "1:00:00"), (360_000, "100:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(99.94, "99.9/s"), (100, "100/s"), (1, "1.0/s"), (1e-5, "0.0/h")]
)
def test_speeds(rate: float, text: str) -> None:
    assert speed(rate) == text
