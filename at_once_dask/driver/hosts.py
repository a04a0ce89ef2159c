"""Which hosts fail what they are given, while others do not: these get nothing more.

A host without its disk fails every input at once, so it always has room, and eats the list. But
ten bad inputs may also be neighbours in the list. So a host is bad only while no other one has
failed in the same way. Until it is known whose fault failures are, a partition ends at the tenth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from toolz import groupby

from at_once_dask.protocol.failure import Failure, Same
from at_once_dask.protocol.status import FAILED, PROCESSED
from at_once_dask.protocol.task import Outcome, host_of

IN_A_ROW = 10  # inputs that fail on a host


@dataclass
class _Record:
    """The failures of one host since an input was processed there."""

    failed: int = 0
    causes: set[Same] = field(default_factory=set)
    good_before: int = 0  # inputs that were processed elsewhere when the first of them failed
    name: str = ""


class Hosts:
    """The hosts of a run, and what they have failed.

    Parameters
    ----------
    note : callable
        Called with what the user should know.

    Attributes
    ----------
    bad : set of str
        Addresses of hosts that get nothing more.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._records: defaultdict[str, _Record] = defaultdict(_Record)
        self._hosts: defaultdict[Same, set[str]] = defaultdict(set)  # that have failed so
        self._good = 0
        self.bad: set[str] = set()
        self._several = False

    def see(self, workers: Iterable[str]) -> None:
        """These workers live: only where they are on several hosts one can be told from others."""
        there = set(map(host_of, workers))
        self._several = len(there) > 1
        if not there - self.bad:
            self.bad.clear()  # none is left but bad ones

    def allowed(self) -> int | None:
        """How many failures end a partition, until it is known whose fault they are."""
        is_open = self._several and all(len(hosts) == 1 for hosts in self._hosts.values())
        return IN_A_ROW if is_open else None

    def take(self, outcome: Outcome) -> None:
        """Note what became of a partition's inputs."""
        host = host_of(outcome.worker)
        record = self._records[host]
        failures = {failure.position: failure for failure in outcome.failures}
        position = outcome.stop - len(outcome.states)
        for place, state in enumerate(outcome.states, position):
            if state == PROCESSED:
                self._good += 1
                self._records[host] = record = _Record()
            elif state == FAILED and place in failures:
                self._fail(record, host, failures[place])
        if failures or record.failed:
            self._judge(host)

    def _fail(self, record: _Record, host: str, failure: Failure) -> None:
        if not record.failed:
            record.good_before = self._good
        record.failed += 1
        record.name = failure.host
        record.causes.add(failure.cause)
        self._hosts[failure.cause].add(host)

    def _judge(self, judged: str) -> None:
        """Who is bad now; another host may fail in the same way: then they are no more."""
        for host in {judged, *self.bad}:
            record = self._records[host]
            is_bad = (
                record.failed >= IN_A_ROW
                and self._good > record.good_before
                and all(self._hosts[cause] == {host} for cause in record.causes)
            )
            if is_bad and self._several and host not in self.bad:
                self.bad.add(host)
                self._note(
                    f"{record.name or host} gets nothing more: {record.failed} inputs in a row have"
                    f" failed there ({_named(record.causes)}), and others not; see what is wrong"
                    " with it, and run the same again"
                )
            elif not is_bad and host in self.bad:
                self.bad.discard(host)
                self._note(f"{record.name or host} gets inputs again: others fail in the same way")


def _named(causes: set[Same]) -> str:
    by_error = groupby(lambda cause: cause[2], causes)
    return ", ".join(sorted(by_error))
