"""Every page: with nothing, little and much in it, for each role, and with hostile names."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedlora.server.dashboard import assets
from fedlora.server.dashboard.audit import AuditLog, Note
from fedlora.server.dashboard.desk import Desk
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore
from tests.server.dashboard.asking import ADMIN, OPERATOR, VIEWER, Dashboard, dashboard, site_of
from tests.server.dashboard.stores import HOSTILE, HOSTILE_KEY, make_run

CENTRAL = {"privacy": {"name": "central", "noise_multiplier": 1.0}}


class Page(HTMLParser):
    """What a browser would make of a page: scripts, styles, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.styles: list[dict[str, str | None]] = []
        self.inline: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self._open.append(tag)
        self.handlers += [name for name in found if name.startswith("on") or name == "style"]
        self.handlers += [value for value in found.values() if value and value.lower().startswith("javascript:")]
        if tag == "script":
            self.scripts.append(found)
        if tag == "link" and found.get("rel") == "stylesheet":
            self.styles.append(found)
        if tag == "style":
            self.inline.append("style")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style") and data.strip():
            self.inline.append(data)
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def shown(store: RunStore) -> Dashboard:
    found = dashboard(store)
    found.app.state.desk = Desk.at(store.database, None, tls=False)
    return found


PLAIN = ("/", "/compare", "/about", "/audit", "/access")


@pytest.mark.parametrize("path", PLAIN)
def test_pages_say_so_when_there_is_nothing(shown: Dashboard, path: str) -> None:
    answer = shown.get(path, ADMIN)
    assert answer.status_code == 200
    assert "<h1" in answer.text
    assert answer.headers["cache-control"] == "no-store"


def test_an_empty_store_says_how_to_fill_it(shown: Dashboard) -> None:
    text = shown.get("/").text
    assert "No runs yet" in text
    assert "fedlora simulate" in text


def test_every_run_is_in_the_first_page(shown: Dashboard, store: RunStore) -> None:
    runs = [make_run(store, name=f"run-{number}", rounds=1) for number in range(40)]
    found = shown.get("/").text
    assert [run.id for run in runs if f'data-id="{run.id}"' not in found] == []
    assert "40 runs" in found


def test_trouble_is_said_before_anything_else(shown: Dashboard, store: RunStore) -> None:
    died = make_run(store, done=2, status=None)
    failed = make_run(store, done=2, status=RunStatus.FAILED, reason="QuorumError: only 1 of 3 reported")
    assert "stalled" in shown.get("/").text
    page = shown.get(f"/runs/{died.id}").text
    assert page.index('role="alert"') < page.index('id="facts"')
    assert "only 1 of 3 reported" in shown.get(f"/runs/{failed.id}").text


def test_who_may_not_see_rosters_is_told_why(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, **CENTRAL)
    operators, viewers = (shown.get(f"/runs/{run.id}", person).text for person in (OPERATOR, VIEWER))
    assert 'id="matrix"' in operators
    assert 'id="matrix"' not in viewers
    assert "central differential privacy" in viewers
    assert f"/runs/{run.id}/report" not in viewers


def test_what_is_not_there_is_a_page_too(shown: Dashboard) -> None:
    answer = shown.get("/runs/there-is-none", OPERATOR)
    assert answer.status_code == 404
    assert "there-is-none" in answer.text
    assert "Back to the start" in answer.text


def test_recorded_runs_have_no_clients_and_no_actions(shown: Dashboard, store: RunStore) -> None:
    make_run(store)
    assert shown.get("/clients").status_code == 404
    assert 'href="/clients"' not in shown.get("/").text
    assert 'data-acts="0"' in shown.get("/").text


def test_a_collaborator_has_one_page(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store)
    answer = shown.get("/", site_of(run.id, "hospital-001"))
    assert (answer.status_code, answer.headers["location"]) == (303, "/mine")
    page = shown.get("/mine", site_of(run.id, "hospital-001")).text
    assert "hospital-001" in page
    assert "hospital-000" not in page
    assert 'href="/compare"' not in page
    assert shown.get("/mine", OPERATOR).status_code == 404


def test_the_audit_log_has_pages(shown: Dashboard, store: RunStore) -> None:
    log = AuditLog(store.database)
    for number in range(130):
        log.write(Note("POST /runs", "127.0.0.1", person=f"person-{number}", role="admin", object=HOSTILE))
    first = shown.get("/audit", ADMIN).text
    older = re.search(r"/audit\?before=\d+", first)
    assert "person-129" in first
    assert "person-29<" not in first
    assert older is not None
    assert "person-0<" in shown.get(older[0], ADMIN).text


def rendered(shown: Dashboard, store: RunStore) -> Iterator[tuple[str, str]]:
    run = make_run(store, name=HOSTILE, reason=HOSTILE, metrics={HOSTILE_KEY: 0.5}, status=RunStatus.FAILED)
    AuditLog(store.database).write(Note(HOSTILE, HOSTILE, HOSTILE, "admin", HOSTILE, "refused", HOSTILE))
    shown.app.state.desk.tokens.add("anna", "viewer")
    shown.app.state.desk.links.add(run.id, "hospital-000", by=HOSTILE)
    for path in (*PLAIN, f"/runs/{run.id}", "/runs/none"):
        yield path, shown.get(path, ADMIN).text
    yield "/mine", shown.get("/mine", site_of(run.id, "hospital-000")).text


def test_no_page_has_script_or_style_inside_whatever_names_there_are(shown: Dashboard, store: RunStore) -> None:
    for path, text in rendered(shown, store):
        page = Page(text)
        assert page.inline == [], path
        assert page.handlers == [], path
        assert all(script.get("src", "").startswith("/static/") for script in page.scripts), path  # type: ignore[union-attr]
        assert page.tags.count("img") == 1, path  # the sign beside the name


def test_hostile_names_come_out_as_text(shown: Dashboard, store: RunStore) -> None:
    texts = dict(rendered(shown, store))
    assert any(HOSTILE in word for word in Page(texts["/"]).words)
    assert any(HOSTILE in word for word in Page(texts["/audit"]).words)
    assert "<img src=x" not in "".join(texts.values())


def test_every_script_and_style_has_the_hash_of_its_file(shown: Dashboard, store: RunStore) -> None:
    for path, text in rendered(shown, store):
        page = Page(text)
        files = [(one.get("src") or one.get("href"), one.get("integrity")) for one in (*page.scripts, *page.styles)]
        assert files, path
        for address, integrity in files:
            assert address is not None
            name = address.removeprefix("/static/").partition("?")[0]
            assert assets.assets()[name].integrity == integrity
            assert shown.get(address, None).status_code == 200


def test_missing_charts_are_said_not_hidden(shown: Dashboard, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(store)
    without = {name: asset for name, asset in assets.assets().items() if not name.startswith("vendor/")}
    monkeypatch.setattr(assets, "assets", lambda: without)
    for path in ("/", f"/runs/{run.id}", "/about"):
        text = shown.get(path, OPERATOR).text
        assert "fedlora dashboard --build" in text
        assert "vendor/" not in text
