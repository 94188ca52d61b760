"""Letting a client in from the dashboard: a one-time token, and the command that its owner uses it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fedlora.identity.registry import Registry
from fedlora.identity.tokens import Invitation, encode
from fedlora.server.dashboard.context import Invited

_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Inviter:
    """What the daemon gives a `Context`. authority: its certificate (PEM). address: host:port of the enrolment."""

    registry: Registry
    authority: bytes
    address: str

    def __call__(self, name: str, hours: float, again: bool) -> Invited:
        began = datetime.now(UTC)
        secret = self.registry.invite(name, hours=hours, again=again)
        expires = began + timedelta(hours=hours)
        token = encode(Invitation(name, self.address, self.authority, secret, expires))
        return Invited(token, f"fedlora client join --home site --token-file {name}.token", expires)


def reached_at(hosts: Sequence[str], listening: str) -> str:
    """Where others reach a port of the server: the first of the certificate's names that means more than this machine.

    listening: `host:port` as in the settings.
    """
    port = listening.rpartition(":")[2]
    host = next((host for host in hosts if host not in _LOCAL), "localhost")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
