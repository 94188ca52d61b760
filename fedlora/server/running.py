"""What a running server consists of, and what its parts ask of one another."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.identity import enrolment
from fedlora.identity.authority import Authority
from fedlora.identity.keys import certificate_facts
from fedlora.identity.records import ClientRecord, ClientStatus
from fedlora.identity.registry import Registry
from fedlora.identity.tls import ServerFiles
from fedlora.link.host import LinkHost
from fedlora.link.hub import Presence
from fedlora.link.inbox import Inbox
from fedlora.link.service import Doors
from fedlora.link.v1.link_pb2 import EraseReply, State
from fedlora.server.erase import erase_client
from fedlora.server.queue import RunQueue
from fedlora.server.settings import ServerSettings
from fedlora.server.store import RunStore
from fedlora.server.submitted import for_sites
from fedlora.server.views import Views
from fedlora.server.watch import views_of


@dataclass(frozen=True)
class Server:
    """What a running server consists of."""

    files: ServerFiles
    settings: ServerSettings
    store: RunStore
    registry: Registry
    authority: Authority
    host: LinkHost
    queue: RunQueue

    @cached_property
    def views(self) -> Views:
        """What there is to see of the server's runs and clients."""
        return views_of(self.store, self.registry, self.host.hub, self.queue)

    def doors(self) -> Doors:
        """What the link asks of the rest."""
        return Doors(
            admit=lambda name, certificate: enrolment.admit(self.registry, name, certificate),
            seen=self.registry.seen,
            inbox=lambda run: Inbox(self.store.get(run).folder),
            renew=self._renew,
            erase=self._erase,
        )

    def _erase(self, name: str, leave: bool, keep: bool) -> EraseReply:
        if not keep:
            return erase_client(self.store, self.registry, name, leave=leave)
        self.registry.revoke(name, "left")
        return EraseReply()

    def active(self) -> list[str]:
        """The clients that may connect."""
        return [record.name for record in self.registry.clients() if record.status is ClientStatus.ACTIVE]

    def clients(self) -> list[dict[str, Any]]:
        """What is known of each client, for the operator."""
        presences = self.host.hub.connected()
        return [_plain(record, presences.get(record.name)) for record in self.registry.clients()]

    def prepare(self, config: RunConfig) -> RunConfig:
        """A submitted experiment, ready to be queued. Raises ConfigError."""
        from fedlora.simulations.simulate import resolve  # loads torch

        return resolve(for_sites(config, self.active()))

    def _renew(self, name: str, certificate: bytes, request: bytes) -> enrolment.Issued:
        digest = certificate_facts(certificate).sha256
        return enrolment.renew(self.registry, self.authority, name, digest, request)

    def join(self, secret: str, request: bytes) -> enrolment.Issued:
        """A client with a token."""
        return enrolment.join(self.registry, self.authority, secret, request)


def _plain(record: ClientRecord, presence: Presence | None) -> dict[str, Any]:
    state = State() if presence is None else presence.state
    return {
        **asdict(record),
        "connected": presence is not None,
        "paused": state.reason or "paused" if state.paused else None,
        "work": state.work or None,
        "data": [] if presence is None else list(presence.data),
        "device": (presence.device or None) if presence is not None else None,
        "policy": [] if presence is None else list(presence.policy),
    }
