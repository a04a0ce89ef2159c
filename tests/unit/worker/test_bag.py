"""The two chains of a run, and what Dask does with the functions in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from at_once_dask.protocol.progress_file import ProgressFile
from at_once_dask.protocol.status import PROCESSED
from at_once_dask.protocol.task import Job
from at_once_dask.worker.bag import Bags
from at_once_dask.worker.steps import Item


def test_naming_the_tasks_does_not_pickle_the_functions() -> None:
    class Large:
        def __reduce__(self) -> Any:
            raise AssertionError("pickled for a name")

        def __call__(self, *args: Any) -> Any: ...

    bags = Bags(Job(Large(), Large(), Large(), None))
    assert callable(bags.mapping)
    assert callable(bags.folding)


def test_a_chain_is_lazy_and_each_input_passes_all_steps_before_the_next_is_drawn() -> None:
    happened: list[str] = []

    def check(inp: str) -> list[Any]:
        happened.append(f"check {inp}")
        return [inp == "b", None]

    def process(inp: str) -> None:
        happened.append(f"process {inp}")

    def drawn() -> Iterator[Item]:
        progress = ProgressFile(0, 3)
        for offset, inp in enumerate("abc"):
            happened.append(f"draw {inp}")
            item = Item(progress)
            item.offset, item.inp = offset, inp
            yield item

    chain = Bags(Job(check, process, None, None)).mapping(drawn())
    assert happened == []
    assert next(chain).state == PROCESSED
    assert happened == ["draw a", "check a", "process a"]
    assert [item.inp for item in chain] == ["c"]  # what is done does not matter in a map-only run
    assert happened[3:] == ["draw b", "check b", "draw c", "check c", "process c"]


def test_a_chain_is_compiled_once_and_runs_each_partition_anew() -> None:
    """The partition is not fused into it."""
    bags = Bags(Job(None, str, None, None))
    chain = bags.mapping
    assert bags.mapping is chain
    for inputs in ("ab", "cde"):
        items = [Item(ProgressFile(0, 1)) for _ in inputs]
        for item, inp in zip(items, inputs, strict=True):
            item.inp = inp
        assert [item.inp for item in chain(items)] == list(inputs)
