"""The report as one HTML file that needs no network, and the small displays in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from at_once_dask.report import svg_charts
from at_once_dask.report.failure_sample import failure_sample
from at_once_dask.report.ledger import Failed
from at_once_dask.report.summary import (
    Summary,
    counted,
    elapsed,
    examples,
    message_line,
    named,
    took,
)
from at_once_dask.user_code.text import safe_repr, sound

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

CAUSES_IN_CARD = 5
ENTRIES_IN_CARD = 10
VALUE_LIMIT = 100  # characters of a key, a value or an input in a card


def page(summary: Summary) -> str:
    """The whole report, as the text of an HTML file."""
    return _rendered(
        "report.html",
        summary=summary,
        begun=_local(summary.facts.begun),
        found=failure_sample(summary),
        workers=svg_charts.workers(summary.ledger),
        histogram=svg_charts.histogram(summary.ledger),
        slowest=summary.ledger.slowest(),
        n_workers=len(summary.ledger.names),
    )


def report_card(summary: Summary) -> str:
    """The first things to see of a run."""
    causes = summary.ledger.causes(CAUSES_IN_CARD)
    return _rendered(
        "report_card.html",
        summary=summary,
        causes=causes,
        n_causes_hidden=summary.ledger.n_causes - len(causes),
    )


def reduction_card(items: Iterable[tuple[Any, Any]], n: int) -> str:
    """The first keys and values of `n`."""
    first = [
        (safe_repr(key, VALUE_LIMIT), safe_repr(value, VALUE_LIMIT))
        for (key, value), _ in zip(items, range(ENTRIES_IN_CARD), strict=False)
    ]
    return _rendered("reduction_card.html", n=n, first=first)


def plan_card(n_inputs: int, n_done: int, pending: Sequence[Any], failed: Sequence[Failed]) -> str:
    """The inputs that a run would process."""
    return _rendered(
        "plan_card.html",
        n_inputs=n_inputs,
        n_done=n_done,
        n_pending=len(pending),
        n_failed=len(failed),
        pending=[safe_repr(inp, VALUE_LIMIT) for inp in pending[:ENTRIES_IN_CARD]],
        failed=sorted(failed, key=attrgetter("order"))[:CAUSES_IN_CARD],
    )


def _rendered(template: str, **values: Any) -> str:
    return sound(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    """With autoescape: inputs, messages and tracebacks are text, whatever stands in them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("at_once_dask.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": "{:,}".format, "took": took, "elapsed": elapsed}
    made.globals |= {
        "counted": counted,
        "examples": examples,
        "named": named,
        "message_line": message_line,
        "chart_width": svg_charts.WIDTH,
        "chart_height": svg_charts.HEIGHT,
        "n_bins": svg_charts.N_BINS,
    }
    return made


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def is_address(link: str | None) -> bool:
    """Whether to make a link of it; behind JupyterHub's proxy it may have no host."""
    return link is not None and link.startswith(("http://", "https://", "/"))


def linked(text: str, link: str) -> Markup:
    """`text` as a link, where `link` is an address; escaped."""
    from markupsafe import Markup, escape

    if not is_address(link):
        return escape(text)
    return Markup('<a href="{}" target="_blank" rel="noopener">{}</a>').format(link, text)
