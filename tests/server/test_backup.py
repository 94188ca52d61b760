"""A server's home is copied while the server runs, and what comes back from the copy is whole."""

import contextlib
import json
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from stat import S_IMODE
from types import ModuleType

import pytest
import sqlalchemy as sa

from fedlora.cli.__main__ import run as fedlora
from fedlora.errors import IdentityError, StoreError
from fedlora.identity.authority import open_authority
from fedlora.identity.home import make_home, open_registry, open_store
from fedlora.identity.keys import certificate_facts, new_key, signing_request
from fedlora.identity.tls import ensure_server_certificate
from fedlora.identity.tokens import secret_digest
from fedlora.server import backup, checkpoint, erase
from fedlora.server.backup import back_up
from fedlora.server.daemon import running
from fedlora.server.dashboard.audit import AuditLog, Note
from fedlora.server.dashboard.credentials import Credentials
from fedlora.server.dashboard.links import Links
from fedlora.server.dashboard.sessions import Sessions
from fedlora.server.dashboard.tokens import AccessTokens
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.restore import restore
from fedlora.server.scrub import ERASED, erasures
from fedlora.server.settings import database_of, read_settings
from fedlora.server.store import RunStore, tables
from tests.postgres import BOTH, POSTGRES, Cluster
from tests.server.traces import LOSS, NAMES, found_in, loads, small_run

Captured = pytest.CaptureFixture[str]
Restore = Callable[[Path], Path]


