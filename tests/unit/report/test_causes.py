"""Equal failures, grouped by what they have in common."""

from __future__ import annotations

from at_once_dask.protocol.failure import Failure
from at_once_dask.report.ledger import Ledger

HOSTILE = '<script>document.body.className = "taken"</script>"><img src=x onerror=document.title=1>'


class Evil:
    """An input whose repr would take over a page that did not escape it."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        return f"{HOSTILE}{self.n}"


def test_of_many_causes_the_most_frequent_are_found() -> None:
    ledger = Ledger()
    failures = [Failure(n, "process", "exception", f"E{n * n % 11}", "no") for n in range(99)]
    ledger.draw(99)
    for failure in failures:
        ledger.refuse(failure, failure.position)
    causes = ledger.causes()
    assert [ledger.causes(n) for n in range(8)] == [causes[:n] for n in range(8)]
    assert (ledger.n_causes, sum(cause.count for cause in causes)) == (6, 99)


def test_a_cause_has_its_example_from_the_beginning() -> None:
    """The repr of an input may take long, and somebody may look meanwhile."""
    ledger, looks = Ledger(), []

    class Looking(Evil):
        def __repr__(self) -> str:
            looks.append([(cause.inp, cause.count) for cause in ledger.causes()])
            return str(self.n)

    ledger.draw(9)
    for n in (5, 2):
        ledger.refuse(Failure(n, "process", "exception", "ValueError", "no"), Looking(n))
    assert looks == [[], [("5", 1)]]
    assert [(cause.inp, cause.count) for cause in ledger.causes()] == [("2", 2)]
