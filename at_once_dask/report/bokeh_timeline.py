"""The timeline of the workers as a Bokeh figure, to zoom into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from at_once_dask.protocol.status import FAILED, NAMES, PROCESSED, SKIPPED
from at_once_dask.report.summary import took
from at_once_dask.report.timeline import Timeline, drawn_last, timeline

if TYPE_CHECKING:
    from bokeh.plotting import figure

    from at_once_dask.report.ledger import Ledger

MOST_BARS = 15_000
MOST_BINS = 5_000

_COLOURS = {SKIPPED: "#c3c9d0", PROCESSED: "#3f74a8", FAILED: "#b3261e"}


def timeline_figure(ledger: Ledger, run: str) -> figure:
    """One row a worker, from top to bottom, and bars that say on hovering what they stand for."""
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool
    from bokeh.plotting import figure

    found = timeline(ledger, MOST_BARS, MOST_BINS)
    hidden = f"; {found.n_hidden:,} more are not shown" if found.n_hidden else ""
    plot = figure(
        title=f"Workers of run {run}{hidden}",
        y_range=FactorRange(factors=found.rows[::-1]),
        height=min(130 + 24 * len(found.rows), 1_500),
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,xbox_zoom,reset,save",
        active_drag="xbox_zoom",
    )
    plot.xaxis.axis_label = "seconds since the first input began"
    plot.ygrid.visible = False
    bars = plot.hbar(
        y="row",
        left="left",
        right="right",
        height=0.7,
        fill_color="colour",
        line_color="colour",  # at least a pixel wide, however short
        source=ColumnDataSource(_columns(found)),
    )
    tips = [("input", "@what"), ("took", "@took"), ("status", "@status"), ("worker", "@worker")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    return plot


def _columns(found: Timeline) -> dict[str, Any]:
    import numpy as np

    order = drawn_last(found.state).tolist()
    states = [int(found.state[bar]) for bar in order]
    return {
        "row": [found.rows[found.row[bar]] for bar in order],
        "worker": [found.worker[bar] for bar in order],
        "left": np.array([found.start[bar] for bar in order]),
        "right": np.array([found.end[bar] for bar in order]),
        "colour": [_COLOURS.get(state, "#8b949e") for state in states],
        "status": [NAMES[state] for state in states],
        "what": [_what(found, bar) for bar in order],
        "took": [took(float(found.longest[bar])) for bar in order],
    }


def _what(found: Timeline, bar: int) -> str:
    """Which input it is; of several which took longest."""
    n, position = int(found.n[bar]), int(found.position[bar])
    return f"position {position}" if n == 1 else f"{n:,} inputs, the longest at position {position}"
