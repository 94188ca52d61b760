"""A real federation of processes on loopback: a server, clients with their own files, an operator's commands."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMMAND = [sys.executable, "-m", "fedlora.cli"]
PATIENCE = 120.0
"""Seconds for anything to happen: the machine may be busy with other tests."""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Federation:
    """Everything in one folder. model, data: a model's folder and a CSV file with texts and labels."""

    folder: Path
    model: Path
    data: Path
    sites: int = 3
    overrides: Sequence[str] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    link_port: int = 0

    @property
    def home(self) -> Path:
        """The server's."""
        return self.folder / "server"

    def site(self, number: int) -> Path:
        """A client's home."""
        return self.folder / f"site-{number}"

    def experiment(self, *more: str) -> list[str]:
        """What is run, in a simulation and here."""
        return [
            "model=local",
            f"model.name={self.model.name}",
            f"model.path={self.model}",
            "task.max_length=16",
            "data=local",
            f"data.name={self.data.stem}",
            f"data.path={self.data}",
            "data.text=text",
            "data.label=label",
            "data/partition=iid",
            "adapter.r=2",
            "adapter.targets=[query,value]",
            "train.batch=8",
            "train.steps=2",
            "train.threads=1",
            "train.lr=0.01",
            f"federation.clients={self.sites}",
            f"federation.cohort={self.sites}",
            "federation.rounds=3",
            *self.overrides,
            *more,
        ]

    # Set-up.

    def prepare(self) -> None:
        """Certificates, dealt data, homes and policies; no process runs afterwards."""
        ports = free_ports(3)
        self.link_port = ports[0]
        self.run("ca", "init", str(self.home), "--host", "localhost")
        self.run("data", "deal", *self.experiment(), "--out", str(self.folder / "dealt"))
        settings = {"link": ports[0], "enrolment": ports[1], "operator": ports[2]}
        (self.home / "server.yaml").write_text(
            yaml.safe_dump({name: f"localhost:{port}" for name, port in settings.items()})
        )
        for number in range(self.sites):
            self.run("client", "init", str(self.site(number)))
            self.write_policy(number)

    def write_policy(self, number: int, **changes: Any) -> None:
        """A policy under which the site takes part without asking its owner."""
        policy = {
            "models": {self.model.name: {"source": "local", "path": str(self.model)}},
            "data": {
                self.data.stem: {
                    "source": "local",
                    "path": str(self.folder / "dealt" / f"client-{number:05d}.jsonl"),
                    "columns": {"text": "text", "label": "label"},
                }
            },
            "privacy": {"require": "none"},
            "metrics": ["samples", "loss", "first_loss", "seconds"],
            "approval": "automatic",
            "limits": {"memory_mb_free_least": 0, "disk_mb_free_least": 0},
        } | changes
        (self.site(number) / "policy.yaml").write_text(yaml.safe_dump(policy))

    def join(self, number: int) -> None:
        """Enrols a site; the server must run."""
        token = self.folder / f"token-{number}"
        address = yaml.safe_load((self.home / "server.yaml").read_text())["enrolment"]
        self.run(
            "server", "enroll", f"site-{number}", "--home", str(self.home), "--address", address, "--out", str(token)
        )
        self.run("client", "join", "--home", str(self.site(number)), "--token-file", str(token))

    def start(self, *, clients: Sequence[int] | None = None) -> None:
        """Server and clients, joined if they were not, and connected."""
        self.start_server()
        for number in range(self.sites) if clients is None else clients:
            if not (self.site(number) / "identity" / "server.json").exists():
                self.join(number)
            self.start_client(number)
        self.until_connected(self.sites if clients is None else len(clients))

    # Processes.

    def start_server(self, **environment: str) -> None:
        """Returns when the operator's API answers."""
        self.spawn("server", "server", "run", "--home", str(self.home), **environment)
        self.until(lambda: self.operator("ls").returncode == 0)

    def start_client(self, number: int, **environment: str) -> None:
        """Returns at once."""
        self.spawn(f"client-{number}", "client", "run", "--home", str(self.site(number)), "--verbose", **environment)

    def spawn(self, name: str, *arguments: str, **environment: str) -> None:
        """A process whose output goes to a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*COMMAND, *arguments], stdout=log, stderr=log, env=self.environment(**environment), cwd=self.folder
            )

    def environment(self, **more: str) -> dict[str, str]:
        """One thread each, no hub."""
        base = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        return base | {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR", "HF_HUB_OFFLINE": "1"} | more

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Ends a process by its id; returns its exit status."""
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(PATIENCE)

    def stop(self) -> None:
        """Ends what still runs."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = {}

    # Commands.

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that must succeed."""
        done = self.tried(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.logs()}"
        return done

    def tried(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command that may fail."""
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment(**environment),
            cwd=self.folder,
            timeout=PATIENCE * 2,
        )

    def operator(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`fedlora run …` at this server."""
        return self.tried("run", *arguments, "--home", str(self.home))

    def submit(self, *overrides: str) -> str:
        """Queues the experiment; returns the run's id."""
        done = self.operator("start", "--json", *self.experiment(*overrides))
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads(done.stdout)["id"])

    def shown(self, run: str) -> dict[str, Any]:
        """The run as the server has it."""
        done = self.operator("show", run, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        return {**found["run"], "rounds_list": found["rounds"]}

    def wait(self, run: str, status: str = "finished") -> dict[str, Any]:
        """Until the run has ended, which must be so."""
        self.until(lambda: self.shown(run)["status"] in ("finished", "failed", "stopped"))
        found = self.shown(run)
        assert found["status"] == status, f"{found}{self.logs()}"
        return found

    def until_connected(self, count: int) -> None:
        """Until that many clients are there."""
        self.until(lambda: self.connected() >= count)

    def connected(self) -> int:
        """How many clients are."""
        done = self.operator("clients", "--json")
        return sum(bool(client["connected"]) for client in json.loads(done.stdout)) if done.returncode == 0 else 0

    def until(self, holds: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Waits until `holds`."""
        end = time.monotonic() + patience
        while not holds():
            assert time.monotonic() < end, f"it did not come true in {patience:.0f} s{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every process's output, for whoever reads a failure."""
        parts = [f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "".join(parts)

    def adapter(self, run: str) -> bytes:
        """What came of the run."""
        return (self.home / "runs" / run / "adapter" / "adapter_model.safetensors").read_bytes()

    def simulated(self, *overrides: str) -> bytes:
        """What comes of the same experiment on virtual clients, one after another."""
        store = self.folder / "simulated"
        self.run("simulate", "-q", *self.experiment(*overrides), "engine=sequential", f"store={store}", "output=null")
        newest = max(store.glob("*/adapter"), key=lambda path: path.stat().st_mtime)
        return (newest / "adapter_model.safetensors").read_bytes()

    def roster(self, run: str, round_number: int) -> dict[int, dict[str, Any]]:
        """Who did what in a round, by client number."""
        rounds = {found["round"]: found for found in self.shown(run)["rounds_list"]}
        return {row["client"]: row for row in rounds[round_number]["roster"]}
