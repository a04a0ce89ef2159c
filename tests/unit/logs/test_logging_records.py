"""Where `logging` records are noted, beside others who watch the same place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from at_once_dask.logs import logging_records


@contextlib.contextmanager
def noting(noted: list[tuple[str, str]], captured: bool = True) -> Iterator[None]:
    records = logging_records.noting(
        lambda: captured, lambda level, text: noted.append((level, text))
    )
    try:
        yield
    finally:
        records.undo()


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("test_logging_records")


def test_taken_away_again(log: logging.Logger) -> None:
    before, noted = logging.Logger.callHandlers, list[tuple[str, str]]()
    with noting(noted):
        log.warning("one of %d", 2)
    log.warning("behind the end")
    assert noted == [("WARNING", "test_logging_records: one of 2")]
    assert logging.Logger.callHandlers is before


def test_others_records(log: logging.Logger) -> None:
    noted: list[tuple[str, str]] = []
    with noting(noted, captured=False):
        log.warning("the driver's own")
    assert noted == []


def test_somebody_watches_loggers_too(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Sentry's integration does it: put in the same place meanwhile, and never taken away."""
    noted, watched = list[tuple[str, str]](), list[str]()
    with noting(noted):
        before = logging.Logger.callHandlers

        def watching(logger: logging.Logger, record: logging.LogRecord) -> None:
            watched.append(record.getMessage())
            before(logger, record)

        monkeypatch.setattr(logging.Logger, "callHandlers", watching)
        log.warning("first")
    with noting(noted):
        log.warning("second")
    assert logging.Logger.callHandlers is watching
    assert [text for _, text in noted] == [
        f"test_logging_records: {n}" for n in ("first", "second")
    ]
    assert watched == ["first", "second"]


def test_a_handler_that_raises(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is noted; the error is the caller's, as without us."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space")

    monkeypatch.setattr(log, "handlers", [Raising()])
    noted: list[tuple[str, str]] = []
    with noting(noted), pytest.raises(OSError, match="no space"):
        log.error("lost?")
    assert noted == [("ERROR", "test_logging_records: lost?")]


def test_a_traceback_that_a_handler_has_shortened(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has it whole; and that the root logger propagates to nobody says nothing."""

    class Short(logging.Formatter):
        def formatException(self, exc_info: object) -> str:  # noqa: N802
            return "SHORT"

    handler = logging.StreamHandler()
    handler.setFormatter(Short())
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(logging.getLogger(), "propagate", False)
    noted: list[tuple[str, str]] = []
    with noting(noted):
        try:
            raise ValueError("inner")
        except ValueError:
            log.exception("it broke")
    ((_, text),) = noted
    assert text.startswith("test_logging_records: it broke\nTraceback")
    assert text.endswith("ValueError: inner")
