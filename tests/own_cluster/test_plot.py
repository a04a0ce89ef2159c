"""`report.plot()` of a run that really ran."""

from __future__ import annotations

from typing import Any

from bokeh.models import HoverTool
from distributed import Client

import at_once_dask


def bars_of(figure: Any) -> dict[str, Any]:
    (renderer,) = figure.renderers
    return dict(renderer.data_source.data)


def test_plot(cluster: Client) -> None:
    report = at_once_dask.run(
        [2, 1, 0], lambda n: [n == 2, None], invert, on_error="return", progress=False
    )

    figure: Any = report.plot()

    bars = bars_of(figure)
    assert dict(zip(bars["what"], bars["status"], strict=True)) == {
        "position 0": "skipped",
        "position 1": "processed",
        "position 2": "failed",
    }
    assert set(bars["row"]) == set(bars["worker"]) == set(figure.y_range.factors)
    assert set(bars["worker"]) == set(report.items["worker"])
    assert bars["status"][-1] == "failed"
    assert len(set(bars["colour"])) == 3
    tips: Any
    (tips,) = (tool.tooltips for tool in figure.tools if isinstance(tool, HoverTool))
    assert tips[:2] == [("input", "@what"), ("took", "@took")]


def invert(inp: float) -> float:
    return 1 / inp
