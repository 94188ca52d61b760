"""The scripts: what is served and how, what is pinned, and rules that no reader of a diff should have to remember."""

import base64
import json
import re
from pathlib import Path

import pytest

from fedlora.errors import AssetError
from fedlora.server.dashboard import assets, vendor
from fedlora.server.store import RunStore
from tests.server.dashboard.asking import dashboard

SCRIPTS = sorted((assets.STATIC / "js").glob("*.js"))
LOCK = json.loads((vendor.FRONTEND / vendor.LOCK).read_text())
PACKAGE = json.loads((vendor.FRONTEND / "package.json").read_text())


def test_every_package_is_pinned_by_hash_and_by_no_address() -> None:
    packages = {name: entry for name, entry in LOCK["packages"].items() if name}
    assert set(PACKAGE["dependencies"]) == {"uplot"}
    assert packages
    for name, entry in packages.items():
        kind, _, digest = entry["integrity"].partition("-")
        assert (kind, len(base64.b64decode(digest))) == ("sha512", 64), name
        assert "resolved" not in entry, "write the lock file with `npm install --omit-lockfile-registry-resolved`"
        assert "hasInstallScript" not in entry, name
    wanted = PACKAGE["dependencies"] | PACKAGE["devDependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_what_was_built_is_what_was_written_down() -> None:
    assert vendor.is_current(), "run `make frontend`"
    found = vendor.integrity()
    assert {name: vendor.digest(vendor.VENDOR / name) for name in found if name != vendor.LOCK} == {
        name: value for name, value in found.items() if name != vendor.LOCK
    }
    assert assets.charts_are_there()


def test_a_file_that_is_not_the_one_that_was_built_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "static" / "vendor"
    folder.mkdir(parents=True)
    for name in vendor.integrity():
        if name != vendor.LOCK:
            (folder / name).write_bytes((vendor.VENDOR / name).read_bytes())
    (folder / vendor.INTEGRITY).write_bytes((vendor.VENDOR / vendor.INTEGRITY).read_bytes())
    found = vendor.integrity(folder)
    monkeypatch.setattr(assets, "STATIC", tmp_path / "static")
    monkeypatch.setattr(vendor, "integrity", lambda: found)
    try:
        assets.assets.cache_clear()
        assert assets.charts_are_there()
        with (folder / "uPlot.iife.min.js").open("ab") as file:
            file.write(b";alert(1)")
        assets.assets.cache_clear()
        assert not assets.charts_are_there()
    finally:
        assets.assets.cache_clear()


def test_without_npm_nothing_is_spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor.shutil, "which", lambda _: "/bin/false")
    with pytest.raises(AssetError, match=r"fedlora dashboard --build"):
        vendor.build(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()
    assert vendor.integrity(tmp_path / "vendor") == {}


def test_files_are_kept_by_browsers_only_under_their_own_version(tmp_path: Path) -> None:
    with RunStore.open(tmp_path) as store:
        shown = dashboard(store)
        exact = shown.get(assets.url("js/runs.js"), None)
        assert "immutable" in exact.headers["cache-control"]
        assert exact.headers["content-type"].startswith("text/javascript")
        plain = shown.get("/static/js/runs.js", None)
        assert plain.headers["cache-control"] == "no-cache"
        again = shown.get("/static/js/runs.js", None, **{"If-None-Match": plain.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["../render.py", "js/../../render.py", "vendor/integrity.json", "", "js", "%2e%2e/x"])
def test_nothing_else_is_served(tmp_path: Path, name: str) -> None:
    with RunStore.open(tmp_path) as store:
        assert dashboard(store).get(f"/static/{name}", None).status_code == 404


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_of_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "new Function"):
        assert word not in text, word
    assert not re.search(r"\beval\s*\(", text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_import_is_a_file_of_ours(path: Path) -> None:
    for name in re.findall(r"""(?:from|import)\s+["'](.+?)["']""", path.read_text(encoding="utf-8")):
        assert (path.parent / name).resolve() in SCRIPTS, name


def test_styles_load_nothing() -> None:
    for path in (assets.STATIC / "css").glob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert "url(" not in text
        assert "@import" not in text
        assert "prefers-reduced-motion" in (assets.STATIC / "css" / "base.css").read_text(encoding="utf-8")
