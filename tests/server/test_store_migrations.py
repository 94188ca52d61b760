"""Databases of earlier versions come up to date with all that is in them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from fedlora.errors import IdentityError, StoreError
from fedlora.identity.registry import Registry
from fedlora.identity.tokens import new_secret, secret_digest
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunStatus
from fedlora.server.store import RunStore, database
from fedlora.server.store.run_store import sqlite_url
from fedlora.server.store.tables import metadata
from tests.postgres import BOTH

pytestmark = BOTH
RUNS = """INSERT INTO runs (id, name, status, strategy, seed, rounds, rounds_done, folder, created_at, finished_at,
 sweep, summary, config, reason) VALUES
 ('r1', 'näme', 'finished', 'fed_sb', 9223372036854775807, 2, 1, 'r1', '2031-05-06 07:08:09.123456',
 '2031-05-06 08:08:09', 's', '{"test_accuracy": 0.30000000000000004, "x": "nan"}', '{"name": "näme"}', 'why'),
 ('r2', 'n', 'running', 'fedavg', 1, 9, 0, '/elsewhere/r2', '2031-05-07 07:08:09', NULL, NULL, '{}', '{}', '')"""
ROUNDS = """INSERT INTO rounds (run, round, metrics, bytes_up, bytes_down, bytes_once, bytes_up_head, bytes_down_head,
 seconds, committed_at) VALUES
 ('r1', 0, '{}', 0, 0, 0, 0, 0, 0.5, '2031-05-06 07:10:00'),
 ('r1', 1, '{"train_loss": 0.1}', 5000000000, 6, 7, 1, 2, 1.25, '2031-05-06 07:20:00')"""
ROSTER = """INSERT INTO roster (run, round, client, outcome, reason, samples, bytes_up, bytes_down, seconds, metrics)
 VALUES ('r1', 1, 0, 'reported', '', 20, 5000000000, 3, 0.75, '{"loss": "inf"}'),
 ('r1', 1, 4294967296, 'lost', 'no answer', 0, 0, 3, 0.0, '{}')"""


def older(folder: Path, url: str | None, revision: str) -> None:
    """Makes a database as it was at `revision`, with two runs in it."""
    engine = sa.create_engine(sqlite_url(folder) if url is None else url, poolclass=sa.NullPool)
    config = Config()
    config.set_main_option("script_location", "fedlora.server.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for sql in (RUNS, ROUNDS, ROSTER):
            connection.exec_driver_sql(sql)


def test_the_first_revision_comes_up_to_date_with_its_rows(tmp_path: Path, store_url: str | None) -> None:
    older(tmp_path, store_url, "0001")
    with RunStore.open(tmp_path, url=store_url) as store:
        with store.database.reads() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
        second, first = store.list()
        assert (first.name, first.status, first.seed, first.sweep) == ("näme", RunStatus.FINISHED, 2**63 - 1, "s")
        assert (first.folder, second.folder) == (tmp_path / "r1", Path("/elsewhere/r2"))
        assert first.created_at == datetime(2031, 5, 6, 7, 8, 9, 123456, UTC)
        assert first.finished_at == datetime(2031, 5, 6, 8, 8, 9, tzinfo=UTC)
        assert first.summary["test_accuracy"] == 0.1 + 0.2
        assert (first.config, first.reason, second.finished_at) == ('{"name": "näme"}', "why", None)
        none, one = store.history(first).rounds
        assert none == RoundRecord(0, {}, (), seconds=0.5, committed_at=datetime(2031, 5, 6, 7, 10, tzinfo=UTC))
        assert one.metrics == {"train_loss": 0.1}
        assert (one.bytes_up, one.bytes_down, one.bytes_once, one.bytes_up_head, one.bytes_down_head) == (
            *(5_000_000_000, 6, 7),
            *(1, 2),
        )
        assert one.roster == (
            RosterRow(
                0,
                Outcome.REPORTED,
                samples=20,
                bytes_up=5_000_000_000,
                bytes_down=3,
                seconds=0.75,
                metrics={"loss": float("inf")},
            ),
            RosterRow(2**32, Outcome.LOST, "no answer", bytes_down=3),
        )


def test_an_older_store_can_be_used_like_a_new_one(tmp_path: Path, store_url: str | None) -> None:
    """New rows go in, and the keys between the tables are in force."""
    older(tmp_path, store_url, "0001")
    with RunStore.open(tmp_path, url=store_url) as store:
        store.commit_round(store.get("r1"), RoundRecord(2, {}, (RosterRow(1, Outcome.REPORTED),)))
        assert store.discard_after(store.get("r1"), 0).rounds_done == 0
        with store.database.reads() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM roster")).scalar() == 0
        registry = Registry(store.database)
        assert registry.clients() == ()
        assert registry.redeem(registry.invite("clinic-7")) == "clinic-7"


def test_a_token_that_was_used_before_its_key_was_noted_stays_used(tmp_path: Path, store_url: str | None) -> None:
    older(tmp_path, store_url, "0002")
    secret, key = new_secret(), "ab" * 32
    engine = sa.create_engine(sqlite_url(tmp_path) if store_url is None else store_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO clients (name, status, reason, version) VALUES ('c', 'active', '', '')")
        tokens = sa.text(
            "INSERT INTO tokens (digest, client, created_at, expires_at, used_at) VALUES"
            " (:digest, 'c', '2031-05-06 07:08:09', '2931-05-06 07:08:09', '2031-05-06 07:09:00')"
        )
        connection.execute(tokens, {"digest": secret_digest(secret)})
    with RunStore.open(tmp_path, url=store_url) as store:
        for given in (None, key):
            with pytest.raises(IdentityError, match="token cannot be used"):
                Registry(store.database).redeem(secret, key=given)


def test_an_upgrade_that_fails_keeps_the_older_database(
    tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(tmp_path, store_url, "0001")
    upgrade = database.command.upgrade

    def breaks(*args: object) -> None:
        upgrade(*args)
        raise StoreError("broken half way")

    monkeypatch.setattr(database.command, "upgrade", breaks)
    with pytest.raises(StoreError, match="broken half way"):
        RunStore.open(tmp_path, url=store_url)
    opened = database.Database(
        database.urls.parse(store_url) if store_url else sqlite_url(tmp_path), tmp_path, migrate=False
    )
    assert opened.revision() == "0001"
    opened.close()
    monkeypatch.undo()
    with RunStore.open(tmp_path, url=store_url) as store:
        assert len(store.list()) == 2
