"""A server may have as many connections as its system allows."""

import logging
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fedlora.server.open_files import raise_limit


@pytest.fixture
def restored() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_to_the_hard_one(restored: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = restored
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    caplog.set_level(logging.INFO)
    assert raise_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert f"may have {hard:,} files" in caplog.text or hard == resource.RLIM_INFINITY


def test_a_limit_that_cannot_be_raised_stays(
    restored: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*arguments: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (300, 600))
    monkeypatch.setattr(resource, "setrlimit", refuses)
    caplog.set_level(logging.INFO)
    assert raise_limit() == 300
    assert "may have 300 files" in caplog.text


def test_a_running_server_has_raised_it() -> None:
    """The daemon does it before anything is opened: in a process, for it cannot be taken back."""
    script = (
        "import resource, contextlib; from pathlib import Path\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))\n"
        "from fedlora.errors import IdentityError\n"
        "from fedlora.server.daemon import running\n"
        "from fedlora.server.settings import ServerSettings\n"
        "with contextlib.suppress(IdentityError), running(Path('/nowhere'), ServerSettings()):\n"
        "    pass\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
