"""The two chains of a run, and what Dask does with the functions in them."""

from __future__ import annotations

from typing import Any

from at_once_dask.protocol.task import Job
from at_once_dask.worker.bag import Bags


def test_naming_the_tasks_does_not_pickle_the_functions() -> None:
    class Large:
        def __reduce__(self) -> Any:
            raise AssertionError("pickled for a name")

        def __call__(self, *args: Any) -> Any: ...

    bags = Bags(Job(Large(), Large(), Large(), None))
    assert callable(bags.mapping)
    assert callable(bags.folding)
