"""The page "At once" in the dashboard of the own cluster, and a JSON address beside it.

The scheduler of the own cluster lives in the driver's process. So page and address read the
driver's state itself, when somebody looks; no worker sends anything for it.

::

    GET /at-once                        the page: the latest run, and those before it
    GET /at-once?run=ID                 the page: that run
    GET /at-once.json                   a few facts of each run, and all of the latest one
    GET /at-once.json?run=ID            the same, and all of that run
    GET /at-once.json?run=ID&cause=ID   the traceback of a cause's example

What the address answers is one JSON object:

``runs``
    The latest runs of this cluster (20 at most), the latest first; each with ``id``, ``name`` (the
    function's), ``begun`` (UTC), ``state``, ``phase``, ``seconds``, ``inputs`` and ``keys``, as
    below.
``run``
    One of them with all that is known of it, or null before the first one:

    ``state``
        ``running``; ``done``: no input failed; ``failed``: all were handled, and some failed;
        ``stopped``, ``interrupted`` or ``broken``: it ended early, and ``reason`` says why.
    ``phase``
        ``start`` (the workers get to know the run), ``map``, ``reduce``, or ``check`` of a plan.
    ``seconds``, ``eta``
        Since it began, and until it ends; ``eta`` is null when nobody can know.
    ``inputs``
        ``total``, ``processed``, ``skipped``, ``failed``, ``pending`` (of a plan), ``left``.
        `total` and `left` are null while it is not known how many there are.
    ``keys``
        Of the reduction: ``total``, ``reduced``, ``failed``, ``left``; null where there is none.
    ``rate``, ``rates``
        Inputs a second now, skipped ones aside, and over time: by ``phase`` its ``points``, pairs
        of seconds since the run began, and rate.
    ``usual``
        Seconds that an input takes as a rule (the median); null while nobody knows.
    ``workers``
        What each is doing now: ``worker`` (its address), ``input`` (its repr, or the key's) and
        its ``index``, ``stage`` (``idle``, ``between inputs``, or as in a failure), ``seconds``
        (for how long), and ``long``, whether that is much more than usual. The longest first.
    ``n_causes``, ``causes``
        Equal failures grouped, the most frequent first (20 at most): ``id``, ``count``,
        ``kind``, ``stage``,
        ``error``, ``where``, ``message``, and of the first such failure ``example``, the repr of
        its input or key, and ``index``, null for a key.
    ``slowest``
        The inputs that took longest (20 at most): ``index``, ``input``, ``seconds``.

With ``cause`` it is ``{"cause": ID, "traceback": TEXT}``. A run or cause that is not known is
answered with status 404 and ``{"error": TEXT}``.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from tornado.ioloop import IOLoop
from tornado.web import Application, RedirectHandler, RequestHandler

from at_once_dask.live.monitor import Monitor, RunView

ADDRESS = "at-once"
UPDATE_SECONDS = 1

_STATIC = Path(__file__).with_name("static")


class _Tab(str):
    """An entry of Dask's row of tabs, which it writes twice.

    As the address it is what ``str`` gives. As the text, which goes through a filter that would
    make it "At-Once", it is the content: the filter cannot capitalise a space of no width.
    """

    def __str__(self) -> str:
        return ADDRESS


_TAB = _Tab("at \N{ZERO WIDTH SPACE}once")


def beside(link: str) -> str:
    """The page's address, where `link` is that of the dashboard.

    Its settings say what that looks like: it need not lead to Dask's first page.

    >>> beside("http://127.0.0.1:8787/status"), beside("/user/me/proxy/8787")
    ('http://127.0.0.1:8787/at-once', '/user/me/proxy/8787/at-once')
    """
    return f"{link.removesuffix('/status').rstrip('/')}/{ADDRESS}"


class AtOncePage:
    """The page of the runs of one cluster, whose scheduler is in this process."""

    def __init__(self) -> None:
        self.monitor = Monitor()
        self._filters: list[Any] = []

    def answer(self, scheduler: Any) -> None:
        """Open the JSON address; it needs no Bokeh."""
        handlers: list[Any] = [
            (rf"/{ADDRESS}\.json", _Facts, {"monitor": self.monitor}),
            # There Bokeh would show the page too, which asks for an address beside its own.
            (rf"/{ADDRESS}/", RedirectHandler, {"url": f"../{ADDRESS}", "permanent": False}),
        ]
        scheduler.http_application.add_application(Application(handlers))

    def add(self, scheduler: Any) -> None:
        """Put the page beside those of Dask, which are there; on the scheduler's event loop."""
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables

        variables = template_variables(scheduler)
        if _TAB not in variables["pages"]:
            variables["pages"].insert(1, _TAB)
        application = BokehApplication(
            {f"/{ADDRESS}": partial(_document, self.monitor)},
            scheduler,
            prefix="/",
            template_variables=variables,
        )
        scheduler.http_application.add_application(application)
        application.initialize(IOLoop.current())
        application.start()
        # A tab that was open at another cluster on this port sends what it knows of its plot.
        warnings.filterwarnings("ignore", message="reference already known", category=UserWarning)
        self._filters = list(warnings.filters[:1])

    def close(self) -> None:
        """The cluster is gone: the process warns again of all that it warned of before."""
        filters: Any = warnings.filters
        for ours in self._filters:
            if ours in filters:
                filters.remove(ours)