@pytest.fixture
def home(tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's home; its database is the test's."""
    monkeypatch.delenv("FEDLORA_DATABASE", raising=False)
    if store_url is not None:
        monkeypatch.setenv("FEDLORA_DATABASE", store_url)
    make_home(tmp_path / "home", "tests", ["localhost", "fed.example.org"])
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Iterator[RunStore]:
    with open_store(home) as opened:
        yield opened


@pytest.fixture
def put_back(
    tmp_path: Path, request: pytest.FixtureRequest, store_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Restore]:
    """Restores a copy to a new home, on PostgreSQL in a new database."""
    with contextlib.ExitStack() as stack:

        def made(copy: Path) -> Path:
            new = tmp_path / f"new-{copy.name}"
            if store_url is not None:
                cluster: Cluster = request.getfixturevalue("postgres")
                monkeypatch.setenv("FEDLORA_DATABASE", stack.enter_context(cluster.fresh()))
            restore(copy, new)
            return new

        yield made


def names_in(copy: Path) -> set[str]:
    with tarfile.open(copy) as tar:
        return set(tar.getnames())


@BOTH
def test_what_comes_back_is_what_was_there(
    home: Path, store: RunStore, samples: ModuleType, put_back: Restore, tmp_path: Path
) -> None:
    finished, queued = small_run(store, samples), store.create(samples.config(), name="q", status=RunStatus.QUEUED)
    (finished.folder / "adapter").mkdir()
    (finished.folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (home / "server.yaml").write_text("link: 0.0.0.0:443\n")
    before = {found.id: store.history(found) for found in store.list()}
    done = back_up(home, tmp_path / "copy.tar", keys=True)
    assert (done.runs, done.rounds, done.left_out, done.damaged) == (2, 3, [], [])
    new = put_back(tmp_path / "copy.tar")
    with open_store(new) as opened:
        after = {found.id: opened.history(found) for found in opened.list()}
        assert {key: value.rounds for key, value in after.items()} == {
            key: value.rounds for key, value in before.items()
        }
        assert opened.get(finished.id).folder == new / "runs" / finished.id
        assert (opened.get(queued.id).status, opened.get(queued.id).config) == (RunStatus.QUEUED, queued.config)
    assert samples.tree(new / "runs" / finished.id) == {
        name: data
        for name, data in samples.tree(finished.folder).items()
        if not name.startswith("incoming") and name != ".lock"
    }
    assert (new / "server.yaml").read_text() == "link: 0.0.0.0:443\n"
    for name in ("ca/ca.key", "ca/ca.crt", "server.key", "server.crt"):
        assert (new / name).read_bytes() == (home / name).read_bytes()
    assert not ensure_server_certificate(new, open_authority(new / "ca"), ["localhost", "fed.example.org"])


@BOTH
def test_a_server_starts_in_a_restored_home(
    home: Path, store: RunStore, samples: ModuleType, put_back: Restore, tmp_path: Path
) -> None:
    """And goes on with the run that was under way."""
    info = small_run(store, samples, status=RunStatus.RUNNING)
    back_up(home, tmp_path / "copy.tar", keys=True)
    new = put_back(tmp_path / "copy.tar")
    (new / "server.yaml").write_text("link: 127.0.0.1:0\nenrolment: null\noperator: 127.0.0.1:0\n")
    with running(new, read_settings(new), database=database_of(new)) as server:
        found = server.queue.next()
        assert found is not None
        assert (found.id, found.folder, found.rounds_done) == (info.id, new / "runs" / info.id, 2)
        assert fedlora(["run", "ls", "--home", str(new)]) == 0
    assert certificate_facts((new / "server.crt").read_bytes()).hosts == ("localhost", "fed.example.org", "127.0.0.1")


@BOTH
def test_modes_are_for_nobody_else(
    home: Path, store: RunStore, samples: ModuleType, put_back: Restore, tmp_path: Path
) -> None:
    small_run(store, samples)
    back_up(home, tmp_path / "copy.tar", keys=True)
    assert S_IMODE((tmp_path / "copy.tar").stat().st_mode) == 0o600
    new = put_back(tmp_path / "copy.tar")
    modes: dict[bool, set[int]] = {True: set(), False: set()}
    for path in (new, *new.rglob("*")):
        modes[path.is_dir()].add(S_IMODE(path.stat().st_mode))
    assert modes == {True: {0o700}, False: {0o600}}
    assert sorted(path.name for path in new.iterdir()) == ["ca", "runs", "server.crt", "server.key"]


def test_keys_are_copied_only_on_purpose(home: Path, store: RunStore, tmp_path: Path, capsys: Captured) -> None:
    for name in ("receipt.key", "operator.token", "operator.json"):
        (home / name).write_text("secret")
    assert fedlora(["server", "backup", "--home", str(home), "--out", str(tmp_path / "plain.tar")]) == 0
    assert "no keys are in it" in capsys.readouterr().err
    assert names_in(tmp_path / "plain.tar") == {"ca/ca.crt", "server.crt", "runs/fedlora.db", "backup.json"}
    assert fedlora(["server", "backup", "--home", str(home), "--out", str(tmp_path / "all.tar"), "--with-keys"]) == 0
    assert "no keys" not in capsys.readouterr().err
    keys = {"ca/ca.key", "server.key", "receipt.key"}
    assert names_in(tmp_path / "all.tar") == names_in(tmp_path / "plain.tar") | keys
    assert fedlora(["server", "restore", "--from", str(tmp_path / "plain.tar"), "--home", str(tmp_path / "new")]) == 0
    assert "put ca/ca.key and receipt.key back" in capsys.readouterr().err
    with pytest.raises(IdentityError, match=r"there is no key in .*ca\.key"):
        open_authority(tmp_path / "new" / "ca")
    shutil.copy(home / "ca" / "ca.key", tmp_path / "new" / "ca")
    hosts = certificate_facts((tmp_path / "new" / "server.crt").read_bytes()).hosts
    assert hosts == ("localhost", "fed.example.org")  # a certificate for them is made with the new key
    assert ensure_server_certificate(tmp_path / "new", open_authority(tmp_path / "new" / "ca"), hosts)


def test_a_password_in_the_settings_is_a_key_too(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "server.yaml").write_text("# mine\ndatabase: postgresql://me:geheim@127.0.0.1:1/db\nlink: 0.0.0.0:443\n")
    monkeypatch.setenv("FEDLORA_DATABASE", f"sqlite:///{home / 'runs' / 'fedlora.db'}")
    done = back_up(home, tmp_path / "plain.tar")
    assert done.left_out == ["`database` in server.yaml, which holds a password"]
    assert b"geheim" not in (tmp_path / "plain.tar").read_bytes()
    assert b"link: 0.0.0.0:443" in (tmp_path / "plain.tar").read_bytes()
    back_up(home, tmp_path / "all.tar", keys=True)
    assert (home / "server.yaml").read_bytes() in (tmp_path / "all.tar").read_bytes()


@BOTH
def test_a_copy_made_while_rounds_are_committed_can_be_loaded(
    home: Path, store: RunStore, samples: ModuleType, put_back: Restore, tmp_path: Path
) -> None:
    """Whatever is under way: what the copy's database counts is there, and nothing else."""
    runs = [store.create(samples.config(), name=str(number)) for number in range(2)]
    ended = threading.Event()

    def train(info: RunInfo) -> None:
        number = 0
        while not ended.is_set():
            checkpoint.commit(store, info, samples.checkpoint(number))
            number += 1

    threads = [threading.Thread(target=train, args=(info,)) for info in runs]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            while any((store.last_round(info) or 0) < 2 * number for info in runs):
                pass
            back_up(home, tmp_path / f"{number}.tar")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    for number in range(4):
        new = put_back(tmp_path / f"{number}.tar")
        with open_store(new) as opened:
            for info in opened.list():
                last = opened.last_round(info)
                assert loads(info.folder) == list(range(0 if last is None else last + 1))
                assert [path.name for path in (info.folder / "checkpoints").glob(".*")] == []
                if number == 3:  # and the run goes on from there
                    point = checkpoint.last_committed(opened, info)
                    assert point is not None
                    samples.assert_same(point, samples.checkpoint(last))
                    checkpoint.commit(opened, info, samples.checkpoint(point.round + 1))
                    assert loads(info.folder)[-1] == point.round + 1


def test_what_does_not_count_is_left_out(home: Path, store: RunStore, samples: ModuleType, tmp_path: Path) -> None:
    info = small_run(store, samples, status=RunStatus.RUNNING)
    checkpoint.save(info.folder, samples.checkpoint(3))  # a crash came before its row
    (info.folder / "checkpoints" / ".round-0004.tmp").mkdir()
    (info.folder / "checkpoints" / ".round-0004.tmp" / "adapter.safetensors").write_bytes(b"half")
    (info.folder / "adapter").mkdir()  # of a run that is not finished
    (info.folder / "adapter" / "half").write_bytes(b"half")
    (info.folder / "ledgers" / "client-00000").mkdir(parents=True)
    (info.folder / "ledgers" / "client-00000" / "journal.jsonl").write_bytes(b"{}")
    (info.folder / "receipt.key").write_bytes(b"secret")
    (home / "runs" / ".submitted").mkdir()
    (home / "runs" / ".submitted" / ("a" * 64)).write_text(info.id)
    back_up(home, tmp_path / "copy.tar")
    of_run = {name.removeprefix(f"runs/{info.id}/") for name in names_in(tmp_path / "copy.tar") if info.id in name}
    rounds = {name for name in of_run if name.startswith("checkpoints/")}
    assert of_run - rounds == {"config.json", "events.jsonl", "fixed.safetensors"}
    assert {name.split("/")[1] for name in rounds} == {"round-0000", "round-0001", "round-0002"}
    assert f"runs/.submitted/{'a' * 64}" in names_in(tmp_path / "copy.tar")
    assert b"an update" not in (tmp_path / "copy.tar").read_bytes()


def test_links_are_not_followed(home: Path, store: RunStore, samples: ModuleType, tmp_path: Path) -> None:
    info = small_run(store, samples)
    (tmp_path / "private").write_text("geheim")
    (info.folder / "events.jsonl").unlink()
    (info.folder / "events.jsonl").symlink_to(tmp_path / "private")
    done = back_up(home, tmp_path / "copy.tar")
    assert done.left_out == [f"{info.folder / 'events.jsonl'}, a link"]
    assert b"geheim" not in (tmp_path / "copy.tar").read_bytes()


def test_a_run_whose_folder_is_elsewhere(home: Path, store: RunStore, samples: ModuleType, tmp_path: Path) -> None:
    info = store.create(samples.config(), name="n", folder=tmp_path / "elsewhere")
    done = back_up(home, tmp_path / "copy.tar")
    assert done.left_out == [f"run {info.id}: its folder {tmp_path / 'elsewhere'} is elsewhere"]
    assert done.runs == 0


@pytest.mark.parametrize("harm", ["changed", "gone", "no list", "no folder"])
def test_a_damaged_checkpoint_is_told(
    home: Path, store: RunStore, samples: ModuleType, tmp_path: Path, harm: str
) -> None:
    """The copy is made all the same: the rest of it is good."""
    info = small_run(store, samples)
    place = checkpoint.round_folder(info.folder, 1)
    if harm == "changed":
        (place / "adapter.safetensors").write_bytes(b"x")
    elif harm == "gone":
        (place / "adapter.safetensors").unlink()
    elif harm == "no list":
        (place / "complete.json").unlink()
    else:
        shutil.rmtree(info.folder)
    told = "the folder .* is gone" if harm == "no folder" else f"round 1 of run {info.id}: .* missing or damaged"
    with pytest.raises(StoreError, match=f"the copy is in .*copy.tar, but not all of it is good: {told}"):
        back_up(home, tmp_path / "copy.tar")
    restore(tmp_path / "copy.tar", tmp_path / "new")


def test_a_copy_is_never_written_over(home: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.tar").write_text("older")
    with pytest.raises(StoreError, match=r"copy\.tar is there already"):
        back_up(home, tmp_path / "copy.tar")
    with pytest.raises(StoreError, match=r"cannot write to .*nowhere"):
        back_up(home, tmp_path / "nowhere" / "copy.tar")
    assert (tmp_path / "copy.tar").read_text() == "older"


def test_a_failed_copy_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise StoreError("the disk is full")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(backup.Writer, "finish", fails)
    with pytest.raises(StoreError, match="full"):
        back_up(home, tmp_path / "out" / "copy.tar")
    assert list((tmp_path / "out").iterdir()) == []


def test_only_a_servers_home_is_copied(tmp_path: Path, store: RunStore) -> None:
    with pytest.raises(IdentityError, match="is no server's home"):
        back_up(tmp_path, tmp_path / "copy.tar")


@BOTH
def test_an_older_copy_lets_nobody_in_who_should_not_be(
    home: Path, put_back: Restore, tmp_path: Path, capsys: Captured
) -> None:
    authority = open_authority(home / "ca")

    def certified(registry: object, name: str) -> str:
        facts = certificate_facts(authority.sign_client(signing_request(new_key(), name), name))
        assert registry.redeem(registry.invite(name, again=True)) == name
        registry.record_certificate(name, facts)
        registry.admit(name, facts.sha256)
        return facts.sha256

    with open_registry(home) as registry:
        early = certified(registry, "early")
        token = registry.invite("guest")
        back_up(home, tmp_path / "copy.tar", keys=True)
        late, renewed = certified(registry, "late"), certified(registry, "early")
        registry.redeem(token)
    with open_registry(put_back(tmp_path / "copy.tar")) as registry:
        registry.admit("early", early)
        with pytest.raises(IdentityError, match=r"not on record here: .* restored from an older copy; join anew"):
            registry.admit("early", renewed)
        with pytest.raises(IdentityError, match="no client 'late' is registered"):
            registry.admit("late", late)
        with pytest.raises(IdentityError, match="this token cannot be used"):
            registry.redeem(token)


@BOTH
def test_nobody_has_access_after_a_restore(
    home: Path, store: RunStore, samples: ModuleType, put_back: Restore, tmp_path: Path
) -> None:
    """Who had it when the copy was made may have lost it since. What was done stays on record."""
    info = small_run(store, samples)
    tokens, links = AccessTokens(store.database), Links(store.database)
    secrets = [tokens.add("anna", "admin"), links.add(info.id, "site-0").secret]
    sessions = Sessions(store.database, Credentials(store.database))
    values = [sessions.begin(secret_digest(secret)) for secret in secrets]
    AuditLog(store.database).write(Note("add access", "10.0.0.1", object="access token anna"))
    back_up(home, tmp_path / "copy.tar", keys=True)
    tokens.remove("anna")
    with open_store(put_back(tmp_path / "copy.tar")) as opened:
        known = Credentials(opened.database)
        assert [known.take(secret) for secret in secrets] == [None, None]
        assert [Sessions(opened.database, known).find(value) for value in values] == [None, None]
        assert (AccessTokens(opened.database).all(), Links(opened.database).all()) == ((), ())
        with opened.database.reads() as connection:
            assert connection.execute(sa.select(tables.dashboard_sessions)).all() == []
        assert [entry.object for entry in AuditLog(opened.database).entries()] == ["access token anna"]
        assert AccessTokens(opened.database).add("anna", "admin")


@BOTH
def test_a_name_that_was_erased_while_the_copy_was_made_stays_so(
    home: Path,
    store: RunStore,
    samples: ModuleType,
    put_back: Restore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the database was copied, and before the files were."""
    small_run(store, samples)
    with open_registry(home) as registry:
        for name in NAMES:
            registry.invite(name)
        AuditLog(store.database).write(Note("revoke client", "", object="client site-0", reason="Dr. Zebra"))
        AuditLog(store.database).write(Note("revoke client", "", object="client site-1"))
        dump = backup.dump

        def dumped(*given: object) -> object:
            found = dump(*given)
            erase.erase_client(store, registry, "site-0", leave=True)
            return found

        monkeypatch.setattr(backup, "dump", dumped)
        back_up(home, tmp_path / "copy.tar", keys=True)
    with open_store(put_back(tmp_path / "copy.tar")) as opened:
        told = [(entry.object, entry.reason) for entry in AuditLog(opened.database).entries()]
    assert told == [("client site-1", ""), ("client (erased)", "")]


def test_the_operator_is_told_what_a_restore_means(
    home: Path, store: RunStore, tmp_path: Path, capsys: Captured
) -> None:
    with open_registry(home) as registry:
        registry.invite("guest")
    AccessTokens(store.database).add("anna", "admin")
    back_up(home, tmp_path / "copy.tar", keys=True)
    assert fedlora(["server", "restore", "--from", str(tmp_path / "copy.tar"), "--home", str(tmp_path / "new")]) == 0
    said = capsys.readouterr()
    assert "restored 0 runs with 0 committed rounds" in said.out
    for words in (
        "1 open tokens were withdrawn",
        "1 access tokens and links of the dashboard",
        "not on record",
        "revoke them again",
        "erase it again",
        "old server",
    ):
        assert words in said.err
    assert "put ca/ca.key" not in said.err


@pytest.mark.parametrize("when", ["before", "between", "meanwhile"])
def test_what_was_erased_when_the_copy_was_made_stays_so(
    home: Path, store: RunStore, samples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Also if it was erased after the database was copied and before the files were, or while they were."""
    info = small_run(store, samples)
    with open_registry(home) as registry:
        for name in NAMES:
            registry.invite(name)
        forget = partial(erase.erase_client, store, registry, "site-0", leave=False)
        if when == "before":
            forget()
        else:
            place, name = (backup, "dump") if when == "between" else (backup._Copying, "_round")
            step = getattr(place, name)
            monkeypatch.setattr(place, name, lambda *given: (step(*given), forget())[0])
        back_up(home, tmp_path / "copy.tar")
    restore(tmp_path / "copy.tar", tmp_path / "new")
    with open_store(tmp_path / "new") as opened:
        assert not erasures(opened.get(info.id).folder).complete
        erase.finish_erasures(opened)
        for record in opened.history(info).rounds:
            assert all(row.reason == ERASED for row in record.roster if row.client == 0)
        assert found_in(opened.get(info.id).folder, {LOSS}) == set()
        assert loads(opened.get(info.id).folder) == [0, 1, 2]


def test_a_copy_of_an_older_fedlora_is_brought_up_to_date(home: Path, tmp_path: Path) -> None:
    with sqlite3.connect(home / "runs" / "fedlora.db") as connection:
        found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in found - {"runs", "rounds", "roster", "alembic_version"}:
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    back_up(home, tmp_path / "copy.tar")
    with tarfile.open(tmp_path / "copy.tar") as tar:
        assert json.load(tar.extractfile("backup.json"))["revision"] == "0001"  # copying upgrades nothing
    restore(tmp_path / "copy.tar", tmp_path / "new")
    with open_registry(tmp_path / "new") as registry:
        assert registry.clients() == ()


@POSTGRES
def test_the_password_is_no_argument_of_a_program(
    home: Path, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of a host can read those."""
    real = shutil.which("pg_dump")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pg_dump").write_text(
        f'#!/bin/sh\necho "$@" > {tools}/said\necho "$PGPASSWORD" > {tools}/secret\nexec {real} "$@"\n'
    )
    (tools / "pg_dump").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    guarded = sa.make_url(store_url).set(password="geh eim")  # noqa: S106 - the test's server asks for none
    monkeypatch.setenv("FEDLORA_DATABASE", guarded.render_as_string(hide_password=False))
    back_up(home, tmp_path / "copy.tar")
    assert (tools / "secret").read_text() == "geh eim\n"
    assert "--dbname=" in (tools / "said").read_text()
    assert "eim" not in (tools / "said").read_text()


@POSTGRES
def test_without_the_programs_of_postgresql(
    home: Path, postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(home, tmp_path / "copy.tar")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match=r"there is no `pg_dump` on the PATH.*postgresql-client"):
        back_up(home, tmp_path / "other.tar")
    with postgres.fresh() as url, monkeypatch.context() as patch:
        patch.setenv("FEDLORA_DATABASE", url)
        with pytest.raises(StoreError, match="there is no `pg_restore` on the PATH"):
            restore(tmp_path / "copy.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@POSTGRES
def test_a_program_that_fails_says_why(
    home: Path, tmp_path: Path, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pg_dump").write_text("#!/bin/sh\necho 'server version: 99; aborting' >&2\nexit 1\n")
    (tmp_path / "pg_dump").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=":")
        with pytest.raises(StoreError, match=r"`pg_dump` failed .* server version: 99; aborting; .*not older than"):
            back_up(home, tmp_path / "copy.tar")
    assert not (tmp_path / "copy.tar").exists()


@POSTGRES
def test_only_an_empty_database_is_filled(
    home: Path, store: RunStore, samples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = store.create(samples.config(), name="n")
    back_up(home, tmp_path / "copy.tar")
    with pytest.raises(StoreError, match=r"is not empty .* a copy is restored into a new one"):
        restore(tmp_path / "copy.tar", tmp_path / "new")
    assert [found.id for found in store.list()] == [info.id]
    monkeypatch.delenv("FEDLORA_DATABASE")
    with pytest.raises(StoreError, match="the copy is of a PostgreSQL database: set FEDLORA_DATABASE"):
        restore(tmp_path / "copy.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_copy_of_sqlite_is_not_put_beside_another_database(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(home, tmp_path / "copy.tar")
    monkeypatch.setenv("FEDLORA_DATABASE", "postgresql://me@127.0.0.1:1/db")
    with pytest.raises(StoreError, match=r"the copy is of an SQLite database .* unset it"):
        restore(tmp_path / "copy.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()
