"""The dashboard over recorded runs, on this machine alone: nothing can be changed, and nothing is kept of who looks."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import fedlora
from fedlora.identity.keys import write_private
from fedlora.identity.tokens import new_secret
from fedlora.server.dashboard.actions import link_address
from fedlora.server.dashboard.app import make_dashboard
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.credentials import Given
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.durable import explained
from fedlora.server.operator.api import LOOPBACK
from fedlora.server.operator.serve import OperatorServer
from fedlora.server.store import RunStore
from fedlora.server.store.database import Database
from fedlora.server.store.run_store import sqlite_url
from fedlora.server.views import Views

_HOST = "127.0.0.1"
_OPENING = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={}"><title>fedlora</title>\n'


@dataclass(frozen=True)
class LocalDashboard:
    """A dashboard that answers. link: opens it, once: with a code. page: a file, for this user alone, that does so."""

    link: str = field(repr=False)
    page: Path


@contextmanager
def local_dashboard(store: Path, port: int = 0) -> Iterator[LocalDashboard]:
    """Shows the runs in the folder `store`, for the block. port: 0 for any free one.

    Raises StoreError if there is no run store, LinkError if the port cannot be used.
    """
    with RunStore.open(store, create=False) as opened, _books() as (folder, database):
        given = Given(new_secret(), Person("local", Role.OPERATOR), once=True)
        context = Context(
            store=opened,
            registry=None,
            presences=dict,
            queue=None,
            closing=Event(),
            views=Views(opened),
            version=fedlora.__version__,
        )
        app = make_dashboard(context, LOOPBACK, tls=False, given=given, database=database)
        with OperatorServer(app, _HOST, port, None, None) as server:
            link = link_address(server.url, given.secret)
            page = folder / "open.html"  # or every user could read the code from the browser's command line
            write_private(page, _OPENING.format(link).encode())
            yield LocalDashboard(link, page)


@contextmanager
def _books() -> Iterator[tuple[Path, Database]]:
    """A folder and a database for nobody else, which go when the block ends."""
    with explained("make a temporary folder", Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="fedlora-dashboard-")
    with folder as name, closing(Database(sqlite_url(Path(name)), Path(name))) as database:
        yield Path(name), database
