"""The timeline of the workers, and `report.plot()`: nothing is lost where neighbours are merged."""

from __future__ import annotations

import re
from array import array
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from bokeh.core.validation import check_integrity
from hypothesis import assume, given
from hypothesis import strategies as st
from runs import STARTED, ledger_of, report_of

import at_once_dask
from at_once_dask.protocol.status import FAILED, LEFT, NAMES, PROCESSED, SKIPPED
from at_once_dask.protocol.task import Outcome
from at_once_dask.report import bokeh_timeline, svg_charts, timeline
from at_once_dask.report.ledger import Ledger

# For each worker: gaps, and after each how long an input took and what became of it.
work = st.lists(
    st.tuples(st.floats(0, 5), st.floats(0, 5), st.sampled_from([PROCESSED, SKIPPED, FAILED])),
    min_size=1,
    max_size=30,
)
works = st.lists(work, min_size=1, max_size=5)


def ledger_from(works: list[list[tuple[float, float, int]]]) -> Ledger:
    """Every input is a partition of its own; some workers begin where the one before ended."""
    ledger, position, at = Ledger(), 0, 0.0
    ledger.draw(sum(map(len, works)) + 3)  # three are left
    for worker, work in enumerate(works):
        at = at if worker % 3 == 2 else 0.0
        for gap, seconds, state in work:
            marks = array("d", [at + gap, at + gap + seconds])
            at = marks[1]
            outcome = Outcome(position + 1, f"w{worker}", bytearray([state]), marks, STARTED)
            ledger.record(position, outcome, [position])
            position += 1
    return ledger


@given(works, st.integers(1, 200), st.integers(1, 50), st.sampled_from([1, timeline.MOST_ROWS]))
def test_all_inputs_are_in_it(
    works: list[list[tuple[float, float, int]]], most_bars: int, most_bins: int, most_rows: int
) -> None:
    """Also where several workers, one after the other, share a row."""
    ledger = ledger_from(works)
    n_timed = sum(map(len, works))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "MOST_ROWS", most_rows)
        found = timeline.timeline(ledger, most_bars, most_bins)

    assert len(found.n) <= max(most_bars, len(works) * len(NAMES))
    assert sum(found.n) == n_timed
    if most_rows > 1:
        assert found.rows == [f"w{worker}" for worker in range(len(works))]
        assert found.worker == [found.rows[row] for row in found.row]
    assert list(found.start >= 0).count(False) == 0
    assert max(found.end) == pytest.approx(found.span, abs=1e-5)
    for state in (PROCESSED, SKIPPED, FAILED):
        assert sum(found.n[found.state == state]) == ledger.counts[state]
    for row, start, end, state, position, longest, worker in zip(
        found.row,
        found.start,
        found.end,
        found.state,
        found.position,
        found.longest,
        found.worker,
        strict=True,
    ):
        assert ledger.names[ledger.workers[position]] == worker
        assert 0 <= row < len(found.rows)
        assert ledger.states[position] == state
        assert ledger.seconds[position] == longest <= end - start + 1e-5


def test_positions_are_those_of_the_list_as_given() -> None:
    ledger = Ledger(array("q", [1, 0]))
    ledger.draw(2)
    ledger.record(
        0, Outcome(2, "w", bytearray([PROCESSED] * 2), array("d", [0, 1, 3]), STARTED), [1, 2]
    )
    assert timeline.timeline(ledger, 10, 10).position == [1, 0]
    (longest,) = timeline.timeline(ledger, 1, 1).position
    assert longest == 0


