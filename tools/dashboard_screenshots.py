"""`python tools/dashboard_screenshots.py`: pictures of the dashboard's pages for the documentation, of real runs.

    python tools/dashboard_screenshots.py [--out FOLDER] [--all] [--folder FOLDER] [--keep]

Starts the commands of docker-compose.yml on loopback (a server and three clients over mutual TLS), trains the quick
start with several strategies, takes one client away in the middle of a run and brings it back, and photographs every
page in light and dark, wide and narrow, while a last run trains. Needs `pip install playwright` and Debian's chromium.
Without --all only the pictures that the documentation shows are kept.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.compose_processes import Composition

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
SIZES = {"wide": (1440, 900, 1), "narrow": (390, 844, 2)}
SHOWN = {
    "runs-light-wide",
    "runs-dark-wide",
    "run-light-wide",
    "run-dark-wide",
    "run-dark-narrow",
    "clients-light-wide",
    "clients-dark-wide",
    "compare-light-wide",
    "compare-dark-wide",
    "mine-light-wide",
}
MOST_BYTES = 200_000
EXPERIMENT = ("federation.clients=3", "federation.cohort=3", "train.threads=1", "train.steps=4")
AWAY = ("federation.absence=3", "federation.release_few=true", "federation.min_reports=2")
EARLIER = (
    ("strategy=fedavg", "seed=0", "federation.rounds=10", "name=baseline"),
    ("strategy=fedavg", "seed=1", "federation.rounds=10", "name=baseline"),
    ("strategy=fed_sb", "seed=0", "federation.rounds=10", "name=fed-sb"),
    ("strategy=fedavg", "federation.rounds=8", "privacy=dp", "privacy.epsilon=8", "name=private-epsilon-8"),
)


@dataclass(frozen=True)
class Stage:
    """A federation and what was done in it. runs: ids, oldest first."""

    url: str
    token: str
    runs: tuple[str, ...]


def start(found: Composition, *overrides: str) -> str:
    """Queues a run; returns its id."""
    done = found.fedlora("run", "start", "--home", str(found.home), "--json", *EXPERIMENT, *overrides)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return str(json.loads(done.stdout)["id"])


def rounds_done(found: Composition, run: str) -> tuple[str, int]:
    """How a run stands."""
    listed = found.fedlora("run", "ls", "--home", str(found.home), "--json")
    (row,) = [row for row in json.loads(listed.stdout) if row["id"] == run]
    return row["status"], row["rounds_done"]


def train(found: Composition, *overrides: str) -> str:
    """A whole run."""
    run = start(found, *overrides)
    found.until(lambda: rounds_done(found, run)[0] in ("finished", "failed", "stopped"), patience=600)
    return run


def without_one(found: Composition, name: str = "clinic-c") -> str:
    """A run in whose middle a client is away: the others go on."""
    run = start(found, "strategy=ffa_lora", "federation.rounds=14", "name=one-site-away", *AWAY)
    found.until(lambda: rounds_done(found, run)[1] >= 4, patience=300)
    process = found.processes.pop(name)
    process.kill()
    process.wait()
    found.until(lambda: rounds_done(found, run)[1] >= 8, patience=600)
    with (found.folder / f"{name}.log").open("ab") as log:
        again = subprocess.Popen(found.command(name), env=found.environment(name), stdout=log, stderr=log)
    found.processes[name] = again
    found.until(lambda: rounds_done(found, run)[0] == "finished", patience=600)
    return run


def open_ledgers(found: Composition) -> None:
    """Each site's owner allows so much ε in all."""
    for name in ("clinic-a", "clinic-b", "clinic-c"):
        ledger = found.folder / name / "ledgers" / "site"
        done = found.fedlora("ledger", "create", str(ledger), "--data", "trec", "--epsilon", "20")
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)


def stage(found: Composition) -> Stage:
    """Everything that there is to see."""
    open_ledgers(found)
    done = [train(found, *overrides) for overrides in EARLIER]
    done.append(without_one(found))
    url = json.loads((found.home / "operator.json").read_text())["url"]
    return Stage(url, (found.home / "operator.token").read_text().strip(), tuple(done))


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def log_in(opened: Any, address: str) -> Mapping[str, Any]:
    """The session of somebody who opens `address`."""
    context = opened.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(address)
    page.wait_for_url(lambda url: "/login" not in url)
    state: Mapping[str, Any] = context.storage_state()
    context.close()
    return state


