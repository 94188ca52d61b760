"""Buffered rounds with real clients: their own files and ledgers, one of them slow."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedlora.client.app import make_app
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.flower_internals import stamp
from fedlora.privacy.account import ROSTER, read_account
from fedlora.privacy.ledger import open_ledger
from fedlora.privacy.schedule import run_epsilon
from fedlora.server import clock
from fedlora.server.checkpoint import load
from fedlora.server.committing import at_work
from fedlora.server.participation import participation
from fedlora.server.records import Outcome, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resume, run
from tests.client_site.places import FileSite, dealt_sites, of_sites
from tests.server.scripted import BareGrid
from tests.simulations.test_simulate import stopping_after
from tests.tiny import tiny_config

SLOW = 2
"""The node of the slow client: client 0."""

Make = Callable[..., RunConfig]


class Unhurried(BareGrid):
    """Sites in this process. Client 0's answers are there only after so many answers of others."""

    keeps_ledgers = True

    def __init__(self, sites: list[FileSite], others: int) -> None:
        super().__init__(len(sites))
        self.apps = [make_app(site) for site in sites]
        self.states = [RecordDict() for _ in sites]
        self.others, self.seen = others, 0
        self._replies: dict[str, tuple[Message, int]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id, node = stamp(message), message.metadata.dst_node_id
        context = Context(run_id=1, node_id=node, node_config={}, state=self.states[node - 2], run_config={})
        reply = self.apps[node - 2](message, context)
        stamp(reply)
        self.states[node - 2] = context.state
        self._replies[message_id] = (reply, self.seen + self.others if node == SLOW else 0)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [i for i in message_ids if i in self._replies and self._replies[i][1] <= self.seen]
        replies = [self._replies.pop(i)[0] for i in ready]
        self.seen += sum(reply.metadata.src_node_id != SLOW for reply in replies)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LOOK", 0.0)


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    def config(**updates: Any) -> RunConfig:
        federation = {"clients": 4, "cohort": 4, "rounds": 5, "buffered": True, "buffer": 3}
        return tiny_config(tiny_bert, tiny_text_csv, store=tmp_path / "runs", federation=federation, **updates)

    return config


@pytest.mark.parametrize("method", ["fedavg", "ffa_lora", "fed_sb"])
def test_a_late_update_counts_and_everybody_is_named(make: Make, tiny_bert: Path, tmp_path: Path, method: str) -> None:
    config = make(strategy={"name": method})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    history = run(of_sites(config, tmp_path / "runs"), Watch(), grid=Unhurried(sites, 6))
    assert history.run.status is RunStatus.FINISHED
    late = [row for record in history.rounds for row in record.roster if row.client == 0]
    assert {row.outcome for row in late} <= {Outcome.REPORTED, Outcome.LATE}
    assert max(row.metrics["staleness"] for row in late if row.outcome is Outcome.REPORTED) >= 1
    shares = participation(history)
    assert [share.asked for share in shares] == [
        sum(row.client == client for record in history.rounds for row in record.roster) for client in range(4)
    ]
    assert all(0 < share.counted <= share.asked for share in shares)


def test_ledgers_count_what_the_roster_does_and_no_round_twice(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make(privacy={"name": "dp", "epsilon": 8.0, "rate": 0.3})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    history = run(of_sites(config, tmp_path / "runs"), Watch(), grid=Unhurried(sites, 6))
    rows = [row for record in history.rounds for row in record.roster]
    times = {client: sum(row.client == client for row in rows) for client in range(4)}
    assert times[0] < min(times[client] for client in (1, 2, 3)) <= 5
    for client, site in enumerate(sites):
        with open_ledger(site.folder / "ledger") as ledger:
            assert ledger.runs[history.run.id].participated() == times[client]
    settled = RunConfig.model_validate_json(history.run.config)
    assert all(run_epsilon(settled, count) <= 8.0 * (1 + 1e-6) for count in times.values())
    account = read_account(history.run.folder)
    assert account is not None
    assert account.basis == ROSTER
    assert {client: site["rounds"] for client, site in account.sites.items()} == times


def test_a_stopped_run_goes_on_with_what_was_open(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make()
    sites = dealt_sites(config, tiny_bert, tmp_path)
    deployed = of_sites(config, tmp_path / "runs")
    run(deployed, stopping_after(2), grid=Unhurried(sites, 10**6))
    with RunStore.open(deployed.store) as store:
        info = store.find("latest")
        done = store.last_round(info)
        assert done is not None
        assert at_work(load(info.folder, done)) == {0: 1}
        history = resume(store, info, Watch(), grid=Unhurried(sites, 1))
    assert history.run.status is RunStatus.FINISHED
    counted = [(record, row) for record in history.rounds for row in record.roster if row.client == 0]
    record, row = counted[0]
    assert record.round - row.metrics["staleness"] == 1
    assert record.round > done


def test_virtual_clients_are_never_late(make: Make) -> None:
    with pytest.raises(ConfigError, match="neither slow nor fast"):
        run(make(), Watch())
