"""Opening the run store that a command's `--store` names, in whichever database it is."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedlora.server.store import RunStore


def open_store(store: Path) -> "RunStore":
    """The run store in the folder `store`. Raises StoreError if there is none, ConfigError for a server's settings."""
    from fedlora.server.store import RunStore

    return RunStore.open(store, url=database_of_store(store.resolve()), create=False)


def database_of_store(store: Path) -> str | None:
    """The URL of the database of a store; None: SQLite in its folder.

    A simulation's is always there: FEDLORA_DATABASE is for servers.
    """
    from fedlora.server.settings import DATABASE_VARIABLE, database_of
    from fedlora.server.store.run_store import DATABASE

    if (store.parent / "ca").is_dir() and store.name == "runs":  # a server's, as `fedlora ca init` made it
        return database_of(store.parent)
    own = (store / DATABASE).is_file() or not store.is_dir()
    return None if own else os.environ.get(DATABASE_VARIABLE) or None
