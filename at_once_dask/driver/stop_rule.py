"""Why a run stops early: for its failures, for workers that die before they start anything."""

from __future__ import annotations

from dask.utils import format_bytes

from at_once_dask.driver.blame import Death, exit_name
from at_once_dask.protocol.status import FAILED, PROCESSED, SKIPPED
from at_once_dask.report.ledger import Ledger
from at_once_dask.report.summary import counted

BARREN_DEATHS = 10  # in a row, none of them inside an input: then no worker will ever start one
JUDGED_FROM = 20  # inputs, before a share of failures says anything


class StopRule:
    """One answer to whether a run goes on.

    Parameters
    ----------
    ledger : Ledger
    on_error : str
        As of ``run``; ``"stop"`` stops at the first failed input.
    max_failures : int or float, optional
        As of ``run``.
    """

    def __init__(
        self, ledger: Ledger, on_error: str = "return", max_failures: float | None = None
    ) -> None:
        self._ledger = ledger
        self._stops_at_first = on_error == "stop"
        self._most = max_failures
        self._barren = 0
        self._hopeless: str | None = None

    @property
    def is_cautious(self) -> bool:
        """Whether failures may stop the run: then not much is sent at a time."""
        return self._stops_at_first or self._most is not None

    def allowed(self) -> int | None:
        """How many failures from now on stop the run at once; None where a share counts."""
        if self._stops_at_first:
            return 1
        most = self._most
        return most + 1 - self._ledger.counts[FAILED] if isinstance(most, int) else None

    def reason(self) -> str | None:
        """Why the run must stop, or None."""
        return self._hopeless or self._too_many()

    def _too_many(self) -> str | None:
        counts, most = self._ledger.counts, self._most
        failed = counts[FAILED]
        if failed and self._stops_at_first:
            return "an input failed, and on_error is 'stop'"
        if most is None:
            return None
        judged = failed + counts[PROCESSED] + counts[SKIPPED]  # what is done is good
        if isinstance(most, float):
            over = judged >= JUDGED_FROM and failed > most * judged
            what = f"{failed:,} of {counted(judged, 'input')}"
        else:
            over, what = failed > most, counted(failed, "input")
        return f"{what} failed, more than max_failures={most} allows" if over else None

    def handled(self) -> None:
        """An input was handled: workers do start something."""
        self._barren = 0

    def died(self, death: Death) -> None:
        """A worker that held partitions died; it counts when it had started none of their inputs.

        Where nobody saw how it died, it may be the machine that is gone.
        """
        seen = death.exit is not None and death.progress is not None
        if seen and not death.running():
            self._barren += 1
            self._hopeless = _hopeless(death) if self._barren >= BARREN_DEATHS else None


def _hopeless(death: Death) -> str:
    cause = exit_name(death.exit)
    if death.memory is not None:
        cause = f"the {format_bytes(death.memory)} of memory that it held"
    return (
        f"{BARREN_DEATHS} workers in a row died before they had started any input, the last one of"
        f" {cause}: what ends them is in the functions themselves, or on the machine; try"
        " process_inp(inp_list[0]) in this process"
    )
