"""What a site's owner lets it tell, from the policy's file over the link to what a page and an operator are given."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedlora.client.deployed import DeployedSite
from fedlora.client.handler import SiteHandler
from fedlora.client.home import SiteHome
from fedlora.identity.registry import Registry
from fedlora.link.hub import Hub
from fedlora.server.running import Server
from fedlora.server.store import RunStore
from fedlora.server.views import Link, Views
from tests.link.world import Daemon, World, eventually, make_world
from tests.server.dashboard.asking import VIEWER, dashboard

POLICY = """
models: {{tiny-model: {{source: local, path: /srv/models/tiny}}}}
data:
  ward-notes: {{source: local, path: /srv/ward.csv, columns: {{text: report, label: code}}, nominal_size: 1200}}
strategies: [fed_sb]
tells: {tells}
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@contextmanager
def connected(world: World, tells: str) -> Iterator[Hub]:
    """A server, and a site with that policy connected to it."""
    home = SiteHome.create(world.folder / "site")
    home.policy.write_text(POLICY.format(tells=tells))
    with world.server() as host:
        handler = cast(Any, SiteHandler(DeployedSite(home, f"localhost:{world.port}"), "one"))
        daemon = Daemon(world.dial("north"), handler, world.folder / "answers")
        try:
            eventually(lambda: "north" in host.hub.connected())
            yield host.hub
        finally:
            daemon.stop()


def seen(world: World, hub: Hub) -> tuple[dict[str, Any], dict[str, Any]]:
    """The client as the dashboard's page gets it, and as the operator's API tells of it."""
    with RunStore.open(world.folder / "runs") as store:
        registry = Registry(store.database)
        registry.invite("north", hours=1)
        views = Views(store, registry=registry, link=Link(lambda: hub.presences), work=None)
        (row,) = dashboard(store, views=views, registry=registry).get("/data/clients", VIEWER).json()["clients"]
        server = cast(Any, SimpleNamespace(registry=registry, host=SimpleNamespace(hub=hub)))
        (plain,) = Server.clients(server)
    return row, plain


def test_what_is_told_reaches_the_page_and_the_operator(world: World) -> None:
    with connected(world, "[data, policy, device]") as hub:
        for row in seen(world, hub):
            assert list(row["data"]) == ["ward-notes"]
            assert "CPU core" in row["device"]
            assert "models: tiny-model" in row["policy"]
            assert "strategies: fed_sb" in row["policy"]
            assert "/srv" not in str(row)


def test_of_what_the_owner_keeps_nothing_reaches_the_server(world: World) -> None:
    with connected(world, "[]") as hub:
        there = hub.presences["north"]
        assert there.connection is not None
        shown = seen(world, hub)
        for text in (str(there), str(there.connection.hello), *map(str, shown)):
            for word in ("tiny-model", "ward-notes", "fed_sb", "CPU", "GiB", "approval:"):
                assert word not in text
        for row in shown:
            assert (row["data"], row["device"], row["policy"]) == ([], None, [])


def test_who_is_away_has_nothing_shown(world: World) -> None:
    with connected(world, "[data, policy, device]") as hub:
        pass
    for row in seen(world, hub):
        assert (row["connected"], row["data"], row["device"], row["policy"]) == (False, [], None, [])


def test_a_policy_that_is_broken_while_the_daemon_runs_keeps_it_away_and_does_not_end_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    home = SiteHome.create(world.folder / "site")
    home.policy.write_text("models: [")
    with world.server() as host:
        handler = cast(Any, SiteHandler(DeployedSite(home, f"localhost:{world.port}"), "one"))
        daemon = Daemon(world.dial("north"), handler, world.folder / "answers")
        try:
            eventually(lambda: "site policy cannot be read" in caplog.text)
            assert "north" not in host.hub.connected()
            home.policy.write_text(POLICY.format(tells="[]"))
            eventually(lambda: "north" in host.hub.connected())
        finally:
            daemon.stop()