def one_worker_an_input(n: int) -> Ledger:
    """Two at a time."""
    ledger = Ledger()
    ledger.draw(n)
    for position in range(n):
        begun = float(position // 2)
        marks = array("d", [begun, begun + 0.9])
        outcome = Outcome(position + 1, f"w{position}", bytearray([FAILED]), marks, STARTED)
        ledger.record(position, outcome, [0] * n)
    return ledger


def test_of_very_many_workers_the_next_goes_on_where_one_has_ended() -> None:
    """Each input ends its worker: two run at a time."""
    ledger = one_worker_an_input(200)

    found = timeline.timeline(ledger, 1_000, 1_000)

    assert found.rows == ["w0", "w1"]
    assert np.bincount(found.row).tolist() == [100, 100]
    assert found.n_hidden == 0


def test_more_rows_than_one_can_look_at_are_told_of() -> None:
    found = timeline.timeline(ledger_of(300_000, n_workers=300), 1_000, 1_000)

    assert len(found.rows) == timeline.MOST_LANES
    assert found.n_hidden == 200
    assert sum(found.n) == 100_000


@given(st.floats(1e-9, 1e8))
def test_ticks_of_time_are_few_and_within(span: float) -> None:
    ticks = svg_charts.time_ticks(span)
    assert 2 <= len(ticks) <= 6
    assert all(0 <= tick.percent <= 100.001 for tick in ticks)
    assert len({tick.text for tick in ticks}) == len(ticks)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_each_duration_is_in_the_histogram(seconds: list[float]) -> None:
    ledger = ledger_from([[(0.0, one, PROCESSED) for one in seconds]])
    found = svg_charts.histogram(ledger)
    assert found is not None
    assert 1 <= found.most <= len(seconds)
    assert 1 <= len(found.bars) <= min(len(seconds), svg_charts.N_BINS)
    assert max(height for _, height, _ in found.bars) == svg_charts.HEIGHT
    assert 2 <= len(found.ticks) <= 6
    assert len({tick.text for tick in found.ticks}) == len(found.ticks)
    assert all(-0.001 <= tick.percent <= 100.001 for tick in found.ticks)


@given(works)
def test_where_the_bars_of_the_page_are(works: list[list[tuple[float, float, int]]]) -> None:
    """Each input begins where it does on the axis, and is as long, but never too short to see."""
    ledger = ledger_from(works)
    found = svg_charts.workers(ledger)
    begun = [start - STARTED for start in ledger.starts]
    known = [n for n, state in enumerate(ledger.states) if state != LEFT]
    zero = min(begun[n] for n in known)
    span = max(begun[n] + ledger.seconds[n] for n in known) - zero
    assume(not 0 < span < 1e-5)  # a float of so many seconds since the epoch has no more digits
    unit = svg_charts.WIDTH / max(span, 1e-9)

    shown = []
    for row in found.rows:
        for state, path in row.paths:
            bars = re.findall(r"M(\S+) 0h(\S+)v1h-(\S+)z", path)
            assert "".join(f"M{left} 0h{width}v1h-{back}z" for left, width, back in bars) == path
            assert all(width == back for _, width, back in bars)
            shown += [(row.worker, state, float(left), float(width)) for left, width, _ in bars]

    expected = [
        (
            ledger.names[ledger.workers[n]],
            ledger.states[n],
            min((begun[n] - zero) * unit, svg_charts.WIDTH - svg_charts.LEAST_BAR),
            max(ledger.seconds[n] * unit, svg_charts.LEAST_BAR),
        )
        for n in known
    ]
    by_path = itemgetter(0, 1)  # and in there they come in the order of the list
    pairs = zip(sorted(shown, key=by_path), sorted(expected, key=by_path), strict=True)
    for bar, (worker, state, left, width) in pairs:
        assert bar[:2] == (worker, state)
        assert bar[2] == pytest.approx(left, abs=1)
        assert bar[3] == pytest.approx(width, rel=0.01, abs=0.1)


def test_without_work_there_is_no_chart() -> None:
    ledger = ledger_from([[(0.0, 1.0, SKIPPED)]])
    assert svg_charts.histogram(ledger) is None
    assert svg_charts.workers(Ledger()).rows == []


# ----- report.plot()


def bars_of(figure: Any) -> dict[str, Any]:
    (renderer,) = figure.renderers
    return dict(renderer.data_source.data)


def test_plot_of_a_million_inputs_stays_usable() -> None:
    bars = bars_of(report_of(ledger_of(1_000_000)).plot())

    assert 1_000 < len(bars["left"]) <= bokeh_timeline.MOST_BARS
    assert bars["what"][0].startswith("334 inputs, the longest at position ")
    assert float(max(bars["right"])) == pytest.approx(500)


def test_plot_of_nothing() -> None:
    """Bokeh finds nothing wrong with it."""
    issues = check_integrity([at_once_dask.run([], None, print).plot()])
    assert issues.error == []
    assert issues.warning == []


def test_each_bar_names_its_worker_where_several_share_a_row() -> None:
    figure: Any = report_of(one_worker_an_input(200)).plot()

    bars = bars_of(figure)
    assert set(bars["row"]) == set(figure.y_range.factors) == {"w0", "w1"}
    expected = {f"position {n}": f"w{n}" for n in range(200)}
    assert dict(zip(bars["what"], bars["worker"], strict=True)) == expected


def test_the_plot_tells_how_many_workers_it_does_not_show() -> None:
    figure: Any = report_of(ledger_of(300_000, n_workers=300)).plot()
    assert figure.title.text == "Workers of run 0123456789ab; 200 more are not shown"
    few: Any = report_of(ledger_of(2_000)).plot()
    assert few.title.text == "Workers of run 0123456789ab"