def link_for(opened: Any, shown: Stage, admin: Mapping[str, Any]) -> str:
    """A collaborator's link, made as an operator makes it; and an access token, so that there is one to see."""
    context = opened.new_context(ignore_https_errors=True, storage_state=admin)
    page = context.new_page()
    page.goto(f"{shown.url}/access")
    page.fill("#new-access [name=name]", "anna")
    page.click("#new-access button")
    page.wait_for_selector("dialog .secret")
    page.goto(f"{shown.url}/runs/{shown.runs[-1]}")
    page.select_option("#new-link [name=site]", "clinic-c")
    page.click("#new-link button")
    address = str(page.inner_text("dialog .secret"))
    context.close()
    return address


def photograph(opened: Any, shown: Stage, running: str, out: Path) -> None:
    """Every page in light and dark, wide and narrow."""
    admin = log_in(opened, f"{shown.url}/login#token={shown.token}")
    mine = log_in(opened, link_for(opened, shown, admin))
    chosen = "&".join(f"run={run}" for run in shown.runs)
    pages = [
        ("runs", "/", admin),
        ("run", f"/runs/{shown.runs[-1]}", admin),
        ("live", f"/runs/{running}", admin),
        ("clients", "/clients", admin),
        ("compare", f"/compare?{chosen}", admin),
        ("access", "/access", admin),
        ("audit", "/audit", admin),
        ("about", "/about", admin),
        ("error", "/runs/there-is-none", admin),
        ("mine", "/mine", mine),
        ("login", "/login", None),
    ]
    for theme in ("light", "dark"):
        for size in SIZES:
            for name, path, state in pages:
                shoot(opened, shown.url + path, state, theme, size, out / f"dashboard-{name}-{theme}-{size}.png")


def shoot(opened: Any, address: str, state: Mapping[str, Any] | None, theme: str, size: str, path: Path) -> None:
    """One picture, as tall as the page but for what nobody scrolls to."""
    wide, tall, scale = SIZES[size]
    options: dict[str, Any] = {"viewport": {"width": wide, "height": tall}, "device_scale_factor": scale}
    context = opened.new_context(ignore_https_errors=True, storage_state=state, color_scheme=theme, **options)
    page = context.new_page()
    page.on("pageerror", lambda error: print(f"{path.name}: {error}", file=sys.stderr))
    page.goto(address)
    if page.query_selector("#link-state"):
        page.wait_for_selector("#link-state[data-state=live]")
    page.wait_for_selector(".skeleton", state="detached")
    time.sleep(1)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        print(f"{path.name}: something is wider than the page", file=sys.stderr)
    act_on(page, path.name)
    whole = page.evaluate("document.documentElement.scrollHeight")
    most = 2000 if size == "wide" else 1500
    page.set_viewport_size({"width": wide, "height": min(max(whole, tall), most)})
    time.sleep(0.3)
    page.screenshot(path=str(path))
    context.close()


def act_on(page: Any, name: str) -> None:
    """What makes a page show more of itself."""
    if name.startswith("dashboard-clients"):
        page.click("#clients tbody tr:last-child .link-button")
        time.sleep(0.5)
        page.evaluate("scrollTo(0, 0)")
    if name.startswith("dashboard-run-"):
        page.focus(".matrix")
        for key in ["ArrowDown"] * 2 + ["ArrowLeft"] * 6:
            page.keyboard.press(key)
        time.sleep(0.5)
        page.evaluate("scrollTo(0, 0)")


def keep(taken: Path, out: Path, *, everything: bool) -> None:
    """Copies the pictures, fewer colours where one would be too large."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(taken.glob("*.png")):
        if not everything and path.stem.removeprefix("dashboard-") not in SHOWN:
            continue
        target = out / path.name
        with Image.open(path) as picture:
            few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            few.save(target, optimize=True)
        print(f"{target}: {target.stat().st_size // 1000} kB")
        if target.stat().st_size > MOST_BYTES:
            print(f"{target.name} is larger than {MOST_BYTES // 1000} kB", file=sys.stderr)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="where the pictures go")
    parser.add_argument("--all", action="store_true", help="keep every picture")
    parser.add_argument("--folder", type=Path, help="where the federation lives; a temporary one otherwise")
    parser.add_argument("--keep", action="store_true", help="do not delete it afterwards")
    asked = parser.parse_args()
    found = Composition(asked.folder or Path(tempfile.mkdtemp(prefix="fedlora-pictures-")))
    taken = Path(tempfile.mkdtemp(prefix="fedlora-pictures-taken-"))
    try:
        found.start()
        shown = stage(found)
        running = start(found, "strategy=fed_sb", "seed=2", "federation.rounds=60", "name=in-progress")
        found.until(lambda: rounds_done(found, running)[1] >= 5, patience=300)
        with browser() as opened:
            photograph(opened, shown, running, taken)
        keep(taken, asked.out, everything=asked.all)
    finally:
        found.stop()
        shutil.rmtree(taken, ignore_errors=True)
        if not asked.keep:
            found.remove()


if __name__ == "__main__":
    main()
