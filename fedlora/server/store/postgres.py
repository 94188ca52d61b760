"""PostgreSQL: its connections, one writer at a time, and what its errors mean. The only SQL that is its own."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

WRITES = "fedlora_writes"
"""The execution option of transactions that write; its value is how many seconds they wait for their turn."""

READS: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""Options of a transaction that sees one moment of the database."""

# Not a stricter level: it would see the moment at which it began to wait for its turn.
WRITES_AS: dict[str, Any] = {"isolation_level": "READ COMMITTED"}
"""Options of a transaction that writes."""

_TURN = int.from_bytes(b"fedlora.", "big")  # any number that nobody else's advisory locks in this database have
_SERVER = int.from_bytes(b"fedlora:", "big")  # another such number
_CONNECTION = {
    "application_name": "fedlora",
    "client_encoding": "utf8",
    "connect_timeout": "10",  # seconds
    # A host that vanished is noticed within a minute.
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "50000",  # milliseconds
}
_HOLDER = sa.text(
    "SELECT host(client_addr), date_trunc('second', backend_start), pid = pg_backend_pid()"
    " FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname ="
    " current_database()) AND classid = :high AND objid = :low AND objsubid = 1"
).bindparams(high=_SERVER >> 32, low=_SERVER & 0xFFFFFFFF)
_NOTICED = ("tcp_keepalives_idle = 20", "tcp_keepalives_interval = 10", "tcp_keepalives_count = 3")
"""Settings with which the database notices within a minute that the host of a connection has vanished."""

_WHERE = "FEDLORA_DATABASE or `database` in server.yaml"
_REMEDIES = {
    "28": f"check user and password in {_WHERE}",
    "3D000": "make it first, e.g. with `createdb`",
    "25006": "it can only be read: name the primary server, not a standby",
    "40": "others changed the same at the same time: try again",
    "42501": "this user may not do that there: make it the database's owner (ALTER DATABASE … OWNER TO …)",
    "53100": "the database server's disk is full: free some space there, then resume the run",
    "53300": "its server takes no more connections: raise max_connections there, or end what else uses it",
    "55P03": "another process has been writing for too long: try again, or end that process",
    "57P03": "its server is starting or stopping: try again",
}
_LOST = (
    "the connection was lost, so nobody knows whether the last change was made: look before you repeat it; the"
    " next one connects anew"
)
_UNREACHABLE = f"check that its server runs and lets you in: address, user and password are in {_WHERE}"


def connected_well(url: sa.URL) -> sa.URL:
    """The URL with what it does not say itself of timeouts and encoding."""
    return url.update_query_dict({name: value for name, value in _CONNECTION.items() if name not in url.query})


def for_programs(url: sa.URL) -> tuple[str, dict[str, str]]:
    """What `pg_dump` and `pg_restore` get as their --dbname; and, apart from it, a password as an environment."""
    from psycopg.conninfo import make_conninfo

    _, options = url.get_dialect()().create_connect_args(connected_well(url))
    secret = options.pop("password", None)
    return make_conninfo(**options), {} if secret is None else {"PGPASSWORD": str(secret)}


def use_turns(engine: sa.Engine) -> None:
    """Lets one transaction write at a time, on whichever host, as SQLite does: what it has read stays so."""

    def begun(connection: sa.Connection) -> None:
        wait = connection.get_execution_options().get(WRITES)
        if wait is not None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(wait * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN})")

    event.listen(engine, "begin", begun)


def take_server_lock(connection: sa.Connection) -> str | None:
    """Takes the lock of the one server of this database, for as long as the connection lives.

    Gives None, or, if another connection has it, where that comes from and since when.
    """
    for setting in _NOTICED:
        connection.exec_driver_sql(f"SET {setting}")
    if connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_SERVER})").scalar():
        return None
    found = connection.execute(_HOLDER).first()
    return "it has just ended" if found is None else f"connected from {found[0] or 'there'} since {found[1]}"


def has_server_lock(connection: sa.Connection) -> bool:
    """Whether this connection still has that lock."""
    found = connection.execute(_HOLDER).first()
    return found is not None and bool(found[2])


def told(cause: BaseException) -> str:
    """An error's text in one line, without the rows that the server adds to it: they may be personal data."""
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join((primary or str(cause)).split())


def remedy(cause: BaseException, *, lost: bool) -> str:
    """What to do about an error of the driver; "" if nobody knows. lost: the connection was, while in use."""
    code = getattr(cause, "sqlstate", None)
    if lost:
        return _LOST
    if code is None:
        return _UNREACHABLE if type(cause).__name__ in ("OperationalError", "ConnectionTimeout") else ""
    return next((text for prefix, text in _REMEDIES.items() if code.startswith(prefix)), "")
