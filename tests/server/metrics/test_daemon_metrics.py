"""A whole daemon: its metrics at its operator's port, its trackers told of its runs."""

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from fedlora.identity.home import make_home
from fedlora.server import daemon
from fedlora.server.events import Listener
from fedlora.server.metrics import TOKEN
from fedlora.server.operator.access import find_access
from fedlora.server.queue import Stop
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.running import Server
from fedlora.server.settings import ServerSettings

LOCAL = {"link": "127.0.0.1:0", "enrolment": None, "operator": "127.0.0.1:0"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_home(tmp_path / "home", "test", ["localhost", "127.0.0.1"])
    return tmp_path / "home"


def test_metrics_are_at_the_operators_port(home: Path) -> None:
    with daemon.running(home, ServerSettings.model_validate(LOCAL)) as server:
        server.registry.invite("ward-1")
        url = find_access(None, home, {}).url
        token = (home / TOKEN).read_text().strip()
        context = ssl.create_default_context(cafile=home / "ca" / "ca.crt")
        with httpx.Client(verify=context, base_url=url, trust_env=False) as http:
            headers = {"Authorization": f"Bearer {token}"}
            found = http.get("/metrics", headers=headers)
            other = http.get("/api/v1/runs", headers=headers)
    assert found.status_code == 200, found.text
    assert 'fedlora_clients{status="invited"} 1.0' in found.text.splitlines()
    assert other.status_code == 401
    assert (home / TOKEN).stat().st_mode & 0o777 == 0o600


def test_the_settings_trackers_are_told_of_every_run(
    home: Path, samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven: list[tuple[str, Sequence[Listener]]] = []

    def drive(server: Server, run: RunInfo, stop: Stop, listeners: Sequence[Listener]) -> None:
        driven.append((run.id, listeners))
        server.store.finish(run, RunStatus.FINISHED)
        server.queue.close()

    monkeypatch.setattr(daemon, "drive", drive)
    monkeypatch.setattr(daemon.signal, "signal", lambda number, handler: None)
    settings = ServerSettings.model_validate({**LOCAL, "track": ["tensorboard"]})
    with daemon.running(home, settings) as server:
        run = server.queue.submit(samples.config(), "first")
        daemon.serve(server, (print,))
    assert json.loads(run.config)["track"]["to"] == []
    ((driven_run, listeners),) = driven
    assert driven_run == run.id
    assert listeners[0] is print
    assert [type(listener).__name__ for listener in listeners[1:]] == ["Tracking"]
