"""The dashboard of a running server in a real browser: every page, and what people do there."""

import json
import secrets
import signal
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, expect

from benchmarks.unruly_proxy import UnrulyProxy
from fedlora.server.operator.access import find_access
from fedlora.server.operator.client import OperatorClient
from tests.e2e.browser import LAPTOP, PHONE, Visit, chromium, overflow, require_chromium, shifted, until, visit
from tests.e2e.dashboard_stage import (
    LOADED,
    LONG,
    Stage,
    click_and_confirm,
    events_shown,
    lines_of,
    red,
    round_shown,
    saved,
    streamed,
    tab_to,
)
from tests.e2e.federation import PATIENCE, Federation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tiny_bert: Path, tiny_text_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_chromium()
    federation = Federation(tmp_path_factory.mktemp("dashboard"), tiny_bert, tiny_text_csv)
    federation.prepare()
    try:
        federation.start()
        access = find_access(None, federation.home, {})
        with OperatorClient(access) as operator:
            yield Stage(federation, operator, access.url, access.token)
    finally:
        federation.stop()


@pytest.fixture(scope="module")
def browser(stage: Stage) -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def ended(stage: Stage) -> tuple[str, str]:
    """Two runs that are over, with different strategies."""
    runs = (stage.submit("seed=3"), stage.submit("strategy=fed_sb", "federation.rounds=4"))
    for run in runs:
        stage.wait(run)
    return runs


@pytest.fixture
def admin(stage: Stage, browser: Browser) -> Iterator[Visit]:
    """A visit of somebody who may do everything."""
    with visit(browser, stage.base) as found:
        found.log_in(stage.token).close()
        yield found


def test_a_login_over_tls_with_the_servers_own_authority_and_a_wrong_token(stage: Stage, browser: Browser) -> None:
    authority = ssl.create_default_context(cafile=stage.federation.home / "ca" / "ca.crt")
    assert httpx.get(f"{stage.base}/login", verify=authority, trust_env=False).status_code == 200
    with visit(browser, stage.base) as found:
        page = found.open("/clients")
        expect(page).to_have_url(f"{stage.base}/login?next=/clients")
        page.get_by_label("Access token").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("not known here")
        found.wrong.clear()  # the browser's own note about the 401
        page.get_by_label("Access token").fill(stage.token)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Clients")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Access token")).to_be_visible()
        page.goto(f"{stage.base}/clients")
        expect(page.get_by_label("Access token")).to_be_visible()


def test_a_run_is_watched_live_stopped_and_resumed(stage: Stage, admin: Visit) -> None:
    with stage.running("name=watched") as run:
        runs = admin.open()
        row = runs.locator(f"tr[data-id='{run}']")
        expect(row.locator("[data-label=State]")).to_have_text("running")
        page = admin.open(f"/runs/{run}")
        for shown in (runs, page):
            shown.evaluate("window.untouched = true")
        before = stage.rounds(run)
        until(page, lambda: round_shown(page) > before + 2, "rounds advance on the run's page")
        expect(row.locator("[data-label=Rounds]")).not_to_contain_text(f"{before} of")
        expect(page.locator("#charts canvas").first).to_be_visible()
        expect(page.locator("#event-list li").first).to_contain_text("site-")
        expect(page.locator("#link-state")).to_have_text("Live")

        click_and_confirm(page, "Stop", "Stop")
        expect(page.locator("#state")).to_have_text("stopped")
        expect(row.locator("[data-label=State]")).to_have_text("stopped")
        stopped = stage.rounds(run)
        assert stopped < LONG
        until(page, lambda: round_shown(page) == stopped, "the last round is shown")

        page.get_by_role("button", name="Resume").click()
        page.get_by_label("Rounds in all").fill(str(stopped + 3))
        page.get_by_role("dialog").get_by_role("button", name="Resume").click()
        expect(page.locator("#state")).to_have_text("finished")
        expect(page.locator("#facts dd").first).to_contain_text(f"{stopped + 3} of {stopped + 3}")
        expect(row.locator("[data-label=State]")).to_have_text("finished")
        assert all(shown.evaluate("window.untouched") for shown in (runs, page)), "a page was loaded anew"


