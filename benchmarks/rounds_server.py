"""A server process for `benchmarks.rounds`: what `fedlora server run` is, with empty rounds for a run.

Its input is an order (a line of JSON), then "go"; it says when it listens, how long all clients took to connect, and
what the rounds cost.
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from benchmarks.rounds_processes import BenchmarkError, allow_connections, hear, say
from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.flower_internals import SERVER_NODE_ID
from fedlora.link.grid import LinkGrid
from fedlora.link.inbox import Inbox
from fedlora.server.daemon import running
from fedlora.server.running import Server
from fedlora.server.settings import ServerSettings
from fedlora.wire import to_record


@dataclass(frozen=True)
class Rounds:
    """The rounds of one run. payload: bytes of the tensor that goes to each client and comes back."""

    grid: LinkGrid
    payload: int

    def messages(self, number: int) -> list[Message]:
        """A cohort's tasks, which share their arrays as a strategy's do."""
        values = np.full(self.payload // 4, float(number), np.float32)
        spec = TensorSpec(values.shape, Role.HEAD, "", True, Delivery.ROUND)
        manifest = Manifest(Form.LORA, 2, 1.0, 0, {"head": spec}).to_json()
        arrays = to_record({"head": values})
        return [
            Message(
                RecordDict({"arrays": arrays, "task": self._task(number, client, manifest)}),
                client + SERVER_NODE_ID + 1,
                MessageType.TRAIN,
                group_id=str(number),
            )
            for client in range(len(self.grid.sites))
        ]

    def _task(self, number: int, client: int, manifest: str) -> ConfigRecord:
        return ConfigRecord({"run": self.grid.name, "round": number, "client": client, "manifest": manifest})

    def take(self, number: int) -> float:
        """One round; the seconds of `send_and_receive`. Raises BenchmarkError unless all have answered."""
        messages = self.messages(number)
        began = time.perf_counter()
        failed = [reply.error.reason for reply in self.grid.send_and_receive(messages) if reply.has_error()]
        seconds = time.perf_counter() - began
        self.grid.committed(number)
        if failed:
            raise BenchmarkError(f"round {number}: {len(failed)} clients did not answer; the first: {failed[0]}")
        return seconds


def connect(server: Server, sites: Sequence[str], patience: float) -> float:
    """Seconds until all are connected. Raises BenchmarkError if they are not within `patience` seconds."""
    began, hub = time.perf_counter(), server.host.hub

    def all_there() -> bool:
        return len(hub.connected()) == len(sites)

    if not server.host.call(hub.until(all_there, patience)):
        raise BenchmarkError(f"{len(hub.connected())} of {len(sites)} clients are connected after {patience:.0f} s")
    return time.perf_counter() - began


def measure(rounds: Rounds, count: int) -> dict[str, Any]:
    """Seconds of `count` rounds, after one that does not count, and the CPU seconds that each takes this process."""
    rounds.take(0)
    before = cpu_seconds()
    seconds = [rounds.take(number) for number in range(1, count + 1)]
    return {"seconds": seconds, "cpu_seconds": (cpu_seconds() - before) / count}


def cpu_seconds() -> float:
    """Of this process, so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_mib(key: str = "VmRSS") -> float:
    """Resident memory of this process; VmHWM: at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{key}:"))) / 1024


def open_files() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    """The process."""
    order = hear()
    sites: list[str] = order["sites"]
    allow_connections(len(sites))
    settings = ServerSettings.model_validate({"link": order["link"], "enrolment": None, "operator": "127.0.0.1:0"})
    with running(Path(order["home"]), settings) as server:
        empty, empty_cpu = memory_mib(), cpu_seconds()
        say("listening")
        hear()
        connected = connect(server, sites, order["patience"])
        found = {"connected_seconds": connected, "connected_cpu_seconds": cpu_seconds() - empty_cpu}
        run = server.store.get(order["run"])
        grid = LinkGrid(server.host, run.id, sites, Inbox(run.folder), absence=60.0)
        found |= measure(Rounds(grid, order["payload"]), order["rounds"])
        memory = {"empty_mib": empty, "mib": memory_mib(), "peak_mib": memory_mib("VmHWM"), "open_files": open_files()}
        say(found | memory)
        hear()


if __name__ == "__main__":
    main()
