"""Settings of the own cluster that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

import at_once_dask


@pytest.mark.parametrize(
    ("argument", "value", "text"),
    [
        ("n_workers", 0, r"start\(n_workers=4\)"),
        ("n_workers", 1.5, r"start\(n_workers=4\)"),
        ("n_workers", True, r"start\(n_workers=4\)"),
        ("memory_limit", "much", r'start\(memory_limit="4 GiB"\)'),
        ("memory_limit", -1, r'start\(memory_limit="4 GiB"\)'),
        ("dashboard_address", 8787, r'start\(dashboard_address="127.0.0.1:8787"\)'),
        ("dashboard_address", "127.0.0.1:http", r'start\(dashboard_address="127.0.0.1:8787"\)'),
        ("dashboard_address", "127.0.0.1:70000", r'start\(dashboard_address="127.0.0.1:8787"\)'),
        ("dashboard_address", "[::1]:0", r'start\(dashboard_address="127.0.0.1:8787"\)'),
    ],
)
def test_wrong_settings(argument: str, value: Any, text: str) -> None:
    at_once_dask.close()
    with pytest.raises(at_once_dask.InputError, match=text) as refused:
        at_once_dask.start(**{argument: value})
    assert str(refused.value).startswith(f"{argument} is {value!r}; it takes ")
