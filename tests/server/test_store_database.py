import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedlora.errors import StoreError
from fedlora.server.records import RunInfo
from fedlora.server.store import RunStore, database
from fedlora.server.store.run_store import sqlite_url
from fedlora.server.store.tables import metadata
from tests.postgres import BOTH


def engine(folder: Path, url: str | None) -> sa.Engine:
    return sa.create_engine(sqlite_url(folder) if url is None else url, poolclass=sa.NullPool)


def schema(folder: Path, url: str | None) -> dict[str, str]:
    """Each table's name → the columns, keys and indices that it has."""
    looked = sa.inspect(engine(folder, url))
    asked = (looked.get_columns, looked.get_pk_constraint, looked.get_foreign_keys, looked.get_indexes)
    return {name: repr([ask(name) for ask in asked]) for name in looked.get_table_names()}


def run_sql(folder: Path, url: str | None, sql: str) -> None:
    with engine(folder, url).begin() as connection:
        connection.exec_driver_sql(sql)


@BOTH
def test_the_migrations_make_the_tables_of_the_code(store: RunStore) -> None:
    with store._database.reads() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


@BOTH
def test_opening_again_changes_nothing(tmp_path: Path, store_url: str | None) -> None:
    RunStore.open(tmp_path, url=store_url).close()
    before = schema(tmp_path, store_url)
    RunStore.open(tmp_path, url=store_url).close()
    assert schema(tmp_path, store_url) == before
    assert before.keys() == {"alembic_version", *metadata.tables}


@BOTH
def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path, store_url: str | None) -> None:
    script = (
        "import sys, pathlib, fedlora.server.store as store\n"
        "store.RunStore.open(pathlib.Path(sys.argv[1]), url=sys.argv[2] or None)"
    )
    # Of one database: on PostgreSQL they may be on several hosts, where no lock in a folder holds.
    folders = [tmp_path / (str(number) if store_url else "one") for number in range(4)]
    commands = [[sys.executable, "-c", script, str(folder), store_url or ""] for folder in folders]
    starting = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [(process.communicate()[1], process.returncode) for process in starting] == [("", 0)] * 4


@BOTH
def test_a_newer_database_is_refused(tmp_path: Path, store_url: str | None) -> None:
    RunStore.open(tmp_path, url=store_url).close()
    run_sql(tmp_path, store_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"has revision '9999'.*written by a newer fedlora"):
        RunStore.open(tmp_path, url=store_url)


@BOTH
def test_a_foreign_database_is_refused(tmp_path: Path, store_url: str | None) -> None:
    run_sql(tmp_path, store_url, "CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(StoreError, match=r"has tables \(invoices\) but is no run store"):
        RunStore.open(tmp_path, url=store_url)
    assert list(schema(tmp_path, store_url)) == ["invoices"]


@BOTH
def test_a_migration_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = database.command.upgrade

    def breaks(*args: object) -> None:
        upgrade(*args)
        raise StoreError("broken half way")

    monkeypatch.setattr(database.command, "upgrade", breaks)
    with pytest.raises(StoreError, match="broken half way"):
        RunStore.open(tmp_path, url=store_url)
    assert schema(tmp_path, store_url) == {}
    monkeypatch.undo()
    RunStore.open(tmp_path, url=store_url).close()


def test_the_pragmas_are_in_force(store: RunStore) -> None:
    with store._database.reads() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "busy_timeout": 5000, "synchronous": 2, "foreign_keys": 1}


def test_no_database_is_made_where_none_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run store in"):
        RunStore.open(tmp_path / "typo", create=False)
    assert not (tmp_path / "typo").exists()


def test_a_database_url_can_be_given(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "folders", url=f"sqlite:///{tmp_path / 'elsewhere.db'}") as store:
        assert list(store.list()) == []
    assert (tmp_path / "elsewhere.db").is_file()
    assert not (tmp_path / "folders" / "fedlora.db").exists()


@pytest.mark.parametrize("url", ["nonsense", "oracle7://host/db", "mysql://user:geheim@host/db", "postgresql+psy://h"])
def test_a_bad_url_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=re.escape(url.split(":")[0])) as caught:
        RunStore.open(tmp_path, url=url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//user:geheim@host/db",
        "postgresql://user:x@host:geheim/db",
        "user:geheim@host",
        "geheim@host",
        "postgresql+psycopg//geheim@host",
        "",
    ],
)
def test_no_part_of_a_bad_url_that_could_be_a_password_is_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=r"the database's URL \(.*\) is none: give one such as") as caught:
        RunStore.open(tmp_path, url=url)
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "fedlora.db").write_text("my notes, quite a few of them " * 100)
    with pytest.raises(StoreError, match=r"fedlora\.db.*move it away .*restore a backup"):
        RunStore.open(tmp_path)


def test_a_damaged_database(tmp_path: Path) -> None:
    RunStore.open(tmp_path).close()
    path = tmp_path / "fedlora.db"
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    with pytest.raises(StoreError, match=r"fedlora\.db.*restore a backup"), RunStore.open(tmp_path) as store:
        store.list()


def test_a_file_in_the_place_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("x")
    with pytest.raises(StoreError, match=r"cannot make the store's folder .*/runs: .*a file stands where"):
        RunStore.open(tmp_path / "runs")


@BOTH
def test_a_writer_that_does_not_end(
    store: RunStore, store_url: str | None, run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for a while, then say so; they can read all the time."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.05)
    monkeypatch.setattr(database, "_PRAGMAS", ("busy_timeout = 50", *database._PRAGMAS[1:]))
    with RunStore.open(store.folder, url=store_url) as other:
        with store._database.writes():
            with pytest.raises(StoreError, match="another process has been writing for"), other._database.writes():
                pytest.fail("two write at the same time")
            assert [found.id for found in other.list()] == [run.id]
        other.mark_running(run)


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    """Without write permission: for opening a store, and for making a run in one."""
    script = (
        "import sys; from pathlib import Path; from fedlora.errors import StoreError\n"
        "from fedlora.server.store import RunStore\n"
        "try:\n    RunStore.open(Path(sys.argv[1]))\nexcept StoreError as error:\n    sys.stdout.write(str(error))"
    )
    folder = tmp_path / "runs"
    RunStore.open(folder).close()
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        ended = subprocess.run(
            [*_without_privilege(), sys.executable, "-c", script, str(folder)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        folder.chmod(0o755)
    assert ended.returncode == 0, ended.stderr
    assert str(folder) in ended.stdout
    assert "write permission" in ended.stdout


def _without_privilege() -> list[str]:
    """For root, whom no permission stops: the same user without the right to pass by them."""
    if os.geteuid() != 0:
        return []
    tool = shutil.which("setpriv")
    drop = [str(tool), "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    if tool is None or subprocess.run([*drop, "true"], capture_output=True).returncode != 0:
        pytest.skip("root may write everywhere here, and setpriv cannot take that right away")
    return drop
