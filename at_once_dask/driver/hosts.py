"""Which hosts fail what they are given, while others do not: these get nothing more.

A host without its disk fails every input at once, so it always has room, and eats the list. But
ten bad inputs may also be neighbours in the list. So a host is bad only while no other one has
failed in the same way. Until it is known whose fault failures are, a partition ends at the tenth,
and a host that had ten in a row waits a little before it gets more.
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
WAIT_SECONDS = 2.0  # for others to succeed, or to fail in the same way


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
    clock : callable
        Seconds.
    """

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._note = note
        self._clock = clock
        self._records: defaultdict[str, _Record] = defaultdict(_Record)
        self._hosts: defaultdict[Same, set[str]] = defaultdict(set)  # that have failed so
        self._good = 0
        self._bad: set[str] = set()
        self._suspects: dict[str, float] = {}  # until when they wait
        self._several = False

    def see(self, workers: Iterable[str]) -> None:
        """These workers live: only where they are on several hosts one can be told from others."""
        there = set(map(host_of, workers))
        self._several = len(there) > 1
        if not there - self._bad:
            self._bad.clear()  # none is left but bad ones

    @property
    def avoided(self) -> set[str]:
        """Addresses of hosts that get nothing more, or nothing for a while."""
        now = self._clock()
        return self._bad | {host for host, until in self._suspects.items() if now < until}

    def allowed(self) -> int | None:
        """How many failures end a partition, until it is known whose fault they are."""
        is_open = self._several and all(len(hosts) == 1 for hosts in self._hosts.values())
        return IN_A_ROW if is_open else None

    def take(self, outcome: Outcome) -> bool:
        """Note what became of a partition's inputs; whether other hosts are avoided from now on."""
        if not self._several and not self._records:
            return False
        before = self.avoided
        host = host_of(outcome.worker)
        failures = {failure.position: failure for failure in outcome.failures}
        start = outcome.stop - len(outcome.states)
        for position, state in enumerate(outcome.states, start):
            if state == PROCESSED:
                self._good += 1
                if host not in self._bad:
                    self._records.pop(host, None)
            elif state == FAILED and position in failures:
                self._fail(host, failures[position])
        if self._records:
            self._judge_all({host} if failures else set())
        return self.avoided != before

    def _fail(self, host: str, failure: Failure) -> None:
        record = self._records[host]
        if not record.failed:
            record.good_before = self._good
        record.failed += 1
        record.name = failure.host
        record.causes.add(failure.cause)
        self._hosts[failure.cause].add(host)

    def _judge_all(self, failed: set[str]) -> None:
        """Who is bad now; another host may fail in the same way: then they are no more."""
        for host in failed | self._bad | self._suspects.keys():
            record = self._records[host]
            is_suspect = record.failed >= IN_A_ROW and all(
                self._hosts[cause] == {host} for cause in record.causes
            )
            self._judge(host, record, is_suspect and self._several, host in failed)

    def _judge(self, host: str, record: _Record, is_suspect: bool, failed: bool) -> None:
        name = record.name or host
        is_bad = is_suspect and self._good > record.good_before
        if is_bad and host not in self._bad:
            self._bad.add(host)
            self._note(
                f"{name} gets nothing more: {record.failed} inputs in a row have failed there"
                f" ({_named(record.causes)}), and others not; see what is wrong with it, and run"
                " the same again"
            )
        elif not is_bad and host in self._bad:
            self._bad.discard(host)
            self._note(f"{name} gets inputs again: others fail in the same way")
        if is_suspect and not is_bad and failed:
            self._suspects[host] = self._clock() + WAIT_SECONDS
        elif not is_suspect or is_bad:
            self._suspects.pop(host, None)


def _named(causes: set[Same]) -> str:
    by_error = groupby(lambda cause: cause[2], causes)
    return ", ".join(sorted(by_error))
