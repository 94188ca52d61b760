"""A server's home from a copy that `fedlora.server.backup` made."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError

from fedlora.errors import StoreError
from fedlora.identity.tls import server_files
from fedlora.server import bundle, scrub
from fedlora.server.backup import FORMAT, POSTGRES_DUMP
from fedlora.server.durable import explained, sync_folder
from fedlora.server.erase import forget_name, sites_of
from fedlora.server.settings import DATABASE_VARIABLE, database_of
from fedlora.server.store import RunStore, tables, urls
from fedlora.server.store.dump import check_known, restore_postgres

_DRAFT = ".restoring"
_LAST = "ca"
"""What is put into a home last: without it no server starts there."""


class Facts(BaseModel):
    """What a copy says of itself. created_at: UTC. revision: of the database's tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    fedlora: str
    created_at: datetime
    database: Literal["sqlite", "postgresql"]
    revision: str
    keys: bool
    runs: int
    rounds: int
    files: dict[str, bundle.FileFacts]


@dataclass(frozen=True)
class Restored:
    """What a new home holds. created_at: when the copy was made.

    withdrawn: clients' tokens that cannot be used any more. access: access tokens and links of the dashboard that are
    gone.
    """

    created_at: datetime
    runs: int
    rounds: int
    keys: bool
    withdrawn: int
    access: int


def restore(source: Path, home: Path) -> Restored:
    """Makes the new server's home `home` from the copy `source`, or nothing at all.

    A copy of PostgreSQL goes into the empty database that the environment or the copy's settings name.

    Open tokens are withdrawn: they may have been used since. So is whatever opens the dashboard, and sessions end: who
    had access when the copy was made may have lost it since. What sites had erased when the copy was made is erased
    again when the server starts. Only copies that one trusts should be restored: the database in one is taken as it is.

    Raises StoreError: there is something in `home`, the copy is damaged, holds what no copy holds, or is a newer
    fedlora's; the database cannot be used. ConfigError for the settings in it.
    """
    with _draft(home) as draft:
        facts = _unpacked(source, draft)
        url = _url(draft, facts)
        runs = server_files(draft).runs
        if url is not None:
            restore_postgres(urls.parse(url), draft, draft / POSTGRES_DUMP)
            with explained("remove", draft / POSTGRES_DUMP):
                (draft / POSTGRES_DUMP).unlink()
                runs.mkdir(mode=0o700, exist_ok=True)
        with RunStore.open(runs, url=url) as store:
            withdrawn, access = _withdraw_tokens(store), _withdraw_access(store)
            _erase_again(store)
        (runs / ".migrating.lock").unlink(missing_ok=True)
        _put_in_place(draft, home)
    return Restored(facts.created_at, facts.runs, facts.rounds, facts.keys, withdrawn, access)


@contextmanager
def _draft(home: Path) -> Iterator[Path]:
    """A folder in `home` where a copy is taken apart; after an error nothing of it stays."""
    with explained("restore to", home):
        new = not home.exists()
        if not new and (not home.is_dir() or any(home.iterdir())):
            raise StoreError(f"{home} is there already and not empty: a copy is restored into a new home")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = home / _DRAFT
        draft.mkdir(mode=0o700)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if new and not any(home.iterdir()):
            home.rmdir()


def _unpacked(source: Path, draft: Path) -> Facts:
    data = bundle.unpack(source, draft)
    try:
        facts = Facts.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"{source} is no copy of a server's home, or was made by a newer fedlora: its {bundle.FACTS} has"
            f" {error.error_count()} mistakes"
        ) from error
    if facts.format != FORMAT:
        raise StoreError(f"{source} was made by fedlora {facts.fedlora[:40]!r}, a newer one: install that version")
    check_known(facts.revision)
    bundle.check_files(draft, facts.files)
    return facts


def _url(draft: Path, facts: Facts) -> str | None:
    """Where a copy's database goes: a URL, or None for the file in the home."""
    url = database_of(draft)
    kind = urls.SQLITE if url is None else urls.kind(urls.parse(url))
    if facts.database == urls.POSTGRES and kind != urls.POSTGRES:
        raise StoreError(
            f"the copy is of a PostgreSQL database: set {DATABASE_VARIABLE} to the URL of a new, empty one"
        )
    if facts.database == urls.SQLITE and url is not None:
        raise StoreError(
            f"the copy is of an SQLite database in a server's home, but {DATABASE_VARIABLE} or its settings name"
            " another one, which the server would use instead: unset it"
        )
    return url


def _withdraw_tokens(store: RunStore) -> int:
    unused = sa.delete(tables.tokens).where(tables.tokens.c.used_at.is_(None))
    with store.database.writes() as connection:
        return connection.execute(unused).rowcount


def _withdraw_access(store: RunStore) -> int:
    """The operator's token is in no copy: the server makes a new one, and who has that lets the others in again."""
    with store.database.writes() as connection:
        connection.execute(sa.delete(tables.dashboard_sessions))
        both = (tables.access_tokens, tables.collaborator_links)
        return sum(connection.execute(sa.delete(table)).rowcount for table in both)


def _erase_again(store: RunStore) -> None:
    """Makes the server's next start look at all that is noted: database and files may be of different moments."""
    left: set[str] = set()
    for run in store.list():
        inside = run.folder.resolve().is_relative_to(store.folder)  # not those of another server on this host
        if inside and (run.folder / scrub.FILE).is_file():
            with scrub.exclusive(run.folder):
                noted = scrub.erasures(run.folder)
                scrub.note(run.folder, replace(noted, complete=False))
            left |= {sites_of(run)[client] for client, last in noted.clients.items() if last is None}
    for name in left:
        forget_name(store, name)


def _put_in_place(draft: Path, home: Path) -> None:
    with explained("restore to", home):
        for folder, _, _ in os.walk(draft):
            sync_folder(Path(folder))
        for path in sorted(draft.iterdir(), key=lambda path: path.name == _LAST):
            path.rename(home / path.name)
        sync_folder(home)
