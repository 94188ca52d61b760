"""A site's traces of a real run, before and after it asked to erase them."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedlora.config.schema import RunConfig
from fedlora.identity.records import ClientStatus
from fedlora.link.v1.link_pb2 import ErasedRun
from fedlora.server import checkpoint
from fedlora.server.erase import erase_client, finish_erasures
from fedlora.server.events import (
    FILE,
    ClientReported,
    Event,
    RoundCommitted,
    read_events,
)
from fedlora.server.records import Outcome, RosterRow, RunHistory, RunStatus
from fedlora.server.scrub import ERASED, Erasures, erasures
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resume, run
from tests.client_site.places import FileSite, SiteGrid, dealt_sites, of_sites
from tests.server.traces import (
    NAMES,
    found,
    is_blank,
    lines,
    loads,
    registry_of,
    rows_of,
    status_of,
    traces,
)
from tests.simulations.test_simulate import adapter_of, stopping_after
from tests.tiny import tiny_config

ROUNDS = 3


@dataclass(frozen=True)
class Federation:
    """A store with one run of three sites, and the sites."""

    folder: Path
    sites: list[FileSite]
    history: RunHistory

    def copy(self, to: Path) -> RunStore:
        shutil.copytree(self.folder, to)
        return RunStore.open(to)


@pytest.fixture(scope="module")
def federation(tiny_bert: Path, tiny_text_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Every site reports in every round, and measures on rows of its own."""
    folder = tmp_path_factory.mktemp("federation")
    plain = tiny_config(
        tiny_bert,
        tiny_text_csv,
        federation={"clients": 3, "cohort": 3, "rounds": ROUNDS},
        **{"data.partition": {"name": "size_skew", "skew": "linear"}, "eval.holdout": 0.2},
    )
    sites = dealt_sites(plain, tiny_bert, folder)
    history = run(of_sites(plain, folder / "runs"), Watch(), grid=SiteGrid(sites))
    assert history.run.status is RunStatus.FINISHED
    return Federation(folder / "runs", sites, history)


@pytest.fixture
def living(federation: Federation, tmp_path: Path) -> Iterator[RunStore]:
    with federation.copy(tmp_path / "runs") as store:
        yield store


def test_the_search_finds_what_is_there(federation: Federation) -> None:
    """Or the tests below would prove nothing: each site's figures are in the database, a checkpoint and the events."""
    for client in range(3):
        seen = found(federation.folder, traces(rows_of(federation.history, client)))
        places = {name.rpartition("/")[2] for name, _ in seen}
        assert {"dump", FILE, "roster.json"} <= places
        assert places & {"fedlora.db", "fedlora.db-wal"}


@pytest.mark.parametrize("leave", [False, True])
def test_nothing_of_a_site_is_left(federation: Federation, living: RunStore, leave: bool) -> None:
    before, info = federation.history, living.find("latest")
    registry, log = registry_of(living), lines(info.folder)
    others = {client: found(living.folder, traces(rows_of(before, client))) for client in (0, 2)}
    reply = erase_client(living, registry, "site-1", leave=leave)
    assert list(reply.runs) == [ErasedRun(run=info.id, rounds=[1, 2, 3], restart_after=0)]
    assert found(living.folder, traces(rows_of(before, 1))) == set()
    assert status_of(registry, "site-1") is (ClientStatus.REVOKED if leave else ClientStatus.INVITED)

    after = living.history(info)
    assert all(is_blank(row) for row in rows_of(after, 1))
    assert [row.outcome for row in rows_of(after, 1)] == [Outcome.REPORTED] * ROUNDS
    for client in (0, 2):
        assert rows_of(after, client) == rows_of(before, client)
        left = found(living.folder, traces(rows_of(before, client)))
        assert {hit for hit in left if not hit[0].startswith(("fedlora.db", "dump"))} == {
            hit for hit in others[client] if not hit[0].startswith(("fedlora.db", "dump"))
        }
    assert [replace(r, roster=()) for r in after.rounds] == [replace(r, roster=()) for r in before.rounds]
    assert after.run == replace(before.run, folder=info.folder)

    assert loads(info.folder) == list(range(ROUNDS + 1))
    for number in range(ROUNDS + 1):
        assert checkpoint.load(info.folder, number).record.roster == after.rounds[number].roster
        assert checkpoint.load(info.folder, number).record.metrics == after.rounds[number].metrics
    assert (info.folder / "report.html").stat().st_size > 10_000
    check_lines(info.folder, log, 1)


