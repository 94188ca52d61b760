"""A federation whose processes, lines and disks can be hurt, and made whole again."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults_disk import Disk, LimitedDisk, SmallDisk, small_disk
from benchmarks.faults_harm import VARIABLE, Harm
from benchmarks.faults_nursery import PATIENCE, Child, Nursery
from benchmarks.unruly_proxy import UnrulyProxy
from fedlora.client.home import SiteHome, note_joined
from fedlora.errors import FedloraError
from fedlora.server.operator.access import find_access
from fedlora.server.operator.client import OperatorClient
from tests.e2e.federation import Federation

ROOT = Path(__file__).resolve().parents[1]
OVER = ("finished", "failed", "stopped")
LAST = 2
"""The site whose disk can be full."""

Lost = frozenset[tuple[int, int]]
"""(round, client) pairs without a counted update."""


@dataclass(kw_only=True)
class World(Federation):
    """A federation of three sites, each with a proxy on its line.

    heartbeat: seconds, of the link; 0: fedlora's own. small: whether disks are mounted where that is allowed.
    harms: what is to happen to processes that are started next, by name ("command": the next command).
    """

    heartbeat: float = 0.0
    small: bool = True
    harms: dict[str, Harm] = field(default_factory=dict)
    proxies: list[UnrulyProxy] = field(default_factory=list)
    mounted: dict[str, SmallDisk] = field(default_factory=dict)
    _simulated: dict[tuple[tuple[str, ...], Lost], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nursery = Nursery(self.environment(PYTHONPATH=str(ROOT)))

    # Set-up.

    def build(self) -> None:
        """Everything is set up and connected."""
        for name, home in {"server": self.home, f"client-{LAST}": self.site(LAST)}.items():
            if self.small and (disk := small_disk(home)) is not None:
                self.mounted[name] = disk
        self.prepare()
        self.start_server()
        for number in range(self.sites):
            self.join(number)
        self.mend()

    def join(self, number: int) -> None:
        """Enrols a site, and leads its line through a proxy."""
        super().join(number)
        self.proxies.append(UnrulyProxy(self.link_port))
        note_joined(SiteHome.open(self.site(number)), f"localhost:{self.proxies[-1].port}")

    def close(self) -> None:
        """Ends everything."""
        self.free()
        self.awake()
        self.stop()
        self.nursery.close()
        for proxy in self.proxies:
            proxy.close()
        for disk in self.mounted.values():
            disk.close()

    def mend(self) -> None:
        """All processes run, all lines are good, all disks have room, all sites are connected."""
        for proxy in self.proxies:
            proxy.mend()
        self.free()
        self.awake()
        self.harms = {}
        for name in [name for name, process in self.processes.items() if process.poll() is not None]:
            del self.processes[name]
        if "server" not in self.processes:
            self.start_server()
        for number in range(self.sites):
            if f"client-{number}" not in self.processes:
                self.start_client(number)
        self.until_connected(self.sites)

    def free(self) -> None:
        """Room on all disks."""
        for name in self.processes:
            self.disk(name).free()
            LimitedDisk(lambda name=name: self.pid(name)).free()

    def awake(self) -> None:
        """No process sleeps."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)

    def disk(self, name: str) -> Disk:
        """What the process writes to."""
        return self.mounted.get(name) or LimitedDisk(lambda: self.pid(name))

    def pid(self, name: str) -> int | None:
        """The process's id, None if it does not run."""
        process = self.processes.get(name)
        return None if process is None or process.poll() is not None else process.pid

    # Processes.

    def start_server(self, **environment: str) -> None:
        """Returns when the operator's API answers, or the server has died because it was to do so."""
        doomed = self.harms.get("server", Harm()).kill_at_step is not None
        self.spawn("server", "server", "run", "--home", str(self.home), **environment)
        self.until(lambda: self.pid("server") is None or self.asked(lambda api: api.runs()) is not None)
        if self.pid("server") is None and not doomed:
            raise AssertionError(f"the server ended with {self.processes['server'].poll()}{self.logs()}")

    def spawn(self, name: str, *arguments: str, **environment: str) -> None:
        """A process whose output goes to a file."""
        log = self.folder / f"{name}.log"
        self.processes[name] = self._born(name, arguments, log, log, environment)  # type: ignore[assignment]

    def tried(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command that may fail."""
        with tempfile.TemporaryDirectory() as passing:
            out, error = Path(passing) / "out", Path(passing) / "error"
            status = self._born("command", arguments, out, error, environment).wait(2 * PATIENCE)
            return subprocess.CompletedProcess(arguments, status, out.read_text(), error.read_text())

    def _born(
        self, name: str, arguments: Sequence[str], out: Path, error: Path, environment: Mapping[str, str]
    ) -> Child:
        harm = replace(self.harms.pop(name, Harm()), heartbeat=self.heartbeat, aged=3.0)
        return self.nursery.start(arguments, self.environment(**environment), out, error, self.folder, harm)

    def start_skewed(self, number: int, seconds: float) -> None:
        """A client whose clock is ahead. It is no child of the nursery: the clocks of C code are moved as well."""
        name = f"client-{number}"
        library = self._clock()
        harm = Harm(clock=0.0 if library else seconds, heartbeat=self.heartbeat).to_json()
        more = {VARIABLE: harm, "FAULT_CLOCK": f"{seconds:.0f}", "PYTHONPATH": str(ROOT)}
        more |= {"LD_PRELOAD": str(library)} if library else {}
        command = [sys.executable, "-m", "benchmarks.faults_harm", "client", "run", "--home", str(self.site(number))]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment(**more), cwd=self.folder
            )

    def _clock(self) -> Path | None:
        """The library that moves the clock of TLS; None without a compiler."""
        library, compiler = self.folder / "clock.so", shutil.which("cc")
        if compiler is not None and not library.exists():
            source = ROOT / "benchmarks" / "faults_clock.c"
            subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        return library if library.exists() else None

    def fallen(self, name: str) -> int:
        """Waits until a process has died by itself; returns its exit status."""
        return int(self.processes.pop(name).wait(PATIENCE))

    # What the operator does: without a process for each question.

    def asked(self, question: Callable[[OperatorClient], Any]) -> Any:
        """What the server's API says; None if it is not there."""
        with suppress(FedloraError, OSError), OperatorClient(find_access(None, self.home, {})) as api:
            return question(api)
        return None

    def shown(self, run: str) -> dict[str, Any]:
        """The run as the server has it. Waits for the server, if it is not there."""
        found: list[Any] = []
        self.until(lambda: bool(found) or bool(found.append(self.asked(lambda api: api.shown(run)))) or bool(found[0]))
        return {**found[0]["run"], "rounds_list": found[0]["rounds"]}

    def submit(self, *overrides: str) -> str:
        """Queues the experiment; returns the run's id."""
        key = f"{time.monotonic_ns()}"
        with OperatorClient(find_access(None, self.home, {})) as api:
            return str(api.submit(key, self.experiment(*overrides), None)["id"])

    def resume(self, run: str) -> None:
        """Puts a run back into the queue."""
        with OperatorClient(find_access(None, self.home, {})) as api:
            api.resume(run, None)

    def connected(self) -> int:
        """How many clients are connected."""
        return sum(bool(client["connected"]) for client in self.asked(lambda api: api.clients()) or ())

    def over(self, run: str) -> dict[str, Any]:
        """Waits until the run has ended, however."""
        self.until(lambda: self.shown(run)["status"] in OVER)
        return self.shown(run)

    def until_round(self, run: str, number: int) -> None:
        """Until that round is committed, or the run has ended."""
        self.until(lambda: (found := self.shown(run))["rounds_done"] >= number or found["status"] in OVER)

    def holds_soon(self, holds: Callable[[], bool]) -> bool:
        """Whether something comes true within a few seconds."""
        with suppress(AssertionError):
            self.until(holds, 5.0)
            return True
        return False

    def simulate(self, overrides: Sequence[str], lost: Lost) -> bytes:
        """What comes of the experiment on virtual clients whose `lost` answers are taken away."""
        key = (tuple(overrides), lost)
        if key not in self._simulated:
            self.harms["command"] = Harm(lost=tuple(sorted(lost)))
            self._simulated[key] = self.simulated(*overrides)
        return self._simulated[key]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def server_settings(home: Path) -> dict[str, Any]:
    """What stands in server.yaml."""
    return dict(yaml.safe_load((home / "server.yaml").read_text()))
