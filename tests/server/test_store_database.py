import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedlora.errors import StoreError
from fedlora.server.store import RunStore
from fedlora.server.store.tables import metadata


def schema(folder: Path) -> list[tuple[str]]:
    connection = sqlite3.connect(folder / "fedlora.db")
    try:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    finally:
        connection.close()


def run_sql(folder: Path, sql: str) -> None:
    connection = sqlite3.connect(folder / "fedlora.db")
    with connection:
        connection.execute(sql)
    connection.close()


def test_the_migrations_make_the_tables_of_the_code(store: RunStore) -> None:
    with store._database.reads() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    RunStore.open(tmp_path).close()
    before = schema(tmp_path)
    RunStore.open(tmp_path).close()
    assert schema(tmp_path) == before
    assert {"runs", "rounds", "roster", "alembic_version"} <= {row[0] for row in before}


def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    script = "import sys, pathlib, fedlora.server.store as store; store.RunStore.open(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    starting = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in starting] == [("", 0)] * 4


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    RunStore.open(tmp_path).close()
    run_sql(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"fedlora\.db has revision '9999'.*written by a newer fedlora"):
        RunStore.open(tmp_path)


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    run_sql(tmp_path, "CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(StoreError, match=r"has tables \(invoices\) but is no run store"):
        RunStore.open(tmp_path)
    assert [name for name, _ in schema(tmp_path)] == ["invoices"]


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlora.server.store import database

    upgrade = database.command.upgrade

    def breaks(*args: object) -> None:
        upgrade(*args)
        raise StoreError("broken half way")

    monkeypatch.setattr(database.command, "upgrade", breaks)
    with pytest.raises(StoreError, match="broken half way"):
        RunStore.open(tmp_path)
    assert schema(tmp_path) == []
    monkeypatch.undo()
    RunStore.open(tmp_path).close()


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


@pytest.mark.parametrize("url", ["nonsense", "oracle7://host/db"])
def test_a_bad_url_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=url.split(":")[0]):
        RunStore.open(tmp_path, url=url)


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


def test_a_writer_that_does_not_end(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fedlora.server.store.database._PRAGMAS", ("busy_timeout = 50", "journal_mode = WAL", "foreign_keys = ON")
    )
    with RunStore.open(store.folder) as other, store._database.writes():
        with pytest.raises(StoreError, match="another process has been writing for over 5 s"), other._database.writes():
            pytest.fail("two write at the same time")
        assert list(other.list()) == []


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
