"""As many failures as a page has room for, with the records that the log has of each."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any

from toolz import groupby, interleave

from at_once_dask.logs import reader
from at_once_dask.protocol.failure import Failure
from at_once_dask.report.ledger import Cause, Failed
from at_once_dask.report.summary import Summary
from at_once_dask.user_code import pickling
from at_once_dask.user_code.text import cut, safe_repr

MOST_CAUSES = 100
MOST_FAILURES = 300
FAILURE_BYTES = 1_500_000  # of text, as it will stand in the page
NAME_BYTES = 500_000  # of inputs that are only named
RECORD_BYTES = 1_000_000  # of records, likewise
MOST_RECORDS = 20  # of one input
RECORD_LIMIT = 2_000  # characters of one record
LOG_BYTES = 64 * 2**20  # of the log that are read


@dataclass(frozen=True)
class Record:
    """One record of the log."""

    time: str
    level: str
    msg: str


@dataclass
class Shown:
    """A failure that is shown.

    `is_unique`: no other input or key is called the same; `like` is the one whose traceback is the
    same, and shown there; `records` are its last ones, `n_more` those before them.
    """

    number: int
    failure: Failure
    index: int | None
    inp: str
    is_unique: bool
    like: Shown | None = None
    records: list[Record] = field(default_factory=list)
    n_more: int = 0


@dataclass
class Group:
    """Equal failures: the cause, some of them, and the names of those behind these."""

    cause: Cause
    shown: list[Shown]
    named: list[str] = field(default_factory=list)

    @property
    def n_hidden(self) -> int:
        return self.cause.count - len(self.shown) - len(self.named)


@dataclass
class FailureSample:
    """The failures of a run that are shown."""

    groups: list[Group]
    n_causes_hidden: int
    log_problem: str = ""  # why there is less of the log than there might be


def failure_sample(summary: Summary) -> FailureSample:
    """The largest causes; of each the first failures, as many of all as there is room for."""
    causes = summary.ledger.causes(MOST_CAUSES)
    groups = {cause.example.failure.cause: Group(cause, []) for cause in causes}
    failed = sorted(summary.ledger.failed, key=attrgetter("order"))
    by_cause = groupby(lambda one: one.failure.cause, failed)
    members = {same: by_cause[same] for same in groups}
    for shown, group in _within_budget(members, groups):
        group.shown.append(shown)
    _name_the_rest(members, groups)
    found = FailureSample(list(groups.values()), summary.ledger.n_causes - len(causes))
    found.log_problem = _add_records(summary, found)
    return found


def _within_budget(
    members: dict[Any, list[Failed]], groups: dict[Any, Group]
) -> Iterator[tuple[Shown, Group]]:
    """The first of every cause, then the second of every cause, and so on."""
    known: dict[tuple[Any, str], Shown] = {}
    room = FAILURE_BYTES
    for number, failed in enumerate(interleave(members.values())):
        group = groups[failed.failure.cause]
        inp = group.cause.inp if failed is group.cause.example else safe_repr(failed.inp)
        shown = Shown(number, failed.failure, failed.index, inp, _is_unique(failed.inp, inp))
        same = failed.failure.cause, _frames(failed.failure)
        shown.like = known.setdefault(same, shown) if failed.failure.traceback else None
        if shown.like is shown:
            shown.like = None
        room -= _size(shown)
        if number == MOST_FAILURES or (room < 0 and number):
            return
        yield shown, group


def _name_the_rest(members: dict[Any, list[Failed]], groups: dict[Any, Group]) -> None:
    """Name as many of each cause as there is room for."""
    for same, group in groups.items():
        room = NAME_BYTES // len(groups)
        for failed in members[same][len(group.shown) :]:
            place = "key" if failed.index is None else failed.index
            text = f"{place}\t{safe_repr(failed.inp)}"
            room -= _bytes(text) + 1
            if room < 0:
                break
            group.named.append(text)


def _is_unique(inp: Any, text: str) -> bool:
    """Whether nothing else is called so: it is of a plain type, and none of its text is cut."""
    return pickling.is_plain(inp) and repr(inp) == text


def _frames(failure: Failure) -> str:
    """The traceback without the message, in which equal failures may differ."""
    if not failure.message:
        return failure.traceback
    before, _, after = failure.traceback.rpartition(failure.message)
    return before + after


def _size(shown: Shown) -> int:
    failure = shown.failure
    texts = [shown.inp, failure.message, failure.error, failure.where]
    if shown.like is None:
        texts.append(failure.traceback)
    return sum(map(_bytes, texts))


def _bytes(text: str) -> int:
    """As HTML, whose escapes are up to five characters long."""
    specials = sum(map(text.count, "<>&'\""))
    return len(text.encode("utf-8", "backslashreplace")) + 4 * specials


def _add_records(summary: Summary, found: FailureSample) -> str:
    """Give each what the log says of it; why that is not all, or nothing."""
    every = [shown for group in found.groups for shown in group.shown]
    by_name = {name: shown for shown in every if (name := _name(shown)) is not None}
    if not by_name:
        return ""
    facts = summary.facts
    start, stop = facts.log_part
    latest: dict[int, deque[Record]] = defaultdict(lambda: deque(maxlen=MOST_RECORDS))
    try:
        for raw in reader.records_of(
            facts.logfile,
            (start, min(stop, start + LOG_BYTES)),
            facts.run,
            {index for index, _ in by_name},
        ):
            shown = by_name.get(_name_in(raw))
            if shown is not None:
                shown.n_more += 1
                latest[shown.number].append(_record(raw, shown.failure))
    except OSError as error:
        return f"The log cannot be read: {error.strerror}."
    if not _records_within_budget(every, latest):
        return "The log is long: there is no room here for all records, even of these failures."
    if stop - start > LOG_BYTES:
        return f"The log is long: only its first {LOG_BYTES // 2**20} MiB were looked through."
    return ""


def _name(shown: Shown) -> tuple[int | None, str | None] | None:
    """By what the log knows it; None for a key that another one may be called like."""
    if shown.index is not None:
        return shown.index, None
    return (None, shown.inp) if shown.is_unique else None


def _name_in(raw: dict[str, Any]) -> tuple[int | None, str | None]:
    """The input of a record; the driver's own have none, not even one that is called None."""
    if isinstance(raw["index"], int):
        return raw["index"], None
    return None, raw["input"] if isinstance(raw["input"], str) else None


def _records_within_budget(every: list[Shown], latest: dict[int, deque[Record]]) -> bool:
    """The last record of each, which explains most, then the one before; whether all fit."""
    room = RECORD_BYTES
    of_each = [[(shown, record) for record in reversed(latest[shown.number])] for shown in every]
    for shown, record in interleave(of_each):
        room -= _bytes(record.msg)
        if room < 0:
            return False
        shown.n_more -= 1
        shown.records.insert(0, record)
    return True


def _record(raw: dict[str, Any], failure: Failure) -> Record:
    """As it is shown, without the traceback that stands above it."""
    msg = raw["msg"] if isinstance(raw["msg"], str) else json.dumps(raw["msg"])
    if failure.traceback:
        msg = msg.replace(failure.traceback, "").rstrip()
    return Record(_clock(raw["time"]), str(raw["level"]), cut(msg, RECORD_LIMIT))


def _clock(time: Any) -> str:
    """The local time of day."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (TypeError, ValueError):  # somebody else's record
        return safe_repr(time)
