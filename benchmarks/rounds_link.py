"""Empty rounds over fedlora's link: a server process, and clients with certificates in processes of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rounds_processes import Child, Process, ended_at_last, free_ports

HOSTED = 250
"""Clients in one process, where there are many."""

PATIENCE = 600.0
"""Seconds for all clients to connect."""


@dataclass(frozen=True)
class Asked:
    """What is measured. hosted: clients in one process, 1: each is a daemon of its own with its answers on the disk."""

    clients: int
    rounds: int
    payload: int
    hosted: int = 1

    @property
    def sites(self) -> list[str]:
        """The clients' names."""
        return [f"site-{number}" for number in range(self.clients)]


def prepare(home: Path, sites: Sequence[str]) -> tuple[str, list[dict[str, Any]], str]:
    """A server's home with enrolled clients and one run: the run's id, the clients' keys, the authority's certificate.

    The keys stay in memory.
    """
    from fedlora.config.compose import compose
    from fedlora.identity.enrolment import join
    from fedlora.identity.home import make_home, open_registry
    from fedlora.identity.keys import new_key, signing_request
    from fedlora.identity.tls import server_files
    from fedlora.server.store import RunStore

    authority = make_home(home, "rounds", ["localhost", "127.0.0.1"])
    clients = []
    with open_registry(home) as registry:
        for number, name in enumerate(sites):
            key = new_key()
            issued = join(registry, authority, registry.invite(name), signing_request(key, name))
            client = {"name": name, "number": number, "key": key.decode(), "certificate": issued.certificate.decode()}
            clients.append(client)
    with RunStore.open(server_files(home).runs) as store:
        run = store.create(compose(), name="rounds")
    return run.id, clients, authority.certificate.decode()


def measure(asked: Asked, folder: Path) -> dict[str, Any]:
    """What `benchmarks.rounds_server` has found. Raises BenchmarkError if clients or rounds are missing."""
    run, clients, authority = prepare(folder / "server", asked.sites)
    address = f"localhost:{free_ports(1)[0]}"
    server = Child("benchmarks.rounds_server", folder / "server.log", _order(asked, folder, address, run))
    processes: list[Process] = [server]
    with ended_at_last(processes):
        hosts = []
        for first in range(0, len(clients), asked.hosted):
            answers = str(folder / "answers") if asked.hosted == 1 else None
            order: dict[str, Any] = {"link": address, "authority": authority, "answers": answers}
            order |= {"clients": clients[first : first + asked.hosted]}
            hosts.append(Child("benchmarks.rounds_clients", folder / f"clients-{first}.log", order))
            processes.append(hosts[-1])
        for child in (server, *hosts):
            child.hear()
        for child in (server, *hosts):
            child.say("go")
        found: dict[str, Any] = server.hear(PATIENCE + 60.0 * asked.rounds)
        return found


def _order(asked: Asked, folder: Path, address: str, run: str) -> dict[str, Any]:
    shared = {"rounds": asked.rounds, "payload": asked.payload, "patience": PATIENCE}
    return {"home": str(folder / "server"), "link": address, "sites": asked.sites, "run": run, **shared}
