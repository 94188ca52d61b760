"""What end-to-end tests share: the example strategy package as a user installs it, the command in a real process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "fedlora-fedsa"


@pytest.fixture(scope="session")
def example_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the example strategy into; built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("example")
    source, target = folder / "source", folder / "target"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", ".*", "__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)], check=True)
    return target


Fedlora = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fedlora(tmp_path: Path) -> Fedlora:
    """Runs `fedlora ARGUMENTS…` in an empty folder, as a process; further environment variables as keywords."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedlora.cli", *map(str, arguments)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150", **environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)

    return call
