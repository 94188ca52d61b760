"""For those who cannot see colours, or see at all: axe-core finds nothing serious on any page, empty, live or huge."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from fedlora.errors import AssetError
from fedlora.identity.registry import Registry
from fedlora.identity.tokens import new_secret
from fedlora.server.dashboard import vendor
from fedlora.server.dashboard.actions import link_address
from fedlora.server.dashboard.app import make_dashboard
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.credentials import Given
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.operator.api import LOOPBACK
from fedlora.server.operator.serve import OperatorServer
from fedlora.server.queue import RunQueue
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore
from fedlora.server.views import Views
from tests.e2e.browser import REQUIRED, Visit, chromium, require_chromium, shifted, visit
from tests.server.dashboard.entrance import invited
from tests.server.dashboard.stores import HOSTILE, make_run
from tests.server.views.filling import fill

pytestmark = pytest.mark.slow

GRAVE = ("serious", "critical")
HUGE = (200, 1000)
"""Clients and rounds."""


@dataclass
class Shown:
    """A dashboard that is served. runs: ids, the one whose page is looked at first. link: a collaborator's, or ""."""

    url: str
    token: str
    runs: tuple[str, ...]
    link: str


def empty(store: RunStore, registry: Registry) -> None:
    """Nothing has happened yet."""


def live(store: RunStore, registry: Registry) -> None:
    """One run goes on and is stalled, others ended well, badly and by somebody's wish; a name is hostile."""
    make_run(store, 4, 6, name="ended well")
    make_run(store, 4, 6, done=3, name="failed", reason=HOSTILE, status=RunStatus.FAILED)
    make_run(store, 4, 6, done=2, name=HOSTILE, status=RunStatus.STOPPED)
    make_run(store, 4, 30, done=12, name="goes on", status=None)
    for number in range(4):
        registry.invite(f"hospital-{number:03d}")
    registry.redeem(registry.invite("gone"), "gone")
    registry.revoke("gone", "its contract has ended")


def huge(store: RunStore, registry: Registry) -> None:
    """As large as it gets."""
    make_run(store, 4, 6, name="small")
    fill(store, *HUGE)
    for number in range(HUGE[0]):
        registry.invite(f"site-{number:03d}")


@contextmanager
def served(folder: Path, filled: Callable[[RunStore, Registry], None]) -> Iterator[Shown]:
    """A dashboard with all its pages, on loopback without TLS; nobody trains."""
    with RunStore.open(folder) as store:
        registry = Registry(store.database)
        filled(store, registry)
        given = Given(new_secret(), Person("operator.token", Role.ADMIN))
        context = Context(
            store=store,
            registry=registry,
            presences=dict,
            queue=RunQueue(store),
            closing=threading.Event(),
            views=Views(store, registry),
            version="0",
            invite=invited,
        )
        app = make_dashboard(context, LOOPBACK, tls=False, given=given)
        runs = tuple(row.id for row in context.views.runs())
        with OperatorServer(app, "127.0.0.1", 0, None, None) as server:
            link = ""
            if runs:
                app.state.desk.tokens.add("anna", "viewer")
                sites = context.views.matrix(runs[0]).clients
                link = link_address(server.url, app.state.desk.links.add(runs[0], sites[0], by="anna").secret)
            yield Shown(server.url, given.secret, runs, link)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require_chromium()
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """axe-core, as the lock file pins it."""
    try:
        modules = vendor.install(tmp_path_factory.mktemp("axe"), development=True)
    except AssetError as error:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(f"axe-core could not be fetched: {error}")
    return modules / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module", params=[empty, live, huge], ids=lambda filled: filled.__name__)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with served(tmp_path_factory.mktemp(request.param.__name__), request.param) as found:
        yield found


def settled(page: Page) -> Page:
    """The page when it has all it shows, with all that can be opened open."""
    if page.locator("#link-state").count():
        expect(page.locator("#link-state")).to_have_text("Live")
        expect(page.locator(".skeleton:visible")).to_have_count(0)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    return page


def faults(page: Page) -> list[str]:
    """What axe-core finds grave."""
    found: Mapping[str, Any] = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert len(found["passes"]) > 5, "axe-core did not look"
    return [
        f"{page.url}: {one['impact']} {one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in GRAVE
        for node in one["nodes"][:5]
    ]


def look_at_all(found: Visit, shown: Shown) -> Iterator[Page]:
    """Every page, one after another, as an admin sees it."""
    yield settled(found.open("/login"))
    page = found.log_in(shown.token)
    paths = ["/", "/compare", "/clients", "/access", "/audit", "/about", "/nowhere"]
    if shown.runs:
        paths += [f"/runs/{run}" for run in shown.runs[:2]]
        paths.append("/compare?" + "&".join(f"run={run}" for run in shown.runs[:2]))
    for path in paths:
        page.goto(found.base + path)
        yield settled(page)
        if path == "/":
            assert shifted(page) < 0.1, path
        yield from dialogs(page)
    page.goto(found.base + "/access")
    page.get_by_label("Name").fill("otto-" + str(page.evaluate("document.documentElement.dataset.theme")))
    page.evaluate("document.querySelector('#new-access').submit()")  # as without a script
    expect(page.get_by_text("Shown this once.")).to_be_visible()
    yield page


def dialogs(page: Page) -> Iterator[Page]:
    """What opens on the page: a round, a question, a client."""
    if page.locator("#matrix .matrix").count():
        page.locator("#matrix .matrix").press("Enter")
        expect(page.locator("#round-panel table")).to_be_visible()
        yield page
    for name in ("Enroll a client", "Stop", "Resume"):
        button = page.get_by_role("button", name=name, exact=True)
        if button.count():
            button.first.click()
            expect(page.get_by_role("dialog")).to_be_visible()
            yield page
            page.keyboard.press("Escape")
    if page.locator("#clients .link-button").count():
        page.locator("#clients .link-button").first.click()
        expect(page.locator("#details")).to_be_visible()
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(shown: Shown, axe: Path, browser: Browser, scheme: str) -> None:
    grave: list[str] = []
    with visit(browser, shown.url, scheme=scheme) as found:
        found.context.add_init_script(path=axe)
        for page in look_at_all(found, shown):
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
            grave += faults(page)
        found.wrong[:] = [line for line in found.wrong if "404" not in line]  # the page that is not there
    if shown.link:
        with visit(browser, shown.url, scheme=scheme) as found:
            found.context.add_init_script(path=axe)
            page = found.page()
            page.goto(shown.link)
            page.wait_for_url("**/mine")
            grave += faults(settled(page))
    assert not grave, "\n".join(sorted(set(grave)))


def test_axe_finds_what_is_wrong(axe: Path, browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, empty) as shown, visit(browser, shown.url) as found:
        found.context.add_init_script(path=axe)
        page = settled(found.open("/login"))
        assert not faults(page)
        page.evaluate("document.querySelector('label').replaceWith(document.querySelector('label input'))")
        page.evaluate("document.documentElement.lang = ''")
        assert {fault.split()[2] for fault in faults(page)} == {"label:", "html-has-lang:"}
