"""The tables of the run store. `migrations/` makes them; a test holds the two together."""

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
    sa.Column("id", sa.String(120), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("strategy", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("rounds_done", sa.Integer, nullable=False),
    sa.Column("folder", sa.Text, nullable=False, unique=True),  # relative to the store's folder where inside it
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("finished_at", UtcTime),
    sa.Column("sweep", sa.Text, index=True),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("run", sa.String(120), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
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
    sa.Column("run", sa.String(120), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("client", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
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
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),  # of a revocation
    sa.Column("enrolled_at", UtcTime),
    sa.Column("last_seen", UtcTime),
    sa.Column("version", sa.Text, nullable=False),
)

# Every certificate that was given out and could still be shown: how else could one of them be told from a stolen one?
certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("client", sa.String(63), sa.ForeignKey("clients.name", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # 1, 2, … in the order in which a client got them
    sa.Column("serial", sa.String(40), nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("issued_at", UtcTime, nullable=False),
    sa.Column("used_at", UtcTime),  # for the first time
    sa.Column("expires_at", UtcTime, nullable=False),
    sa.UniqueConstraint("client", "number"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),  # SHA-256 of the secret, which is stored nowhere
    sa.Column("client", sa.String(63), sa.ForeignKey("clients.name", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
    sa.Column("used_at", UtcTime),
)