class _Facts(RequestHandler):
    """The JSON address; what it answers is described above."""

    def initialize(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        id = self.get_query_argument("run", None)
        view = self._monitor.run(id)
        cause = self.get_query_argument("cause", None)
        if view is None and (id is not None or cause is not None):
            self._refuse(f"no run {id or ''} is known here; /{ADDRESS}.json lists those that are")
        elif view is not None and cause is not None:
            self._write_traceback(view, cause)
        else:
            run = None if view is None else await view.facts()
            self._write({"runs": self._monitor.brief(), "run": run})

    def _write_traceback(self, view: RunView, cause: str) -> None:
        traceback = view.traceback(cause)
        if traceback is None:
            self._refuse(
                f"no cause {cause} is known of this run; /{ADDRESS}.json?run={view.id} lists those"
                " that are"
            )
        else:
            self._write({"cause": cause, "traceback": traceback})

    def _refuse(self, error: str) -> None:
        self.set_status(404)
        self._write({"error": error})

    def _write(self, facts: dict[str, Any]) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(facts))


def _document(monitor: Monitor, scheduler: Any, variables: dict[str, Any], document: Any) -> None:
    """Fill a browser's document: a plot by Bokeh, and a template, which its script fills."""
    from distributed.dashboard.components.scheduler import BOKEH_THEME

    asked = document.session_context.request.arguments.get("run")
    plot = _Plot(monitor, asked[0].decode(errors="replace") if asked else None)
    plot.update()
    document.title = "At once"
    document.theme = BOKEH_THEME
    document.add_root(plot.root)
    document.add_periodic_callback(plot.update, UPDATE_SECONDS * 1000)
    document.template = _template()
    document.template_variables.update(variables, style=_text("page.css"), script=_text("page.js"))


class _Plot:
    """The rate over time, of the run that was asked for or the latest."""

    def __init__(self, monitor: Monitor, asked: str | None) -> None:
        from bokeh.models import ColumnDataSource, DataRange1d
        from bokeh.plotting import figure

        self._monitor = monitor
        self._asked = asked
        self._source = ColumnDataSource({"seconds": [0.0], "rate": [0.0]})
        self.root = figure(
            height=150,
            sizing_mode="stretch_width",
            toolbar_location=None,
            tools="",
            y_range=DataRange1d(start=0),
            x_axis_label="seconds since the run began",
            y_axis_label="per second",
        )
        self.root.outline_line_color = None
        self.root.xgrid.visible = False
        self.root.varea("seconds", 0, "rate", source=self._source, fill_color="#d6e6f2")
        self.root.line("seconds", "rate", source=self._source, line_color="#2b6ca3", line_width=2)

    def update(self) -> None:
        view = self._monitor.run(self._asked)
        data: dict[str, Any] = {"seconds": [0.0], "rate": [0.0]}
        for one in [] if view is None else view.rates():
            seconds, rates = zip(*one["points"], strict=True) if one["points"] else ((), ())
            data["seconds"] += seconds
            data["rate"] += rates
        if data != self._source.data:
            self._source.data = data


def _template() -> Any:
    """Ours, within Dask's own frame. All that comes from users is filled in by the script."""
    from distributed.dashboard.components.scheduler import env
    from jinja2 import ChoiceLoader, FileSystemLoader

    loader = ChoiceLoader([FileSystemLoader(_STATIC), *filter(None, [env.loader])])
    return env.overlay(loader=loader).get_template("page.html")


def _text(name: str) -> str:
    return (_STATIC / name).read_text("utf-8")
