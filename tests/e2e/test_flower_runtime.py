"""`flwr run .`: the same app on Flower's own simulation runtime, as docs/flower.md shows it.

The test has a SuperLink of its own: free port, own FLWR_HOME, own process group, of which nothing is left afterwards.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import ArrayRecord
from safetensors.numpy import load_file

from fedlora.client.app import app as client_app
from fedlora.config.compose import compose
from fedlora.errors import RunError
from fedlora.server.records import RunHistory, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resume, run
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CLIENTS = 4


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink, and the environment in which `flwr` finds it as `local`."""

    environment: dict[str, str]
    log: Path

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "flwr"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, env=self.environment, timeout=300
        )

    def run(self, supernodes: int, overrides: list[str]) -> subprocess.CompletedProcess[str]:
        nodes = f"num-supernodes={supernodes} client-resources-num-cpus=1 init-args-num-cpus=2"
        settings = f'overrides="{" ".join(overrides)}"'
        return self.flwr("run", ".", "local", "--federation-config", nodes, "--run-config", settings, "--stream")

    def last_status(self) -> tuple[str, str]:
        """Flower's status and details of the newest run."""
        listed = self.flwr("list", "local", "--format", "json")
        newest = max(json.loads(listed.stdout)["runs"], key=lambda row: row["pending-at"])
        return newest["status"], newest["status-details"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return
        time.sleep(0.1)
    pytest.fail(f"the SuperLink did not start: {log.read_text()}")


def started_under(home: Path) -> list[psutil.Process]:
    """All processes with that FLWR_HOME: the SuperLink, and whatever it, Flower and Ray have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(home):
                found.append(process)
    return found


def end(process: subprocess.Popen[bytes], home: Path) -> None:
    """Ends the SuperLink; fails if anything of it does not end by itself then, and kills that."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    _, left = psutil.wait_procs(started_under(home), timeout=10)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(10)
    assert not left, f"still there after the SuperLink has ended: {left}"


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    folder, port = tmp_path_factory.mktemp("flower"), free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    where = ["--host", "127.0.0.1", "--port", str(port)]
    command = [str(BIN / "flower-superlink"), "--insecure", "--simulation", *where]
    log = folder / "superlink.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--disable-runtime-dependency-installation"],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_healthy(process, port, log)
        yield SuperLink(environment, log)
    finally:
        end(process, folder / "home")


@pytest.fixture
def overrides(tiny_bert: Path, tiny_text_csv: Path) -> list[str]:
    """A run of seconds in which clients come back, on all the data that Flower's processes can find: absolute paths."""
    return [
        "model=local",
        f"model.path={tiny_bert}",
        "data=local",
        f"data.path={tiny_text_csv}",
        "data.text=text",
        "data.label=label",
        "adapter.r=2",
        "train.batch=8",
        "train.steps=2",
        "train.threads=1",
        f"federation.clients={CLIENTS}",
        "federation.cohort=3",
        "federation.rounds=3",
    ]


def adapter_of(history: RunHistory) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return load_file(history.run.folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("strategy", ["fedavg", "fed_sb"])
def test_flowers_runtime_gives_the_adapter_of_the_engine_in_this_process(
    superlink: SuperLink, overrides: list[str], tmp_path: Path, strategy: str
) -> None:
    chosen = [f"strategy={strategy}", *overrides]
    done = superlink.run(CLIENTS, [*chosen, f"store={tmp_path / 'flower'}"])
    status, details = superlink.last_status()
    assert (done.returncode, status) == (0, "finished:completed"), done.stdout + done.stderr + details
    assert "3/3" in done.stdout
    with RunStore.open(tmp_path / "flower") as store:
        theirs = store.history(store.find("latest"))
    assert theirs.run.status is RunStatus.FINISHED
    ours = run(compose([*chosen, f"store={tmp_path / 'ours'}"]), Watch())
    for record, other in zip(ours.rounds, theirs.rounds, strict=True):
        assert [row.client for row in record.roster] == [row.client for row in other.roster]
        assert [row.outcome for row in record.roster] == [row.outcome for row in other.roster]
        assert (record.bytes_up, record.bytes_down, record.bytes_once) == (
            other.bytes_up,
            other.bytes_down,
            other.bytes_once,
        )
    expected, found = adapter_of(ours), adapter_of(theirs)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        distance = np.linalg.norm(found[name] - values)
        assert distance <= 1e-5 * np.linalg.norm(values), name
    assert (theirs.run.folder / "report.html").is_file()


def test_too_few_nodes_are_a_clear_error(superlink: SuperLink, overrides: list[str], tmp_path: Path) -> None:
    done = superlink.run(CLIENTS - 1, [*overrides, f"store={tmp_path}"])
    status, details = superlink.last_status()
    assert (done.returncode, status) == (0, "finished:failed"), "docs/flower.md speaks of the exit status"
    for text in ("3 nodes", f"federation.clients={CLIENTS}", "num-supernodes"):
        assert text in done.stdout + done.stderr + details


def test_the_bundle_carries_no_code(tmp_path: Path, superlink: SuperLink) -> None:
    command = [str(BIN / "flwr"), "build", "--app", str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, env=superlink.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tmp_path.glob("*.fab")
    names = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(bundle)], capture_output=True, text=True)
    assert bundle.stat().st_size < 100_000
    assert "LICENSE" in names.stdout
    assert ".py " not in names.stdout


class Elsewhere(VirtualGrid):
    """An engine whose clients' states this process does not hold, as Flower's nodes'."""

    def kept(self, record: str) -> Mapping[int, ArrayRecord]:
        del record
        return {}


@pytest.mark.parametrize("grid", [None, Elsewhere])
def test_what_flowers_nodes_keep_cannot_be_resumed_here(
    example_package: Path,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grid: type[VirtualGrid] | None,
) -> None:
    monkeypatch.syspath_prepend(example_package)
    config = compose(["strategy=fedsa_lora", *overrides, f"store={tmp_path}"])
    answers = iter([False, True])
    made = grid and grid(InProcess(Clients(client_app)), CLIENTS)
    history = run(config, Watch(stop=lambda: next(answers)), grid=made)
    assert (history.run.status, history.run.rounds_done) == (RunStatus.STOPPED, 1)
    with RunStore.open(tmp_path) as store:
        if grid is None:
            assert resume(store, history.run, Watch()).run.status is RunStatus.FINISHED
        else:
            with pytest.raises(RunError, match="cannot be resumed: its clients keep"):
                resume(store, history.run, Watch())
