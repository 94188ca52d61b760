"""A PostgreSQL server for the tests, and for each test a database of its own.

`store_url` is None (SQLite) unless a test asks for both: `@BOTH`. The server starts with the first test that needs it,
once a session (with pytest-xdist: once a worker), on a free port of the loopback and a socket in a temporary folder.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

REQUIRED = "FEDLORA_REQUIRE_POSTGRES"
"""With this at 1 in the environment a test that has no PostgreSQL fails; else it is skipped."""

USER = "fedlora"
GUARDED = "guarded"
"""The one user who needs a password, and is no superuser; a test that needs it makes it."""

BOTH = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
"""Runs a test, or with `pytestmark` a module's tests, once with each database; they all use `store_url`."""

POSTGRES = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
"""Runs a test with PostgreSQL alone."""

_SETTINGS = {
    "fsync": "off",  # a power cut may take what tests write
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
    "log_min_messages": "fatal",
}


class Cluster:
    """A running server. It trusts whoever connects, but GUARDED; what is in it goes with it."""

    def __init__(self, programs: Path) -> None:
        self._programs, self._process = programs, None
        self.folder = Path(tempfile.mkdtemp(prefix="fedlora-postgres-"))
        self.port = _free_port()
        self.data = self.folder / "data"
        if os.geteuid() == 0:  # as whom it refuses to run
            shutil.chown(self.folder, "postgres", "postgres")
        try:
            self._make()
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = {**_SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [*_as_its_user(), str(self._programs / "postgres"), "-D", str(self.data), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def halt(self) -> None:
        """Ends the server, and connections with it; what is in it stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)
            self._process = None

    def stop(self) -> None:
        """Ends the server for good."""
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str, **changes: str) -> str:
        """The URL of the database `name`; a test's server asks for no password, so that any will do."""
        url = sa.URL.create("postgresql+psycopg", USER, None, "127.0.0.1", self.port, name)
        return url.set(**changes).render_as_string(hide_password=False)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a new, empty database, which goes when the block ends."""
        name = f"test_{secrets.token_hex(8)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, sql: str, name: str = "postgres") -> list[tuple[object, ...]]:
        """Executes one statement in the database `name`; gives its rows."""
        import psycopg

        where = f"host=127.0.0.1 port={self.port} user={USER} dbname={name}"
        with psycopg.connect(where, autocommit=True) as connection:
            found = connection.execute(sql)
            return found.fetchall() if found.description else []

    def _make(self) -> None:
        base = [str(self._programs / "initdb"), "-D", str(self.data), "-U", USER, "--auth=trust", "--encoding=UTF8"]
        # Sorted as in a dictionary, which SQLite does not do: nothing may depend on a database's order of texts.
        tries = (["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US-u-ka-shifted"], ["--locale=C.UTF-8"])
        for how in tries:
            command = [*_as_its_user(), *base, "--no-sync", *how]
            done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"initdb failed: {done.stderr}")
        rules = self.data / "pg_hba.conf"
        rules.write_text(f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")

    def _answers(self) -> bool:
        import psycopg

        try:
            self.run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _as_its_user() -> list[str]:
    """What comes before a command of the server's: not as root, and ended with the tests if they are killed."""
    tool = shutil.which("setpriv")
    if tool is None:
        return [] if os.geteuid() else [shutil.which("runuser") or "runuser", "-u", "postgres", "--"]
    user = [] if os.geteuid() else ["--reuid=postgres", "--regid=postgres", "--init-groups"]
    return [tool, *user, "--pdeathsig=INT", "--"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _programs() -> Path:
    """The folder of the newest PostgreSQL here. Raises LookupError with the reason if there is none to use."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    found = shutil.which("postgres")
    if not folders and found is None:
        raise LookupError("there is no PostgreSQL here: on Debian, apt-get install postgresql")
    try:
        import psycopg  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise LookupError(f"there is no driver for PostgreSQL ({error}): pip install 'fedlora[postgres]'") from error
    if os.geteuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True).returncode != 0:
        raise LookupError("PostgreSQL does not run as root, and there is no user `postgres`")
    newest = sorted(folders, key=lambda folder: int(folder.parent.name))[-1:]
    return newest[0] if newest else Path(str(found)).resolve().parent


_CLUSTER = pytest.StashKey[Cluster]()


def cluster_of(config: pytest.Config) -> Cluster:
    """The session's server, started now if it is not running; skips or fails the test where there can be none."""
    if _CLUSTER not in config.stash:
        try:
            cluster = Cluster(_programs())
        except LookupError as error:
            if os.environ.get(REQUIRED) == "1":
                pytest.fail(f"{REQUIRED} is 1, but {error}")
            pytest.skip(str(error))
        config.stash[_CLUSTER] = cluster
        config.add_cleanup(cluster.stop)
    return config.stash[_CLUSTER]


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Cluster:
    """The session's server."""
    return cluster_of(request.config)


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The database of the test's store: None is SQLite in its folder."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield None
        return
    with cluster_of(request.config).fresh() as url:
        yield url
