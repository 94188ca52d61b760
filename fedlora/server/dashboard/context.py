"""What the dashboard shows and what it can act on."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from fedlora.identity.registry import Registry
from fedlora.server.queue import RunQueue
from fedlora.server.store import RunStore

if TYPE_CHECKING:
    from fedlora.link.hub import Presence
    from fedlora.server.views import Views


@dataclass(frozen=True)
class Invited:
    """What a new client's owner is given. token: shown once. command: which it is used with. expires: in UTC."""

    token: str = field(repr=False)
    command: str
    expires: datetime


Invite = Callable[[str, float, bool], Invited]
"""Lets a client in: its name, for how many hours, whether it may have a certificate already. Raises IdentityError."""


@dataclass(frozen=True)
class Context:
    """Everything that an endpoint needs; `request.app.state.context`.

    registry, queue: None where recorded runs are shown (`fedlora dashboard`): no clients, no actions. presences: the
    clients that are connected now, by name. closing: set when the server ends; streams end then. version: fedlora's.
    invite: None where no client can join.
    """

    store: RunStore
    registry: Registry | None
    presences: "Callable[[], Mapping[str, Presence]]"
    queue: RunQueue | None
    closing: threading.Event
    views: "Views"
    version: str
    invite: Invite | None = None
