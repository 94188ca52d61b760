"""Empty rounds of Flower's own deployment: a SuperLink, SuperNodes and `flwr run`, over TLS on loopback.

Only the server shows a certificate: Flower has no mutual TLS. Node authentication is off, the SuperLink's database is
in memory: both are Flower's defaults, and the faster choice.
"""

import json
import ssl
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rounds_processes import BIN, Process, ended_at_last, free_ports, until

APP = Path(__file__).resolve().parent / "flower_noop"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@dataclass(frozen=True)
class Settings:
    """How Flower is run. poll: seconds between the ServerApp's looks for answers, 0: Flower's own loop.

    variables: of the SuperNodes' environment.
    """

    name: str
    poll: float = 0.0
    variables: Mapping[str, str] = field(default_factory=dict)


DEFAULTS = Settings("Flower, defaults")


def polling(seconds: float) -> Settings:
    """With all looks that can be set so often. On few cores the most frequent ones are not the fastest."""
    return Settings(f"Flower, polls {seconds:g} s", seconds, {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(seconds)})


@dataclass(frozen=True)
class Deployment:
    """A SuperLink and SuperNodes in `folder`; all of Flower's files are there too."""

    folder: Path
    settings: Settings
    port: int

    @property
    def variables(self) -> dict[str, str]:
        """Of all of Flower's processes."""
        return {**QUIET, "FLWR_HOME": str(self.folder / "home")}

    def process(self, name: str, *command: str, **more: str) -> Process:
        """One of Flower's commands, running."""
        variables = self.variables | more
        return Process([str(BIN / command[0]), *command[1:]], self.folder / f"{name}.log", more=variables)

    def prepare(self) -> None:
        """The server's certificate, and where `flwr` finds the SuperLink."""
        from fedlora.identity.authority import create_authority
        from fedlora.identity.keys import new_key, signing_request, write_private

        (self.folder / "home").mkdir(mode=0o700, parents=True)
        authority, key = create_authority(self.folder / "ca", "rounds"), new_key()
        write_private(self.folder / "server.key", key)
        certificate = authority.sign_server(signing_request(key, "server"), ["localhost", "127.0.0.1"])
        (self.folder / "server.crt").write_bytes(certificate)
        link = f'address = "localhost:{self.port}"\nroot-certificates = "{self.folder / "ca" / "ca.crt"}"\n'
        (self.folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "rounds"\n\n[superlink.rounds]\n{link}'
        )

    def superlink(self) -> Process:
        """The server, ready."""
        files = {"ca-certfile": "ca/ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        tls = [part for name, file in files.items() for part in (f"--ssl-{name}", str(self.folder / file))]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        return self.process("superlink", "flower-superlink", *tls, *where)

    def healthy(self) -> bool:
        """Whether the SuperLink answers."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca" / "ca.crt"))
        with (
            suppress(OSError),
            urllib.request.urlopen(f"https://localhost:{self.port}/health", timeout=5, context=context),
        ):
            return True
        return False

    def supernode(self, number: int, port: int) -> Process:
        """A client. port: of its own API for its ClientApps."""
        trust = ["--root-certificates", str(self.folder / "ca" / "ca.crt"), "--superlink", f"localhost:{self.port}"]
        return self.process(
            f"supernode-{number}", "flower-supernode", *trust, "--port", str(port), **self.settings.variables
        )

    def run(self, clients: int, rounds: int, payload: int) -> list[float]:
        """Runs the app; seconds of each round. Raises BenchmarkError if it fails."""
        out = self.folder / "seconds.json"
        asked = f"clients={clients} rounds={rounds} payload={payload} poll={self.settings.poll} out='{out}'"
        process = self.process("flwr-run", "flwr", "run", str(APP), "rounds", "--run-config", asked, "--stream")
        with ended_at_last([process]):
            process.popen.wait(120 + 60 * (rounds + 1))
            if not out.exists():
                raise process.failure("the run has failed")
        return [float(seconds) for seconds in json.loads(out.read_text())]


def measure(settings: Settings, folder: Path, clients: int, rounds: int, payload: int) -> list[float]:
    """Seconds of each of `rounds` empty rounds, after one that does not count."""
    link, *ports = free_ports(clients + 1)
    deployment = Deployment(folder, settings, link)
    deployment.prepare()
    processes: list[Process] = [deployment.superlink()]
    with ended_at_last(processes):
        until(deployment.healthy, processes[0])
        processes += [deployment.supernode(number, port) for number, port in enumerate(ports)]
        return deployment.run(clients, rounds, payload)
