"""What commands do to a server's home, in its audit log: as if it had been done in a page of its dashboard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedlora.server.store import RunStore

HERE = "command line"
"""In place of an address."""


@contextmanager
def noted(home: Path, action: str, what: str, reason: str = "") -> "Iterator[RunStore]":
    """The store of the server's home, for the block; if that ends well, the audit log then says what was done.

    what: what was acted on, in words. Raises what `open_store` does.
    """
    from fedlora.identity.home import open_store
    from fedlora.server.dashboard.audit import AuditLog, Note

    with open_store(home) as store:
        yield store
        AuditLog(store.database).write(Note(action, HERE, person=login_name(), object=what, reason=reason))


def login_name() -> str:
    """The name of the user whose process this is; what the environment says does not count."""
    import os
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container with a user of no name
        return f"user {os.getuid()}"
