"""What is PostgreSQL's own: writers on several hosts, lost connections, a server that goes away, passwords."""

import logging
import re
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import ModuleType

import pytest
import sqlalchemy as sa

from fedlora.errors import StoreError
from fedlora.server.records import RunInfo
from fedlora.server.store import RunStore, database
from tests.postgres import GUARDED, POSTGRES, Cluster

PASSWORD = "geh:eim/@?%20"  # noqa: S105 - of a test's user
Kill = Callable[[], int]


@pytest.fixture
def kill(postgres: Cluster, store_url: str) -> Kill:
    """Ends all connections to the test's database, as an operator or a network can; gives how many there were."""
    database_of_test = sa.make_url(store_url).database
    ours = f"datname = '{database_of_test}' AND pid <> pg_backend_pid()"
    return lambda: len(postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}"))  # noqa: S608


@pytest.fixture
def guarded(postgres: Cluster) -> Iterator[str]:
    """The URL of an empty database whose owner needs a password, and is no superuser."""
    name = f"guarded_{secrets.token_hex(4)}"
    postgres.run(f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{PASSWORD}'")
    postgres.run(f"CREATE DATABASE {name} OWNER {GUARDED}")
    yield postgres.url(name, username=GUARDED, password=PASSWORD)
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")
    postgres.run(f"DROP ROLE {GUARDED}")


def everything(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@POSTGRES
def test_of_many_hosts_that_commit_one_round_one_wins(
    store: RunStore, store_url: str, run: RunInfo, samples: ModuleType, tmp_path: Path, postgres: Cluster
) -> None:
    """Whatever isolation the database has by default: in a stricter one they would look at the past."""
    postgres.run(f"ALTER DATABASE {sa.make_url(store_url).database} SET default_transaction_isolation = 'serializable'")
    rounds, hosts = 6, 4
    start = Barrier(hosts)

    def commit(host: int) -> list[object]:
        said: list[object] = []
        with RunStore.open(tmp_path / f"host-{host}", url=store_url) as mine:
            for number in range(rounds):
                start.wait()
                try:
                    mine.commit_round(run, samples.record(number))
                    said.append(number)
                except StoreError as error:
                    said.append(re.sub(r" of run .*", "", str(error)))
        return said

    with ThreadPoolExecutor(hosts) as pool:
        found = list(pool.map(commit, range(hosts)))
    for number in range(rounds):
        assert sorted(map(str, (said[number] for said in found))) == [
            str(number),
            *[f"cannot commit round {number}"] * (hosts - 1),
        ]
    assert [record.round for record in store.history(run).rounds] == list(range(rounds))


@POSTGRES
def test_a_killed_process_lets_others_write(store: RunStore, store_url: str, run: RunInfo, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fedlora.server.store import RunStore\n"
        "with RunStore.open(Path(sys.argv[1]), url=sys.argv[2]).database.writes():\n"
        "    print('writing', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "other"), store_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
        store.mark_running(run)


@POSTGRES
@pytest.mark.parametrize("when", ["before the next statement", "before the commit"])
def test_a_connection_that_ends_in_a_transaction(
    store: RunStore, run: RunInfo, samples: ModuleType, kill: Kill, when: str
) -> None:

    def write() -> None:
        with store._database.writes() as connection:
            connection.execute(sa.text("UPDATE runs SET name = 'half'"))
            assert kill() >= 1
            if when == "before the next statement":
                connection.execute(sa.text("UPDATE runs SET reason = 'half'"))

    with pytest.raises(StoreError, match="connection was lost"):
        write()
    assert store.get(run.id) == run
    assert store.commit_round(run, samples.record(0)).round == 0


@POSTGRES
def test_connections_that_ended_while_nobody_looked(store: RunStore, run: RunInfo, kill: Kill) -> None:
    store.mark_running(run)
    assert kill() >= 1
    assert [found.id for found in store.list()] == [run.id]
    assert kill() >= 1
    store.mark_running(run)


@POSTGRES
def test_a_server_that_starts_again(store: RunStore, run: RunInfo, samples: ModuleType, postgres: Cluster) -> None:
    store.commit_round(run, samples.record(0))
    postgres.halt()
    try:
        for ask in (store.list, lambda: store.commit_round(run, samples.record(1))):
            with pytest.raises(StoreError, match=r"check that its server runs and lets you in.*FEDLORA_DATABASE"):
                ask()
    finally:
        postgres.start()
    assert store.last_round(run) == 0
    assert store.commit_round(run, samples.record(1)).round == 1


@POSTGRES
def test_a_url_without_a_driver_is_enough(store_url: str, tmp_path: Path) -> None:
    for scheme in ("postgresql", "postgres"):
        with RunStore.open(tmp_path, url=store_url.replace("postgresql+psycopg", scheme)) as store:
            assert store.list() == ()


def test_a_password_opens_the_database_and_is_told_nowhere(
    guarded: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, postgres: Cluster
) -> None:
    caplog.set_level(logging.DEBUG)
    with RunStore.open(tmp_path, url=guarded) as store:
        assert store.list() == ()
        with pytest.raises(StoreError) as broken, store.database.reads() as connection:
            connection.execute(sa.text("SELECT nothing"))
    said = [everything(broken.value), caplog.text]
    name = sa.make_url(guarded).database
    in_query = sa.make_url(postgres.url("x")).set(username=None, query={"user": GUARDED, "password": f"{PASSWORD}x"})
    for wrong in (
        postgres.url(str(name), username=GUARDED, password=f"{PASSWORD}x"),
        in_query.render_as_string(hide_password=False),
        postgres.url("nowhere", password=f"{PASSWORD}x"),
        postgres.url("x", password=f"{PASSWORD}x", host="127.0.0.2"),
    ):
        with pytest.raises(StoreError, match="check that its server runs and lets you in") as caught:
            RunStore.open(tmp_path, url=wrong)
        said += [everything(caught.value), caplog.text]
    with RunStore.open(tmp_path, url=guarded) as store:
        said.append(repr(store.database.__dict__))
    for text in said:
        assert PASSWORD not in text
        assert "geh%3Aeim" not in text


@POSTGRES
@pytest.mark.parametrize(
    ("how", "remedy"),
    [
        (
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC; ALTER SCHEMA public OWNER TO fedlora",
            "make it the database's owner",
        ),
        ("ALTER ROLE guarded SET default_transaction_read_only = on", "name the primary server, not a standby"),
        ("ALTER ROLE guarded CONNECTION LIMIT 0", "check that its server runs and lets you in"),
    ],
)
def test_what_to_do_about_errors(
    guarded: str, postgres: Cluster, tmp_path: Path, how: str, remedy: str, store_url: str
) -> None:
    for sql in how.split("; "):
        postgres.run(sql, str(sa.make_url(guarded).database))
    with pytest.raises(StoreError, match=remedy):
        RunStore.open(tmp_path, url=guarded)


@POSTGRES
def test_errors_do_not_repeat_what_was_written(store: RunStore, run: RunInfo) -> None:
    """Personal data and digests of tokens would stand in logs."""
    with pytest.raises(StoreError) as caught, store._database.writes() as connection:
        connection.execute(sa.text("INSERT INTO tokens (digest, client) VALUES (:d, 'x')"), {"d": "geheim"})
    assert re.search('null value in column "created_at" .* violates not-null constraint', str(caught.value))
    assert "geheim" not in str(caught.value)


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"its driver is missing .* pip install 'fedlora\[postgres\]'"):
        RunStore.open(tmp_path, url="postgresql://user:geheim@host/db")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """It says so soon; a port of the loopback on which nobody listens."""
    pytest.importorskip("psycopg")
    secret = secrets.token_hex(8)
    with pytest.raises(StoreError, match=r"postgresql://me@127\.0\.0\.1:1/db.*check that its server runs") as caught:
        RunStore.open(tmp_path, url=f"postgresql://me:{secret}@127.0.0.1:1/db")
    assert secret not in everything(caught.value)
    assert "\n" not in str(caught.value)
    assert database.BUSY_TIMEOUT == 5.0
