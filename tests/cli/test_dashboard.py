"""`fedlora dashboard`: it prints a link that opens it once, and ends with Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fedlora.cli.__main__ import run
from fedlora.errors import AssetError, ExitCode
from fedlora.server.dashboard import vendor
from fedlora.server.store import RunStore
from tests.server.operator.living import load_samples


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_the_first_word_to_the_end_that_is_asked_for(tmp_path: Path, number: signal.Signals) -> None:
    with RunStore.open(tmp_path / "runs") as store:
        store.create(load_samples().config(), name="recorded")
    command = [sys.executable, "-m", "fedlora.cli", "dashboard", "--store", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout
            link = process.stdout.readline().strip()
            found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/login#token=([A-Za-z0-9_-]{43})", link)
            assert found, link
            with httpx.Client(base_url=found[1], headers={"Origin": found[1]}, trust_env=False) as client:
                assert client.post("/login", data={"token": found[2]}).status_code == 303
                assert "recorded" in client.get("/data/runs").text
            process.send_signal(number)
            assert process.wait(60) == ExitCode.OK
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # so that it says where each of its threads is
            pytest.fail(process.communicate(timeout=20)[1])
        finally:
            process.kill()
        assert process.stderr
        said = process.stderr.read()
    assert "good for one login" in said
    assert found[2] not in said
    assert not list(tmp_path.glob("fedlora-dashboard-*")), "nothing is left"


def test_without_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dashboard", "--store", str(tmp_path)]) == ExitCode.STORE
    assert "there is no run store in" in capsys.readouterr().err


def test_building_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for fetched, said in ((True, "fetched the charts' scripts"), (False, "are there already")):
        monkeypatch.setattr(vendor, "build", lambda fetched=fetched: fetched)
        assert run(["dashboard", "--build"]) == ExitCode.OK
        assert said in capsys.readouterr().err

    def fails() -> bool:
        raise AssetError("npm is not there")

    monkeypatch.setattr(vendor, "build", fails)
    assert run(["dashboard", "--build"]) == ExitCode.ASSET
