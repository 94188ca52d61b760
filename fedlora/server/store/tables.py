"""The tables of the run store. `migrations/` makes them; a test holds the two together."""

import re
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A point in time, kept as UTC without a zone: SQLite has no zones, and every row means the same everywhere."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class _Written(TypeDecorator[str]):
    """Text of any origin: what PostgreSQL does not take (NUL, halves of surrogate pairs) becomes U+FFFD everywhere.

    Or a client whose reason for declining has a NUL in it would end the run.
    """

    impl: type[sa.String] = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        del dialect
        return None if value is None else _UNWRITABLE.sub("\ufffd", value)


class ShortWords(_Written):
    """Text of a bounded length."""

    cache_ok = True


class Words(_Written):
    """Text of any length."""

    impl = sa.Text
    cache_ok = True


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", ShortWords(120), primary_key=True),
    sa.Column("name", Words, nullable=False),
    sa.Column("status", ShortWords(20), nullable=False),
    sa.Column("strategy", Words, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("rounds_done", sa.Integer, nullable=False),
    sa.Column("folder", Words, nullable=False, unique=True),  # relative to the store's folder where inside it
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("finished_at", UtcTime),
    sa.Column("sweep", Words, index=True),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.Column("config", Words, nullable=False),
    sa.Column("reason", Words, nullable=False),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("run", ShortWords(120), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("bytes_up", sa.BigInteger, nullable=False),
    sa.Column("bytes_down", sa.BigInteger, nullable=False),
    sa.Column("bytes_once", sa.BigInteger, nullable=False),
    sa.Column("bytes_up_head", sa.BigInteger, nullable=False),
    sa.Column("bytes_down_head", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("committed_at", UtcTime, nullable=False),
)

roster = sa.Table(
    "roster",
    metadata,
    sa.Column("run", ShortWords(120), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("client", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("outcome", ShortWords(20), nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("bytes_up", sa.BigInteger, nullable=False),
    sa.Column("bytes_down", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(["run", "round"], ["rounds.run", "rounds.round"], ondelete="CASCADE"),
)

clients = sa.Table(
    "clients",
    metadata,
    sa.Column("name", ShortWords(63), primary_key=True),
    sa.Column("status", ShortWords(20), nullable=False),
    sa.Column("reason", Words, nullable=False),  # of a revocation
    sa.Column("enrolled_at", UtcTime),
    sa.Column("last_seen", UtcTime),
    sa.Column("version", Words, nullable=False),
)

# Every certificate that was given out and could still be shown: how else could one of them be told from a stolen one?
certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("sha256", ShortWords(64), primary_key=True),
    sa.Column("client", ShortWords(63), sa.ForeignKey("clients.name", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # 1, 2, … in the order in which a client got them
    sa.Column("serial", ShortWords(40), nullable=False),
    sa.Column("state", ShortWords(20), nullable=False),
    sa.Column("issued_at", UtcTime, nullable=False),
    sa.Column("used_at", UtcTime),  # for the first time
    sa.Column("expires_at", UtcTime, nullable=False),
    sa.UniqueConstraint("client", "number"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", ShortWords(64), primary_key=True),  # SHA-256 of the secret, which is stored nowhere
    sa.Column("client", ShortWords(63), sa.ForeignKey("clients.name", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
    sa.Column("used_at", UtcTime),
    sa.Column("key_sha256", ShortWords(64)),  # of the public key with which it was used
)

# Who may use the dashboard. Every secret is kept as its SHA-256 alone.
access_tokens = sa.Table(
    "access_tokens",
    metadata,
    sa.Column("name", ShortWords(63), primary_key=True),
    sa.Column("role", ShortWords(20), nullable=False),
    sa.Column("digest", ShortWords(64), nullable=False, unique=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime),
    sa.Column("last_used", UtcTime),
)

collaborator_links = sa.Table(
    "collaborator_links",
    metadata,
    sa.Column("id", ShortWords(16), primary_key=True),
    sa.Column("digest", ShortWords(64), nullable=False, unique=True),
    sa.Column("run", ShortWords(120), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("site", ShortWords(63), nullable=False),
    sa.Column("created_by", ShortWords(63), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
    sa.Column("last_used", UtcTime),
)

dashboard_sessions = sa.Table(
    "dashboard_sessions",
    metadata,
    sa.Column("digest", ShortWords(64), primary_key=True),  # of the cookie's value
    sa.Column("credential", ShortWords(64), nullable=False, index=True),  # digest of what its person logged in with
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("used_at", UtcTime, nullable=False),
)

# Rows are added, and deleted once they are old; none is changed, but where a client has its name erased.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False, index=True),
    sa.Column("person", ShortWords(63), nullable=False),
    sa.Column("role", ShortWords(20), nullable=False),
    sa.Column("action", ShortWords(80), nullable=False),
    sa.Column("object", ShortWords(200), nullable=False),
    sa.Column("outcome", ShortWords(20), nullable=False),
    sa.Column("reason", ShortWords(500), nullable=False),
    sa.Column("address", ShortWords(64), nullable=False),
)
