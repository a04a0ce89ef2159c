"""Dask's dashboard, built when somebody first looks.

To import Bokeh takes longer than to start the cluster, and most runs end without a look at it. So
the address answers from the start on, at first with a page that reloads itself.
"""

from __future__ import annotations

import contextlib
import html
import os
import threading
from importlib.util import find_spec
from typing import Any, Protocol

import dask
from tornado.web import Application, RequestHandler

RELOAD_SECONDS = 1
IMPORT_SECONDS = 5  # that the end of the cluster waits for Bokeh's import

_LINK = "distributed.dashboard.link"
_DASKS_LINK = "{scheme}://{host}:{port}/status"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{reload}">
<meta name="viewport" content="width=device-width"><title>Dask dashboard</title>
<style>body {{ font: 1.1em sans-serif; margin: 3em 1.5em }}</style></head>
<body><p>{text}</p></body></html>"""


class Page(Protocol):
    """A page beside those of Dask, in the scheduler's process."""

    def answer(self, scheduler: Any) -> None:
        """Open what needs no Bokeh; at the start."""

    def add(self, scheduler: Any) -> None:
        """Put it beside Dask's pages, which are there now; on the scheduler's event loop."""

    def close(self) -> None:
        """The cluster is gone."""


def link_of(client: Any) -> str | None:
    """Where the dashboard of its cluster is; a setting that leads nowhere must not end a run."""
    try:
        link: str | None = client.dashboard_link
    except Exception:  # it may name anything, as a variable that is not set here
        return None
    return link


def link_setting() -> dict[str, str]:
    """Dask's setting for links that lead out of a JupyterHub, unless there is one already."""
    is_in_hub = "JUPYTERHUB_SERVICE_PREFIX" in os.environ
    is_unset = dask.config.get(_LINK, _DASKS_LINK) == _DASKS_LINK
    if is_in_hub and is_unset and find_spec("jupyter_server_proxy") is not None:
        return {_LINK: "{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status"}
    return {}


def build_on_demand(scheduler: Any, page: Page) -> contextlib.AbstractContextManager[object]:
    """Have `scheduler`, which was started without a dashboard, build it at the first request.

    The end of what is returned comes when Bokeh is not being imported any more.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Of this process. Its HTTP server is listening.
    page : Page
        Stands beside those of Dask.
    """
    page.answer(scheduler)
    return _Dashboard(scheduler, page)


class _Dashboard:
    """Stands in the place of Dask's pages until they are there."""

    def __init__(self, scheduler: Any, page: Page) -> None:
        self._scheduler = scheduler
        self._page = page
        self._thread: threading.Thread | None = None
        self.text = (
            "The dashboard is being loaded (Bokeh takes a moment); this page reloads itself."
        )
        self._pages = Application([(r".*", _Waiting, {"dashboard": self})])
        scheduler.http_application.add_application(self._pages)

    def __enter__(self) -> _Dashboard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """An import cannot be broken off; one that takes too long is left to itself."""
        if self._thread is not None:
            self._thread.join(IMPORT_SECONDS)
        self._page.close()

    def build(self) -> None:
        """Begin with it, unless that was done before; on the scheduler's event loop."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._import, name="dashboard", daemon=True)
            self._thread.start()

    def _import(self) -> None:
        try:
            import distributed.dashboard.scheduler  # noqa: F401
        except Exception as error:
            self._fail(error)
        else:
            self._scheduler.loop.add_callback(self._connect)

    def _connect(self) -> None:
        from distributed.dashboard.scheduler import connect

        application = self._scheduler.http_application
        try:
            connect(application, self._scheduler.http_server, self._scheduler, prefix="/")
            self._page.add(self._scheduler)
        except Exception as error:
            self._fail(error)
        else:
            application.applications.remove(self._pages)

    def _fail(self, error: Exception) -> None:
        self.text = (
            f"The dashboard cannot be loaded: {html.escape(str(error))}. Install what is missing"
            " (pip install 'bokeh>=3.4'), and start Python again."
        )


class _Waiting(RequestHandler):
    """Any page, before there is one."""

    def initialize(self, dashboard: _Dashboard) -> None:
        self._dashboard = dashboard

    def get(self) -> None:
        self._dashboard.build()
        self.set_header("Cache-Control", "no-store")
        self.write(_PAGE.format(reload=RELOAD_SECONDS, text=self._dashboard.text))
