"""Debian's Chromium, driven by Playwright, and all that went wrong on the pages that it showed."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

CHROMIUM = Path(os.environ.get("FEDLORA_CHROMIUM", "/usr/bin/chromium"))
REQUIRED = "FEDLORA_REQUIRE_CHROMIUM"
"""With this at 1 in the environment a test that has no browser fails; else it is skipped."""

PATIENCE = 60.0
"""Seconds for anything to appear on a page: the machine may be busy with other tests."""

LAPTOP = (1440, 900)
PHONE = (390, 844)

_LOOPBACK = ("localhost", "127.0.0.1")
_ARGUMENTS = (
    "--no-sandbox",  # the tests may run as root, as whom it refuses to start with one
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)
_WATCHING = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`);
});
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


def require_chromium() -> None:
    """Skips the test where there is no browser, unless one must be there."""
    if CHROMIUM.exists():
        return
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, but there is no browser at {CHROMIUM}")
    pytest.skip(f"no browser at {CHROMIUM}: `apt-get install chromium`, or name another one with FEDLORA_CHROMIUM")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the block, which finds no other host than this one."""
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """Somebody's pages, with cookies of their own. wrong: what went wrong on them; a test may clear it."""

    context: BrowserContext
    base: str
    wrong: list[str] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)

    def page(self) -> Page:
        """A new, empty page."""
        return self.context.new_page()

    def open(self, path: str = "/") -> Page:
        """A page at `path`, loaded."""
        page = self.page()
        page.goto(self.base + path)
        return page

    def log_in(self, token: str) -> Page:
        """The page that a login with `token` leads to."""
        page = self.open("/login")
        page.get_by_label("Access token").fill(token)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(self.base + "/")
        return page

    def hear(self) -> None:
        """Notes from now on what the pages ask for and complain of."""
        self.context.add_init_script(_WATCHING)
        self.context.on("console", lambda said: self._say(said.text) if said.type in ("error", "warning") else None)
        self.context.on("weberror", lambda thrown: self._say(f"uncaught: {thrown.error}"))
        self.context.on("requestfailed", self._failed)
        self.context.on("request", self._asked)

    def _say(self, text: str) -> None:
        self.wrong.append(text)

    def _asked(self, request: Request) -> None:
        self.asked.append(request)
        if request.url.startswith("http") and urlsplit(request.url).hostname not in _LOOPBACK:
            self._say(f"left this machine: {request.url}")

    def _failed(self, request: Request) -> None:
        """What a page that is left behind no longer waits for, and what becomes a file, counts as broken off."""
        if request.failure != "net::ERR_ABORTED":
            self._say(f"{request.method} {request.url}: {request.failure}")


@contextmanager
def visit(browser: Browser, base: str, size: tuple[int, int] = LAPTOP, scheme: str = "light") -> Iterator[Visit]:
    """Somebody's visit at the dashboard `base`, for the block, at whose end nothing may have gone wrong."""
    context = browser.new_context(
        ignore_https_errors=True,
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
        accept_downloads=True,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE * 1000)
    found = Visit(context, base)
    found.hear()
    try:
        yield found
    finally:
        context.close()
    assert not found.wrong, f"the pages complain: {found.wrong}"


def until(page: Page, holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Waits until `holds`, while the page goes on."""
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"it did not come true in {patience:.0f} s: {what}"
        page.wait_for_timeout(50)


def overflow(page: Page) -> float:
    """How many pixels the page is wider than its window."""
    return float(page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))


def shifted(page: Page) -> float:
    """The page's cumulative layout shift so far."""
    return float(page.evaluate("window.shifted"))


def texts(page: Page, selector: str) -> Sequence[str]:
    """The visible text of each element."""
    return page.locator(selector).all_inner_texts()