WITHOUT = ("federation.absence=1", "federation.release_few=true")


def test_a_killed_client_turns_red_with_its_reason_and_a_run_that_finishes_without_it_says_so_first(
    stage: Stage, admin: Visit
) -> None:
    clients = admin.open("/clients")
    line = clients.locator("tr[data-name='site-2']")
    expect(line).to_contain_text("connected")
    try:
        check_killed(stage, admin, line)
        check_subset(stage, admin)
    finally:
        if "client-2" not in stage.federation.processes:
            stage.federation.start_client(2)
        stage.until_connected("site-2")
    expect(line).to_contain_text("connected")


def check_killed(stage: Stage, admin: Visit, line: Locator) -> None:
    """Kills the third client in a run; looks at its line among the clients, and at the run's page."""
    with stage.running(*WITHOUT) as run:
        page = admin.open(f"/runs/{run}")
        until(page, lambda: round_shown(page) >= 1, "the first round")
        assert red(page) == 0
        stage.federation.kill("client-2", signal.SIGKILL)
        expect(line).to_contain_text("away")
        lost = page.locator("#event-list li", has_text="site-2").filter(has_text="lost").first
        expect(lost).to_contain_text("not been connected")
        until(page, lambda: red(page) > 50, "its squares are red")
    expect(page.locator("#state")).to_have_text("stopped")
    last = stage.rounds(run)
    until(page, lambda: round_shown(page) == last, "the last round is shown")
    box = page.locator("#matrix .matrix")
    box.focus()
    box.press("PageDown")
    said = page.locator("#matrix-said")
    wanted = f"site-2 in round {last}: lost: the client has not been connected"
    until(page, lambda: (box.press("End"), wanted in said.inner_text())[1], wanted)
    box.press("Enter")
    expect(page.locator("#round-panel")).to_contain_text("2 of 3 counted")
    expect(page.locator("#round-panel tr.changed")).to_contain_text("lost")


def check_subset(stage: Stage, admin: Visit) -> None:
    """A run of which the third client is a site, but no part."""
    run = stage.submit("federation.rounds=2", *WITHOUT)
    page = admin.open(f"/runs/{run}")
    expect(page.locator("#state")).to_have_text("finished")
    sentence = "Trained without site-2: asked, but no update of theirs ever counted."
    warning = page.locator("#warnings").get_by_text(sentence)
    expect(warning).to_be_visible()
    edges = [part.bounding_box() for part in (warning, page.locator("#facts"), page.locator("#curves"))]
    tops = [edge["y"] for edge in edges if edge]
    assert tops == sorted(tops)
    page.goto(stage.base)
    expect(page.locator(f"tr[data-id='{run}'] th")).to_contain_text(sentence)


def test_two_runs_are_compared_and_taken_home_as_csv_and_json(
    stage: Stage, admin: Visit, ended: tuple[str, str], tmp_path: Path
) -> None:
    page = admin.open()
    for run in ended:
        page.locator(f"tr[data-id='{run}'] input[type=checkbox]").check()
    expect(page.locator("#picked-count")).to_contain_text("2 runs")
    page.get_by_role("link", name="Compare", exact=True).last.click()
    page.wait_for_url("**/compare?run=*&run=*")
    expect(page.locator("#main-chart canvas")).to_be_visible()
    expect(page.locator("#run-table tbody tr")).to_have_count(2)
    expect(page.locator("#group-table tbody tr")).to_have_count(2)
    expect(page.locator("#main-chart")).to_contain_text("fed_sb")
    for against in ("Bytes", "Time", "Rounds"):
        page.locator("#against").get_by_role("button", name=against).click()
        expect(page.locator("#against [aria-pressed=true]")).to_have_text(against)
    page.locator("#main-chart summary").click()
    expect(page.locator("#main-chart table tbody tr")).to_have_count(5)  # rounds 0 to 4
    csv = saved(page, "CSV", tmp_path).read_text()
    assert all(run in csv for run in ended)
    found = json.loads(saved(page, "JSON", tmp_path).read_text())
    assert {row["id"] for row in found["rows"]} == set(ended)


