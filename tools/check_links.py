"""Checks the Markdown pages. `python tools/check_links.py [ROOT]` ends with 1 if a link is broken.

Every relative link and anchor must resolve inside the repository, and every page under docs/ must be reachable from
README.md. Links to other sites are not fetched. Anchors are made from headings the way common forges make them.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

SKIPPED = {"build", "dist", "node_modules", "runs", "outputs", "multirun", "__pycache__"}
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
# [text](target "title") and ![alt](target); a target in <> may hold spaces, a bare one may hold balanced brackets.
INLINE = re.compile(r"\]\(\s*(?:<([^>]*)>|((?:[^\s()]|\([^\s()]*\))+))(?:\s+[\"'(][^)]*)?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[(?!\^)[^\]]+\]:\s*(?:<([^>]+)>|(\S+))")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)
HTML_ANCHOR = re.compile(r"<[a-z][^>]*?\b(?:id|name)\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """One link of a page, as it is written."""

    line: int
    target: str


class Page:
    """A Markdown file: its links and the anchors that other pages may point to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")

    @cached_property
    def links(self) -> list[Link]:
        """Every link outside code."""
        return [Link(number, target) for number, line in self._prose() for target in targets(CODE.sub("", line))]

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors of headings, and those set in HTML."""
        found: set[str] = set()
        counts: dict[str, int] = {}
        for _, line in self._prose():
            found.update(HTML_ANCHOR.findall(line))
            if heading := HEADING.match(line):
                slug = slugify(heading.group(1))
                counts[slug] = counts.get(slug, 0) + 1
                found.add(slug if counts[slug] == 1 else f"{slug}-{counts[slug] - 1}")
        return found

    def _prose(self) -> Iterator[tuple[int, str]]:
        fence = ""
        for number, line in enumerate(self.text.splitlines(), start=1):
            mark = FENCE.match(line)
            if fence:
                fence = "" if mark and mark.group(1).startswith(fence) else fence
            elif mark:
                fence = mark.group(1)
            else:
                yield number, line


def targets(line: str) -> Iterator[str]:
    """The targets of all links in a line of prose."""
    for pattern in (INLINE, DEFINITION):
        yield from (bracketed or bare for bracketed, bare in pattern.findall(line))
    yield from HTML.findall(line)


def slugify(heading: str) -> str:
    """The anchor of a heading: links and emphasis unwrapped, lower case, punctuation dropped, spaces to hyphens."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[*`]|<[^>]+>", "", text).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def find_pages(root: Path) -> dict[Path, Page]:
    """All Markdown files below `root`, outside hidden and built folders; symbolic links are not followed."""
    pages: dict[Path, Page] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            s for s in subfolders if s not in SKIPPED and not s.startswith(".") and "egg-info" not in s
        )
        for name in sorted(files):
            if name.endswith(".md"):
                path = Path(folder, name).resolve()
                pages[path] = Page(path)
    return pages


def resolve(root: Path, page: Page, target: str) -> tuple[Path, str] | None:
    """The file or folder and the anchor that a relative `target` means; None for a link to elsewhere."""
    if ELSEWHERE.match(target):
        return None
    place, _, anchor = target.partition("#")
    place = unquote(place)
    if not place:
        return page.path, unquote(anchor)
    base = root if place.startswith("/") else page.path.parent
    return (base / place.lstrip("/")).resolve(), unquote(anchor)


def fault(root: Path, pages: dict[Path, Page], page: Page, link: Link) -> str | None:
    """What is wrong with `link`, if anything."""
    resolved = resolve(root, page, link.target)
    if resolved is None:
        return None
    path, anchor = resolved
    if not path.is_relative_to(root):
        return f"{link.target} leaves the repository"
    if not path.exists():
        return f"{link.target} does not exist"
    if anchor and path in pages and anchor not in pages[path].anchors:
        return f"{link.target}: no heading makes the anchor #{anchor}"
    return None


def reachable(root: Path, pages: dict[Path, Page]) -> set[Path]:
    """The pages that README.md leads to. A link to a folder leads to its README.md, or without one to all its pages."""
    queue = [root / "README.md"]
    seen: set[Path] = set()
    while queue:
        path = queue.pop()
        if path.is_dir():
            readme = path / "README.md"
            queue += [readme] if readme in pages else [p for p in pages if p.parent == path]
        elif path in pages and path not in seen:
            seen.add(path)
            page = pages[path]
            queue += [found[0] for link in page.links if (found := resolve(root, page, link.target))]
    return seen


def check(root: Path) -> list[str]:
    """All faults, one line each."""
    root = root.resolve()
    pages = find_pages(root)
    faults = [
        f"{page.path.relative_to(root)}:{link.line}: {message}"
        for page in pages.values()
        for link in page.links
        if (message := fault(root, pages, page, link))
    ]
    docs = {path for path in pages if path.is_relative_to(root / "docs")}
    lost = sorted(docs - reachable(root, pages))
    return faults + [f"{path.relative_to(root)}:1: no chain of links from README.md leads here" for path in lost]


def main(root: Path) -> int:
    """Prints the faults; 1 if there are any."""
    faults = check(root)
    for line in faults:
        print(line)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent))
