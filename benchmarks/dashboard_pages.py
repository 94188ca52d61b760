"""Open pages for `benchmarks.dashboard`: each in a browser context of its own, which has logged in."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from playwright.sync_api import BrowserContext, Page

from tests.e2e.browser import chromium, until

_WATCHING = """
window.delays = [];
new MutationObserver((changes) => {
  for (const change of changes) for (const node of change.addedNodes) {
    if (node.nodeType !== 1 || node.parentNode?.id !== "event-list") continue;
    const time = node.querySelector("time")?.dateTime;
    if (!time || window.known?.has(time)) continue;
    (window.known ??= new Set()).add(time);
    if (window.ready) window.delays.push((Date.now() - Date.parse(time)) / 1000);
  }
}).observe(document, { childList: true, subtree: true });
"""
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


class Pages:
    """Use as a context manager."""

    def __init__(self, base: str, token: str, count: int) -> None:
        self._base, self._token, self._count = base, token, count
        self._open = ExitStack()
        self._pages: list[Page] = []
        self._delays: list[float] = []

    def __enter__(self) -> Self:
        browser = self._open.enter_context(chromium())
        for _ in range(self._count):
            context = browser.new_context(ignore_https_errors=True, viewport={"width": 1440, "height": 900})
            context.set_default_timeout(120_000)
            context.add_init_script(_WATCHING)
            self._pages.append(self._logged_in(context))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _logged_in(self, context: BrowserContext) -> Page:
        page = context.new_page()
        page.goto(f"{self._base}/login")
        page.get_by_label("Access token").fill(self._token)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{self._base}/")
        page.goto("about:blank")
        return page

    def paints(self, path: str) -> list[tuple[float, float]]:
        """Seconds from asking for a page to its first paint, and to when all its numbers are there; one after another,
        the pages before staying open."""
        found = []
        for page in self._pages:
            page.goto(self._base + path)
            until(page, lambda page=page: not page.locator(".skeleton:visible").count(), "numbers", 120)
            until(page, lambda page=page: page.evaluate(_PAINT) is not None, "a first paint", 120)
            whole = page.evaluate("performance.now()")
            found.append((page.evaluate(_PAINT) / 1000, whole / 1000))
        return found

    def open(self, path: str) -> None:
        """All pages show `path`; events count from when it is whole."""
        for page in self._pages:
            page.goto(self._base + path)
        for page in self._pages:
            until(page, lambda page=page: page.locator("#event-list time").count() > 0, "events", 120)
            page.evaluate("window.ready = true")

    def leave(self) -> None:
        """All pages show nothing; their delays are kept."""
        for page in self._pages:
            self._delays += page.evaluate("window.delays ?? []")
            page.goto("about:blank")

    def delays(self) -> list[float]:
        """Of all events that any page showed, seconds."""
        self.leave()
        return self._delays

    def wait(self, seconds: float) -> None:
        """Lets the pages go on."""
        self._pages[0].wait_for_timeout(1000 * seconds)
