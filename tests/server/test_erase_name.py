"""What a client that leaves has erased beside its traces: its collaborators' links, and its name in the audit log."""

from types import ModuleType

import pytest
import sqlalchemy as sa

from fedlora.identity.records import ClientStatus
from fedlora.identity.registry import Registry
from fedlora.identity.tokens import secret_digest
from fedlora.server.dashboard.audit import DONE, FAILED, REFUSED, AuditLog, Note
from fedlora.server.dashboard.credentials import Credentials
from fedlora.server.dashboard.forgetting import without_client
from fedlora.server.dashboard.links import Links
from fedlora.server.dashboard.sessions import Sessions
from fedlora.server.erase import erase_client
from fedlora.server.store import RunStore, tables
from fedlora.server.store.database import Database
from tests.postgres import BOTH
from tests.server.traces import found, registry_of, status_of

NAME = "site-1"
WHY = "Dr. Zebra of the river clinic has lost the laptop"
HOME = "198.51.100.77"
"""What tells who site 1 is."""


@pytest.fixture
def registry(store: RunStore) -> Registry:
    return registry_of(store)


@pytest.fixture
def run_id(store: RunStore, samples: ModuleType) -> str:
    sites = {"clients": 3, "cohort": 2, "rounds": 9, "sites": ("site-0", NAME, "site-11")}
    return str(store.create(samples.config(federation=sites), name="run").id)


def written(database: Database, *notes: Note) -> None:
    for note in notes:
        AuditLog(database).write(note)


def rows(database: Database, *named: sa.Table) -> str:
    """All that is in those tables."""
    with database.reads() as connection:
        return "\n".join(str(tuple(row)) for table in named for row in connection.execute(sa.select(table)))


def objects(database: Database) -> list[tuple[str, str, str]]:
    return [(one.person, one.object, one.reason) for one in reversed(AuditLog(database).entries())]


@BOTH
def test_a_client_that_leaves_is_named_nowhere_in_the_audit_log(
    store: RunStore, registry: Registry, run_id: str
) -> None:
    database = store.database
    links = Links(database)
    own, others = links.add(run_id, NAME, by="anna"), links.add(run_id, "site-11", by="anna")
    sessions = Sessions(database, Credentials(database))
    sessions.begin(secret_digest(own.secret))
    other_session = sessions.begin(secret_digest(others.secret))
    written(
        database,
        Note("enroll client", "10.0.0.1", "anna", "operator", f"client {NAME}", DONE, "for 72 hours"),
        Note("revoke client", "10.0.0.1", "anna", "operator", f"client {NAME}", DONE, WHY),
        Note("add link", "10.0.0.1", "anna", "operator", f"run {run_id}, site {NAME}", DONE, "30 days"),
        Note("login", HOME, NAME, "collaborator"),
        Note("POST /x", HOME, NAME, "collaborator", "POST /x", REFUSED, "403: no"),
        Note("x", "10.0.0.1", "anna", "viewer", f"POST /clients/{NAME}/revoke", REFUSED, "403: no"),
        Note("add link", "10.0.0.1", "anna", "operator", f"run {run_id}", FAILED, f"its sites are site-0, {NAME}, b"),
        Note("revoke client", "10.0.0.1", "anna", "operator", "client site-11", DONE, "not site-111"),
    )
    erase_client(store, registry, NAME, leave=True)
    kept = rows(database, tables.audit, tables.collaborator_links, tables.dashboard_sessions)
    for secret in (f"{NAME}'", f"{NAME} ", f"{NAME},", f"{NAME}/", WHY, HOME):
        assert secret not in kept
    assert objects(database) == [
        ("anna", "client (erased)", ""),
        ("anna", "client (erased)", ""),
        ("anna", f"run {run_id}, site (erased)", ""),
        ("(erased)", "", ""),
        ("(erased)", "POST /x", "403: no"),
        ("anna", "POST /clients/(erased)/revoke", ""),
        ("anna", f"run {run_id}", "its sites are site-0, (erased), b"),
        ("anna", "client site-11", "not site-111"),
        ("", "client (erased)", "at its own request"),
    ]
    last = AuditLog(database).entries(limit=1)[0]
    assert (last.action, last.outcome) == ("erase client", "done")
    assert [link.site for link in links.all()] == ["site-11"]
    assert sessions.find(other_session) is not None
    assert rows(database, tables.dashboard_sessions).count("\n") == 0
    assert Credentials(database).take(own.secret) is None
    assert status_of(registry, NAME) is ClientStatus.REVOKED


def test_nothing_of_it_is_left_in_the_files(store: RunStore, registry: Registry) -> None:
    """Of SQLite's, its log and free pages too."""
    note = Note("revoke client", HOME, NAME, "collaborator", f"client {NAME}", DONE, WHY)
    written(store.database, note)
    wanted = {WHY.encode(), HOME.encode()}
    assert found(store.folder, wanted) != set()
    erase_client(store, registry, NAME, leave=True)
    assert found(store.folder, wanted) == set()


def test_a_client_that_stays_keeps_links_and_name(store: RunStore, registry: Registry, run_id: str) -> None:
    Links(store.database).add(run_id, NAME)
    written(store.database, Note("enroll client", "", object=f"client {NAME}"))
    erase_client(store, registry, NAME, leave=False)
    assert [link.site for link in Links(store.database).all()] == [NAME]
    assert objects(store.database) == [("", f"client {NAME}", "")]


def test_it_may_be_repeated(store: RunStore, registry: Registry) -> None:
    written(store.database, Note("enroll client", "", object=f"client {NAME}"))
    for _ in range(2):
        erase_client(store, registry, NAME, leave=True)
    assert [what for _, what, _ in objects(store.database)] == ["client (erased)"] * 3


@pytest.mark.parametrize(
    "entry",
    [
        {"person": "anna", "role": "operator", "object": "run x", "reason": ""},
        {"person": "x", "role": "admin", "object": "access token anna", "reason": "role anna, 3 days"},
        {"person": "x", "role": "admin", "object": "client anna-2", "reason": "anna-2 xanna"},
        {"person": "anna-2", "role": "collaborator", "object": "run anna", "reason": ""},
    ],
)
def test_nobody_wipes_what_others_of_the_name_did(entry: dict[str, str]) -> None:
    """An operator could enroll a client with the name of a person, and have it erased."""
    assert without_client({**entry, "address": HOME}, "anna") == {}
