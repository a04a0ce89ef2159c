"""Results that nobody would compute are refused, and nothing is kept of them."""

from __future__ import annotations

import gc
import weakref

from at_once_dask.protocol.function_results import refuse_lazy


class Metaclass(type):
    def __eq__(cls, other: object) -> bool:
        return cls is other


def test_a_result_whose_type_cannot_be_hashed() -> None:
    refuse_lazy(Metaclass("Unhashable", (), {})())


def test_types_of_results_are_not_kept() -> None:
    """They would keep modules that were edited and imported anew."""
    kinds = weakref.WeakSet[type]()
    for n in range(200):
        kind = type(f"Result{n}", (), {})
        kinds.add(kind)
        refuse_lazy(kind())
    del kind
    gc.collect()
    assert len(kinds) <= 16
