"""Database URLs: which ones can be used, and how to speak of one without its secrets."""

import sqlalchemy as sa

from fedlora.errors import StoreError

POSTGRES, SQLITE = "postgresql", "sqlite"
"""The two databases that hold a run store."""

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_EXAMPLE = "give one such as postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:////PATH/fedlora.db"


def parse(text: str) -> sa.URL:
    """The URL of a database that can hold a run store.

    Raises StoreError, which never repeats what could be a password: not even of a text that is no URL.
    """
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # they may repeat a part of the password
        beginning = text.partition(":")[0] if "@" not in text.partition(":")[0] else ""
        raise StoreError(f"the database's URL ({beginning[:20]!r} and so on) is none: {_EXAMPLE}") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise StoreError(f"a run store cannot be in a database of the kind {url.drivername!r}: {_EXAMPLE}")
    return url.set(drivername=driver)


def kind(url: sa.URL) -> str:
    """POSTGRES or SQLITE."""
    return url.get_backend_name()


def spoken(url: sa.URL) -> str:
    """The database in words: for SQLite its file; else user, host and name, and neither password nor options."""
    if kind(url) == SQLITE:
        return url.database or "in memory"
    host = url.host or url.query.get("host") or ""
    plain = sa.URL.create(kind(url), url.username, None, "", url.port, url.database)
    return str(plain.set(host=host if isinstance(host, str) else ",".join(host)))


def has_secret(url: sa.URL) -> bool:
    """Whether the URL holds a password."""
    return url.password is not None or any("password" in name for name in url.query)