def test_the_adapter_of_a_round_is_downloaded_and_loads_with_peft_alone(
    stage: Stage, admin: Visit, ended: tuple[str, str], tmp_path: Path
) -> None:
    page = admin.open(f"/runs/{ended[0]}")
    path = saved(page, "Download the adapter of round 2", tmp_path)
    assert path.name == f"{ended[0]}-adapter-round-2.zip"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "adapter")
    [config] = (tmp_path / "adapter").rglob("adapter_config.json")
    command = [sys.executable, "-c", LOADED, str(stage.federation.model), str(config.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    moved, weights, with_fedlora = json.loads(done.stdout)
    assert moved > 0
    assert weights > 0
    assert not with_fedlora


def test_a_client_is_enrolled_joins_with_its_token_and_is_revoked(stage: Stage, admin: Visit, tmp_path: Path) -> None:
    federation, page = stage.federation, admin.open("/clients")
    expect(page.locator("#clients tbody tr[data-name]")).not_to_have_count(0)
    name = f"newcomer-{secrets.token_hex(2)}"
    page.get_by_role("button", name="Enroll a client").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Hours").fill("2")
    page.get_by_role("button", name="Make a token").click()
    shown = page.get_by_role("dialog", name=f"The token for {name}")
    token, command = shown.locator(".secret").inner_text(), shown.locator(".command").inner_text()
    assert "fedlora client join" in command
    shown.get_by_role("button", name="Close").click()
    expect(page.locator(f"tr[data-name='{name}']")).to_contain_text("invited")
    page.reload()
    expect(page.locator(f"tr[data-name='{name}']")).to_be_visible()
    assert token not in page.content()

    home, secret = tmp_path / "home", tmp_path / "token"
    federation.run("client", "init", str(home))
    (home / "policy.yaml").write_text((federation.site(0) / "policy.yaml").read_text())
    secret.write_text(token)
    secret.chmod(0o600)
    federation.run("client", "join", "--home", str(home), "--token-file", str(secret))
    federation.spawn(name, "client", "run", "--home", str(home))
    row = page.locator(f"tr[data-name='{name}']")
    expect(row).to_contain_text("connected")
    page.get_by_role("button", name=f"Revoke {name}").click()
    page.get_by_label("Why").fill("the test is over")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    expect(row).to_contain_text("the test is over")
    federation.until(lambda: not any(one["connected"] for one in stage.operator.clients() if one["name"] == name))
    federation.kill(name, signal.SIGTERM)
    page.goto(f"{stage.base}/audit")
    done = page.locator("#entries tr", has_text=f"client {name}")
    expect(done).to_have_count(2)
    assert token not in page.content()


def test_a_stream_that_is_lost_comes_back_and_neither_loses_nor_doubles_a_line(stage: Stage, browser: Browser) -> None:
    proxy = UnrulyProxy(int(stage.base.rsplit(":", 1)[1]))
    try:
        with visit(browser, f"https://localhost:{proxy.port}") as found:
            page = found.log_in(stage.token)
            with stage.running() as run:
                page.goto(f"{found.base}/runs/{run}")
                until(page, lambda: round_shown(page) >= 2, "the run goes on")
                expect(page.locator("#event-list li:has(time)").first).to_be_visible()
                assert all("site-" in line for line in page.locator("#event-list li:has(time)").all_inner_texts())
                for cut in (proxy.drop, proxy.refuse):
                    before = stage.rounds(run)
                    cut()
                    expect(page.locator("#lost")).to_contain_text("lost")
                    expect(page.locator("#link-state")).to_have_text("Offline")
                    stage.federation.until(lambda before=before: stage.rounds(run) > before + 2)
                    proxy.mend()
                    page.get_by_role("button", name="Try now").click()
                    expect(page.locator("#link-state")).to_have_text("Live")
                    expect(page.locator("#lost")).to_have_count(0)
            expect(page.locator("#state")).to_have_text("stopped")
            until(page, lambda: len(events_shown(page)) >= len(stage.events(run)), "all lines are there", 20)
            assert sorted(events_shown(page)) == sorted(stage.events(run))
            until(page, lambda: round_shown(page) == stage.rounds(run), "the last round is shown")
            found.wrong[:] = [line for line in found.wrong if "net::ERR" not in line]  # what was cut off was noted
    finally:
        proxy.close()


def test_a_collaborators_link_shows_its_own_site_and_no_others(stage: Stage, admin: Visit, browser: Browser) -> None:
    with stage.running("name=shared") as run, visit(browser, stage.base) as found:
        page = admin.open(f"/runs/{run}")
        page.get_by_label("Site").select_option("site-1")
        page.get_by_role("button", name="Make a link").click()
        link = page.get_by_role("dialog").locator(".secret").inner_text()
        own = found.page()
        told = streamed(own)
        own.goto(link)
        own.wait_for_url(f"{stage.base}/mine")
        expect(own.locator("#own-table tbody tr").nth(2)).to_be_visible()
        expect(own.locator("#charts canvas").first).to_be_visible()
        until(own, lambda: len(lines_of(told)) > 2, "its own lines")
        seen = {request.url for request in found.asked if request.method == "GET"}
        bodies = [own.request.get(url).text() for url in seen if not url.endswith("/stream")]
        shown = [own.content(), own.inner_text("body")]
        assert any("site-1" in body for body in bodies)
        assert {json.loads(line)["row"]["client"] for line in lines_of(told)} == {1}
        for text in (*shown, *bodies, *told):
            assert "site-0" not in text
            assert "site-2" not in text
        for path in ("/clients", "/compare", f"/runs/{run}", f"/data/runs/{run}/matrix", "/data/runs", "/audit"):
            assert own.request.get(stage.base + path).status in (403, 404), path
        own.goto(stage.base)
        expect(own).to_have_url(f"{stage.base}/mine")


def test_all_is_done_with_the_keyboard_alone(stage: Stage, browser: Browser, ended: tuple[str, str]) -> None:
    with visit(browser, stage.base) as found:
        page = found.open("/login")
        page.keyboard.type(stage.token)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{stage.base}/")
        expect(page.locator(f"tr[data-id='{ended[0]}'] input")).to_be_visible()
        page.keyboard.press("/")
        page.keyboard.type(ended[0])
        expect(page.locator("#runs tbody tr")).to_have_count(1)
        tab_to(page, f"tr[data-id='{ended[0]}'] a")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{stage.base}/runs/{ended[0]}")
        expect(page.locator("#matrix .matrix")).to_be_visible()
        tab_to(page, ".matrix")
        said = page.locator("#matrix-said")
        expect(said).to_contain_text("site-0 in round 3: reported")
        for key, words in (("ArrowDown", "site-1 in round 3"), ("ArrowLeft", "site-1 in round 2"), ("Home", "round 1")):
            page.keyboard.press(key)
            expect(said).to_contain_text(words)
        page.keyboard.press("Enter")
        expect(page.locator("#round-panel h2")).to_have_text("Round 1: 3 of 3 counted")
        expect(page.locator("#round-panel")).to_be_focused()


@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_no_page_is_wider_than_its_window_nor_moves_while_it_loads(
    stage: Stage, browser: Browser, ended: tuple[str, str], size: tuple[int, int]
) -> None:
    run, other = ended
    pages = (
        "/",
        f"/runs/{run}",
        f"/compare?run={run}&run={other}",
        "/clients",
        "/access",
        "/audit",
        "/about",
        "/nowhere",
    )
    with visit(browser, stage.base, size) as found:
        page = found.open("/login")
        assert overflow(page) <= 0, "/login"
        page.get_by_label("Access token").fill(stage.token)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{stage.base}/")
        for path in pages:
            page.goto(stage.base + path)
            if page.locator("#link-state").count():
                expect(page.locator("#link-state")).to_have_text("Live")
                expect(page.locator(".skeleton:visible")).to_have_count(0)
            assert overflow(page) <= 0, path
            assert shifted(page) < 0.1, path
        found.wrong[:] = [line for line in found.wrong if "404" not in line]  # the page that is not there
