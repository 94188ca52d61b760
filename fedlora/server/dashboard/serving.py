"""The dashboard of a running server, made of the server's parts."""

from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING

from starlette.applications import Starlette

import fedlora
from fedlora.server.dashboard.app import make_dashboard
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.credentials import Given
from fedlora.server.dashboard.inviting import Inviter, reached_at
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.operator.token import FILE

if TYPE_CHECKING:
    from fedlora.server.running import Server


def dashboard_of(server: "Server", token: str, hosts: Sequence[str], closing: Event) -> Starlette:
    """The server's dashboard, over TLS; who has the operator's `token` is an admin. hosts: the names of the server."""
    presences = server.host.hub.connected
    context = Context(
        store=server.store,
        registry=server.registry,
        presences=presences,
        queue=server.queue,
        closing=closing,
        views=server.views,
        version=fedlora.__version__,
        invite=_inviter(server, hosts),
    )
    return make_dashboard(context, hosts, tls=True, given=Given(token, Person(FILE, Role.ADMIN)))


def _inviter(server: "Server", hosts: Sequence[str]) -> Inviter | None:
    where = server.settings.enrolment
    if where is None:
        return None
    return Inviter(server.registry, server.authority.certificate, reached_at(hosts, where))
