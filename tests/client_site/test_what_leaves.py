"""What leaves a site: what its owner allowed, once its ledger and the server's receipt say so, and nothing else."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from fedlora.client import private
from fedlora.client.site import SimulatedSite
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.privacy.ledger import open_ledger
from fedlora.privacy.receipts import Receipt, ServerKey
from fedlora.server import start
from fedlora.server.receipts import KEY, ReceiptBook
from fedlora.server.records import Outcome, RunHistory
from fedlora.simulations.simulate import Watch, run
from fedlora.simulations.virtual import Called, Clients, InProcess, VirtualGrid
from fedlora.wire import SAMPLES, Answer, read_task, write_answer
from fedlora.wire_start import SketchTask, read_work
from tests.client_site.places import METRICS, FileSite, SiteCaller, SiteGrid, dealt_sites, of_sites
from tests.simulations.test_simulate import adapter_of
from tests.tiny import tiny_config

SEEDED = {"name": "dp", "noise_multiplier": 0.8, "rate": 0.3, "noise": "seeded"}
Make = Callable[..., RunConfig]


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    """Two clients of different sizes, both in each of two rounds."""

    def config(**updates: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "store": tmp_path / "simulated",
            "federation": {"clients": 2, "cohort": 2, "rounds": 2},
            "data.partition": {"name": "size_skew", "skew": "linear"},
        }
        return tiny_config(tiny_bert, tiny_text_csv, **(settings | updates))

    return config


def deployed(config: RunConfig, sites: list[FileSite], store: Path) -> RunHistory:
    return run(of_sites(config, store), Watch(), grid=SiteGrid(sites))


def test_metrics_that_are_not_allowed_stay(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make(**{"eval.holdout": 0.2})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    sites[0].allowed = frozenset({"samples", "holdout_accuracy"})
    history = deployed(config, sites, tmp_path / "deployed")
    for record in history.rounds[1:]:
        one, other = record.roster
        assert {row.outcome for row in record.roster} == {Outcome.REPORTED}
        assert set(one.metrics) == {"holdout_accuracy"}
        assert one.seconds == 0
        assert one.samples > 1
        assert set(other.metrics) == METRICS - {"samples", "seconds"}
    lines = [json.loads(line) for line in (sites[0].folder / "results.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert {"rows", "loss", "first_loss", "holdout_loss", "holdout_accuracy"} <= set(lines[0])
    assert (sites[0].folder / "results.jsonl").stat().st_mode & 0o777 == 0o600


def test_where_one_owner_keeps_the_count_of_rows_all_updates_count_alike(
    make: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    sites = dealt_sites(make(), tiny_bert, tmp_path)
    by_rows = deployed(make(), sites, tmp_path / "by-rows")
    uniform = deployed(make(**{"federation.weighting": "uniform"}), sites, tmp_path / "uniform")
    sites[0].allowed = METRICS - {"samples"}
    withheld = deployed(make(), sites, tmp_path / "withheld")
    assert adapter_of(withheld) == adapter_of(uniform) != adapter_of(by_rows)
    for record, known in zip(withheld.rounds[1:], by_rows.rounds[1:], strict=True):
        assert record.roster[0].samples == 1
        assert record.roster[1].samples == known.roster[1].samples > 1
        losses = [row.metrics["loss"] for row in record.roster]
        assert record.metrics["train_loss"] == pytest.approx(sum(losses) / 2)


def test_a_count_that_is_kept_is_not_in_the_answer(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    sites = dealt_sites(make(), tiny_bert, tmp_path)
    sites[0].allowed = frozenset()
    answers: list[Message] = []

    def note(reply: Message) -> Message:
        answers.append(reply)
        return reply

    grid = SiteGrid(sites)
    grid._caller = SiteCaller(sites, note)
    run(of_sites(make(), tmp_path / "deployed"), Watch(), grid=grid)
    kept, told = answers[:2]
    assert dict(kept.content["metrics"]) == {SAMPLES: 1}
    assert kept.content["answer"]["samples-withheld"] is True
    assert int(str(told.content["metrics"][SAMPLES])) > 1
    assert "samples-withheld" not in told.content["answer"]


def test_noised_metrics_stay_too(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make(privacy=SEEDED, eval={"where": "clients", "holdout": 0.3})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    sites[0].allowed = frozenset({"holdout_units"})
    sites[1].allowed = frozenset({"holdout_units", "holdout_correct"})
    history = deployed(config, sites, tmp_path / "deployed")
    for record in history.rounds[1:]:
        assert [set(row.metrics) for row in record.roster] == [{"holdout_units"}, {"holdout_units", "holdout_correct"}]
    own = [json.loads(line) for line in (sites[0].folder / "results.jsonl").read_text().splitlines()]
    assert set(own[0]) == {"run", "round", "units", "accuracy"}


def test_receipts_count_only_under_the_pinned_key(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    """A ledger is compared with what the one trusted server signed; another's word, or an edited one, stops it."""
    config = make(privacy=SEEDED, **{"federation.rounds": 3})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    history = deployed(config, sites, tmp_path / "first")
    own = ServerKey.load_or_create(history.run.folder / KEY).public
    sites[0].receipt_key = "ab" * 32
    later = deployed(config, sites, tmp_path / "second")
    outcomes = [record.roster[0].outcome for record in later.rounds[1:]]
    assert outcomes[0] is Outcome.REPORTED  # there is no receipt yet
    assert outcomes[-1] is Outcome.FAILED
    assert {record.roster[1].outcome for record in later.rounds[1:]} == {Outcome.REPORTED}
    assert "private training failed" in later.rounds[-1].roster[0].reason
    receipts = [Receipt.from_json(work.receipt) for work in sites[1].seen if work.receipt]
    assert {receipt.key for receipt in receipts} >= {own}
    with open_ledger(sites[0].folder / "ledger") as ledger:
        assert ledger.runs[later.run.id].participated() == outcomes.count(Outcome.REPORTED)