def check_lines(folder: Path, before: list[bytes], client: int) -> None:
    """Every line is as before and where it was; those of the client are spaces."""
    after = lines(folder)
    for old, new in zip(before, after, strict=True):
        row = json.loads(old).get("row", {}) if old.strip() else {}
        assert new == (b" " * len(old) if row.get("client") == client else old)
    assert sum(line.isspace() for line in after) == ROUNDS
    clients = {event.row.client for event in read_events(folder / FILE) if isinstance(event, ClientReported)}
    assert clients == {0, 1, 2} - {client}


def test_it_can_be_repeated(living: RunStore) -> None:
    info, registry = living.find("latest"), registry_of(living)
    first = erase_client(living, registry, "site-1", leave=False)
    assert erasures(info.folder).complete
    tree = {path: path.read_bytes() for path in info.folder.rglob("*") if path.is_file() and path.name != "report.html"}
    assert erase_client(living, registry, "site-1", leave=True) == first
    assert erase_client(living, registry, "site-1", leave=True) == first
    assert {path: path.read_bytes() for path in tree if path.name != "erased.json"} == {
        path: data for path, data in tree.items() if path.name != "erased.json"
    }
    assert erasures(info.folder) == Erasures({1: None}, complete=True)


def test_all_sites_one_after_another(federation: Federation, living: RunStore) -> None:
    registry = registry_of(living)
    for name in NAMES:
        erase_client(living, registry, name, leave=False)
    rows = [row for client in range(3) for row in rows_of(federation.history, client)]
    assert found(living.folder, traces(rows)) == set()
    assert loads(living.find("latest").folder) == list(range(ROUNDS + 1))


def test_what_resumes_after_an_erasure_has_the_same_bits(federation: Federation, tmp_path: Path) -> None:
    """A run that was stopped, with what a crash leaves of a round, and an erasure; then on to the end."""
    config = of_sites(RunConfig.model_validate_json(federation.history.run.config), tmp_path / "runs")
    stopped = run(config, stopping_after(2), grid=SiteGrid(federation.sites))
    assert stopped.run.rounds_done == 2
    with RunStore.open(tmp_path / "runs") as store:
        info = store.discard_after(stopped.run, 1)  # as if its process had died before the row of round 2
        draft = info.folder / "checkpoints" / ".round-0003.tmp"
        shutil.copytree(info.folder / "checkpoints" / "round-0002", draft)
        assert erase_client(store, registry_of(store), "site-1", leave=False).runs[0].rounds == [1]
        assert not draft.exists()
        assert loads(info.folder) == [0, 1, 2]
        assert found(store.folder, traces(rows_of(stopped, 1))) == set()
        resumed = resume(store, info, Watch(), grid=SiteGrid(federation.sites))
    assert resumed.run.status is RunStatus.FINISHED
    assert adapter_of(resumed) == adapter_of(federation.history)
    # Of round 2 something was there when the site asked, so nothing is kept of it when it is run again.
    assert [row.reason for row in rows_of(resumed, 1)] == [ERASED, ERASED, ""]


@pytest.mark.parametrize("leave", [False, True])
def test_a_run_under_way_does_not_bring_it_back(federation: Federation, tmp_path: Path, leave: bool) -> None:
    """Site 1 erases when its second update is in memory, told of, and not committed; the run goes on to its end."""
    seen: list[RosterRow] = []

    def listen(event: Event) -> None:
        if isinstance(event, ClientReported) and event.row.client == 1:
            seen.append(event.row)
            if event.round == 2:
                with RunStore.open(tmp_path / "runs") as store:
                    erase_client(store, registry_of(store), "site-1", leave=leave)

    config = of_sites(RunConfig.model_validate_json(federation.history.run.config), tmp_path / "runs")
    config = config.model_copy(update={"federation": config.federation.model_copy(update={"rounds": 4})})
    history = run(config, Watch((listen,)), grid=SiteGrid(federation.sites))
    assert history.run.status is RunStatus.FINISHED
    assert len(seen) == 4
    gone = 4 if leave else 3  # two rounds after the last committed one
    assert [is_blank(row) for row in rows_of(history, 1)] == [number <= gone for number in range(1, 5)]
    assert found(tmp_path / "runs", traces(seen[:gone])) == set()
    assert loads(history.run.folder) == [0, 1, 2, 3, 4]
    told = [e.round for e in read_events(history.run.folder / FILE) if isinstance(e, RoundCommitted)]
    assert told == [0, 1, 2, 3, 4]
    with RunStore.open(tmp_path / "runs") as store:
        assert not erasures(history.run.folder).complete
        finish_erasures(store)
        assert erasures(history.run.folder).complete
