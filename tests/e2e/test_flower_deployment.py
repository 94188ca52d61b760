"""The same app on a Flower SuperLink with SuperNodes as processes of their own, as docs/flower.md shows it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlora.config.compose import compose
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, run
from tests.e2e.test_flower_runtime import BIN, SuperLink, adapter_of, end, free_port, wait_until_healthy

pytestmark = pytest.mark.slow
NODES = 2


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[SuperLink]:
    """A SuperLink and two SuperNodes; what they start has the same FLWR_HOME, and none of it is left."""
    home, port = tmp_path / "home", free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    log = tmp_path / "flower.log"
    address = f"127.0.0.1:{port}"
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    commands = [[*link, "--disable-runtime-dependency-installation"]]
    for number in range(NODES):
        node = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(free_port())]
        commands.append([*node, "--node-config", f"partition-id={number} num-partitions={NODES}"])
    processes = []
    try:
        with log.open("ab") as file:
            for command in commands:
                place = [str(BIN / command[0]), *command[1:]]
                where = {"cwd": tmp_path, "env": environment, "start_new_session": True}
                processes.append(subprocess.Popen(place, stdout=file, stderr=file, **where))
                if len(processes) == 1:
                    wait_until_healthy(processes[0], port, log)
        yield SuperLink(environment, log)
    finally:
        for process in reversed(processes[1:]):
            process.terminate()
            process.wait(30)
        end(processes[0], home)


def test_supernodes_train_the_adapter_of_a_simulation(
    deployment: SuperLink, tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path
) -> None:
    overrides = [
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
        f"federation.clients={NODES}",
        f"federation.cohort={NODES}",
        "federation.rounds=2",
    ]
    settings = f'overrides="{" ".join([*overrides, f"store={tmp_path}/flower"])}"'
    done = deployment.flwr("run", ".", "local", "--run-config", settings, "--stream")
    status, details = deployment.last_status()
    said = done.stdout + done.stderr + details + deployment.log.read_text()[-4000:]
    assert (done.returncode, status) == (0, "finished:completed"), said
    with RunStore.open(tmp_path / "flower") as store:
        theirs = store.history(store.find("latest"))
    assert theirs.run.status is RunStatus.FINISHED
    ours = run(compose([*overrides, f"store={tmp_path / 'ours'}"]), Watch())
    expected, found = adapter_of(ours), adapter_of(theirs)
    for name, values in expected.items():
        assert np.linalg.norm(found[name] - values) <= 1e-5 * np.linalg.norm(values), name
