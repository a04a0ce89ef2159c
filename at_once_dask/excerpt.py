"""Of many failures those that a page has room for, with what the log says of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, zip_longest
from operator import attrgetter
from typing import Any

from at_once_dask import journal
from at_once_dask.failure import Failure, cut, safe_repr
from at_once_dask.ledger import Cause, Failed
from at_once_dask.story import Story

MOST_CAUSES = 100
MOST_FAILURES = 300
FAILURE_BYTES = 1_500_000  # of text, as it will stand in the page
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
    """A failure that is shown; `like` is the one whose traceback is the same, and shown there."""

    number: int
    failure: Failure
    index: int | None
    inp: str
    like: Shown | None = None
    records: list[Record] = field(default_factory=list)
    n_more: int = 0  # records


@dataclass
class Group:
    """Equal failures: the cause, and some of them."""

    cause: Cause
    shown: list[Shown]

    @property
    def n_hidden(self) -> int:
        return self.cause.count - len(self.shown)


@dataclass
class Excerpt:
    """What is shown of the failures of a run."""

    groups: list[Group]
    n_causes_hidden: int
    log_problem: str = ""  # why there is less of the log than there might be


def excerpt(story: Story) -> Excerpt:
    """The largest causes; of each the first failures, as many of all as there is room for."""
    causes = story.ledger.causes()
    some = causes[:MOST_CAUSES]
    groups = {cause.example.failure.cause: Group(cause, []) for cause in some}
    members: dict[Any, list[Failed]] = {same: [] for same in groups}
    for failed in sorted(story.ledger.failed, key=attrgetter("order")):
        if failed.failure.cause in members and len(members[failed.failure.cause]) < MOST_FAILURES:
            members[failed.failure.cause].append(failed)
    for shown, same in _within_budget(members):
        groups[same].shown.append(shown)
    found = Excerpt(list(groups.values()), len(causes) - len(some))
    found.log_problem = _add_records(story, found)
    return found


def _within_budget(members: dict[Any, list[Failed]]) -> Iterator[tuple[Shown, Any]]:
    """The first of every cause, then the second of every cause, and so on."""
    by_rank = chain.from_iterable(zip_longest(*members.values()))
    known: dict[tuple[Any, str], Shown] = {}
    room = FAILURE_BYTES
    for number, failed in enumerate(filter(None, by_rank)):
        shown = Shown(number, failed.failure, failed.index, safe_repr(failed.inp))
        same = failed.failure.cause, _frames(failed.failure)
        shown.like = known.setdefault(same, shown) if failed.failure.traceback else None
        if shown.like is shown:
            shown.like = None
        room -= _size(shown)
        if number == MOST_FAILURES or (room < 0 and number):
            return
        yield shown, failed.failure.cause


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


def _add_records(story: Story, found: Excerpt) -> str:
    """Give each what the log says of it; why that is not all, or nothing."""
    by_name = {
        (shown.index, None if shown.index is not None else shown.inp): shown
        for group in found.groups
        for shown in group.shown
    }
    if not by_name:
        return ""
    facts = story.facts
    start, stop = facts.log_part
    room = RECORD_BYTES
    try:
        for raw in journal.records_of(
            facts.logfile,
            (start, min(stop, start + LOG_BYTES)),
            facts.run,
            {index for index, _ in by_name},
        ):
            named = isinstance(raw["index"], int)
            shown = by_name.get((raw["index"], None) if named else (None, str(raw["input"])))
            if shown is not None:
                room -= _add_record(shown, raw, room)
    except OSError as error:
        return f"The log cannot be read: {error.strerror}."
    if room <= 0 or stop - start > LOG_BYTES:
        return "The log is long: what is shown of it here are the first records only."
    return ""


def _add_record(shown: Shown, raw: dict[str, Any], room: int) -> int:
    """Add a record, where there is room; the bytes that it takes."""
    record = _record(raw, shown.failure)
    size = _bytes(record.msg)
    if len(shown.records) == MOST_RECORDS or size > room:
        shown.n_more += 1
        return 0
    shown.records.append(record)
    return size


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
