"""The link to the dashboard, where a hub stands before it."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest

from at_once_dask.cluster import dashboard, own


@pytest.fixture
def in_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "jupyter_server_proxy.py").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")


def test_a_link_of_ones_own_stays(in_hub: None) -> None:
    with dask.config.set({"distributed.dashboard.link": "https://dash/{port}/status"}):
        assert dashboard.link_setting() == {}


def test_without_the_proxy_there_is_no_link_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    assert dashboard.link_setting() == {}
    assert own._CONFIG.keys().isdisjoint({"distributed.dashboard.link"})
