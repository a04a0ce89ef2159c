"""What workers and nannies tell the driver between outcomes."""

from __future__ import annotations


def topic(run: str) -> str:
    """Where the workers tell the driver things between outcomes: records, what runs long."""
    return f"at_once_dask-{run}"
