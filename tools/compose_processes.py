"""Starts what `docker-compose.yml` starts, without containers: its commands, as processes on loopback.

What a container would see under /deploy, /demo, /tokens, /var/lib/fedlora and /var/lib/site lies in folders here, the
host `server` is localhost, and ports are free ones.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
PORTS = ("7443", "7444", "7445")


def services() -> Mapping[str, Mapping[str, Any]]:
    """The services of the compose file, its anchors resolved."""
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Composition:
    """The services, with everything of theirs in `folder`."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=lambda: {port: free_port() for port in PORTS})

    @property
    def home(self) -> Path:
        """The server's home."""
        return self.folder / "server"

    def command(self, service: str) -> list[str]:
        """The service's command, as it runs here."""
        return [self._here(service, part) for part in services()[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """The service's environment beside this process's own."""
        said = services()[service].get("environment", {})
        own = {name: self._here(service, str(value)) for name, value in said.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR", **own, "PATH": path}

    def _here(self, service: str, text: str) -> str:
        places = {
            "/var/lib/fedlora": self.folder / "server",
            "/var/lib/site": self.folder / service,
            "/tokens": self.folder / "tokens",
            "/demo": self.folder / "demo",
            "/deploy": ROOT / "deploy",
        }
        text = re.sub(rf"({'|'.join(places)})\b(?!-)", lambda found: str(places[found[1]]), text)
        for port, here in self.ports.items():
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{here}").replace(f"server:{port}", f"localhost:{here}")
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}")

    def start(self) -> None:
        """The data first, then the server, then the clients; returns when all of them are connected."""
        for folder in ("demo", "tokens"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(self.command("data"), env=self.environment("data"), check=True)
        self._spawn("server")
        self.until(lambda: self.fedlora("run", "ls", "--home", str(self.home)).returncode == 0)
        clients = [name for name in services() if name not in ("data", "server")]
        for name in clients:
            self._spawn(name)
        self.until(lambda: self._connected() == len(clients))

    def _spawn(self, service: str) -> None:
        with (self.folder / f"{service}.log").open("ab") as log:
            self.processes[service] = subprocess.Popen(
                self.command(service), env=self.environment(service), stdout=log, stderr=log
            )

    def _connected(self) -> int:
        done = self.fedlora("run", "clients", "--home", str(self.home), "--json")
        return sum(bool(found["connected"]) for found in json.loads(done.stdout)) if done.returncode == 0 else 0

    def fedlora(self, *arguments: str, show: bool = False) -> subprocess.CompletedProcess[str]:
        """A fedlora command. show: its output goes to this process's own."""
        command = [sys.executable, "-m", "fedlora.cli", *arguments]
        return subprocess.run(command, capture_output=not show, text=True, check=False, env=self.environment("server"))

    def until(self, holds: Callable[[], bool], patience: float = 180.0) -> None:
        """Waits until `holds`. Raises SystemExit with the logs if that takes too long, or a process has ended."""
        end = time.monotonic() + patience
        while not holds():
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                raise SystemExit(f"{', '.join(ended) or 'something'} did not come up; see the logs in {self.folder}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends all processes, each as a container is stopped."""
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = {}

    def remove(self) -> None:
        """Deletes everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
