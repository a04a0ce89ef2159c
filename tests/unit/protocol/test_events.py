"""What workers report arrives as it was, over Dask's connections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from distributed.protocol.core import dumps, loads

from at_once_dask.protocol.events import (
    Event,
    LogLines,
    Running,
    WorkerDied,
    message,
    read,
    topic,
)

DIED = WorkerDied(
    worker="tls://127.0.0.1:40001",
    at=12.5,
    epoch=1.7e9,
    exit=-11,
    progress={"run-m1": b"\0\1\xff", "run-m2": b""},
    overdue=("run-m1", 7),
    timeout=1.5,
    stack='Thread 0x1 (most recent call first):\n  File "ä.py", line 1 in f\n',
    last_words="Segmentation fault \ufffd",
)

EVENTS: list[Event] = [
    LogLines('{"msg": "eins"}\n{"msg": "zwei ✓"}\n'),
    Running("tcp://10.0.0.1:8786", 2.25, "process", "'/data/ä.html'"),
    DIED,
    WorkerDied("w", 0.0, 0.0, 1, None, None, None, "", ""),
]


def by_dask(sent: dict[str, Any]) -> Any:
    """As a connection of Dask takes it, with msgpack, and gives it."""
    return loads(dumps(sent))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_the_same_on_the_other_side(event: Event) -> None:
    found = read(by_dask(message(event)))
    if isinstance(found, WorkerDied) and found.overdue is not None:
        id, position = found.overdue  # on the way tuples become lists
        found = replace(found, overdue=(id, position))
    assert found == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_what_dask_adds_to_it_is_not_read(event: Event) -> None:
    """``Worker.log_event`` adds who sent it."""
    assert (
        read({**message(event), "worker": getattr(event, "worker", "tcp://w"), "more": 1}) == event
    )


def test_no_two_runs_share_a_topic() -> None:
    assert topic("abc") != topic("abd")