def test_what_the_server_no_longer_takes_is_not_spent(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make(privacy=SEEDED)
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    sites[1].open = lambda work: False
    history = deployed(config, sites, tmp_path / "deployed")
    assert {row.outcome for record in history.rounds[1:] for row in record.roster if row.client == 1} == {
        Outcome.DECLINED
    }
    with open_ledger(sites[1].folder / "ledger") as ledger:
        assert ledger.runs[history.run.id].participated() == 0


def test_of_an_error_at_a_private_site_nothing_is_told(
    make: Make, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(privacy=SEEDED)
    sites = dealt_sites(config, tiny_bert, tmp_path)  # without ledgers
    with pytest.raises(RunError) as caught:
        deployed(config, sites, tmp_path / "one")
    assert "private training failed" in str(caught.value)
    assert "ledger" not in str(caught.value)

    def failing(*args: Any) -> Any:
        raise ValueError("the text of row 7 is: secret")

    monkeypatch.setattr(private, "agreed_worker", failing)
    for site in sites:
        site.open_ledger()
    with pytest.raises(RunError) as caught:
        deployed(config, sites, tmp_path / "two")
    assert "secret" not in str(caught.value)


def test_before_round_1_receipt_deadline_and_common_facts_are_sent(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make(strategy={"name": "fed_sb", "init": "private"}, privacy=SEEDED, **{"federation.timeout": 1000.0})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    history = deployed(config, sites, tmp_path / "deployed")
    assert [row.outcome for row in history.rounds[0].roster] == [Outcome.REPORTED] * 2
    first = sites[0].seen[0]
    assert isinstance(first, SketchTask)
    assert first.deadline is not None
    assert (first.round, first.receipt, first.labels) == (0, "", ("animal", "food", "tool"))
    assert len(first.base_digest) == len(first.tokenizer_digest) == 64
    trained = next(work for work in sites[0].seen if work.round and work.receipt)
    receipt = Receipt.from_json(trained.receipt)  # for what was released before round 1
    with open_ledger(sites[0].folder / "ledger") as ledger:
        assert receipt.ledger == ledger.identity
        assert 0 < receipt.length < ledger.head.length


def test_a_receipt_that_comes_with_a_sketch_task_is_read(
    make: Make, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has seen more of a ledger than the ledger holds: nothing is spent on such a copy."""
    config = make(strategy={"name": "fed_sb", "init": "private"}, privacy=SEEDED)
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    with open_ledger(sites[0].folder / "ledger") as ledger:
        head = replace(ledger.head, length=ledger.head.length + 7)
        newer = ServerKey.load_or_create(tmp_path / "key").sign(ledger.identity, head).to_json()
    monkeypatch.setattr(ReceiptBook, "newest", lambda book, client: newer if client == 0 else "")
    history = deployed(config, sites, tmp_path / "deployed")
    assert [row.outcome for row in history.rounds[0].roster] == [Outcome.FAILED, Outcome.REPORTED]
    assert sites[0].seen[0].receipt == newer


def test_whoever_answers_first_before_round_1_the_bits_are_the_same(
    make: Make, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(strategy={"name": "fed_sb", "init": "private"}, privacy=SEEDED, **{"federation.rounds": 1})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites:
        site.open_ledger()
    asked: list[list[int]] = []
    real = start.ask_for_sketches

    def noting(*args: Any) -> Any:
        mean, record = real(*args)
        asked.append([row.client for row in record.roster])
        return mean, record

    class Turned(SiteGrid):
        def ask(self, messages: Any, timeout: float | None = None) -> Any:
            replies = super().ask(messages, timeout)
            return lambda: list(replies())[::-1]

    monkeypatch.setattr(start, "ask_for_sketches", noting)
    straight = run(of_sites(config, tmp_path / "one"), Watch(), grid=SiteGrid(sites))
    turned = run(of_sites(config, tmp_path / "two"), Watch(), grid=Turned(sites))
    assert asked == [[0, 1], [0, 1]]
    assert adapter_of(turned) == adapter_of(straight)


def test_a_virtual_client_hides_nothing_and_pins_nothing(make: Make) -> None:
    site = SimulatedSite()
    assert site.metrics_allowed("anything")
    assert site.receipt_key is None
    assert write_answer(Answer("run", 1, 0, {}, 5, {}))["answer"].get("samples-withheld") is None


def test_a_task_is_read_from_its_facts_alone(make: Make, tmp_path: Path) -> None:
    seen: list[Message] = []

    class Noting:
        def call(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Future[Sequence[Called]]:
            seen.extend(messages)
            return InProcess(Clients(make_nothing())).call(messages, contexts)

    with pytest.raises(RunError):
        run(make(), Watch(), grid=VirtualGrid(Noting(), 2))
    content = seen[0].content
    whole = read_task(content)
    del content["arrays"]
    assert read_work(content) == replace(whole, tensors={}, once=None)


def make_nothing() -> Any:
    def app(message: Message, context: Context) -> Message:
        raise ValueError("nothing")

    return app
