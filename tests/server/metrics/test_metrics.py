"""What Prometheus reads: every family, whom it tells of, how much it costs, and what it must not tell."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from fedlora.config.schema import RunConfig
from fedlora.identity.records import ClientRecord, ClientStatus
from fedlora.server.metrics import cached, make_metrics
from fedlora.server.metrics.collector import MOST_FIGURES, LinkState, ServerCollector
from fedlora.server.metrics.families import FAMILIES, MAX_LABEL, Sheet
from fedlora.server.metrics.reading import MOST_RUNS
from fedlora.server.metrics.spent import Epsilon, Spent
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunInfo, RunStatus
from fedlora.server.store import RunStore, tables

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Found = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def client(name: str, status: ClientStatus = ClientStatus.ACTIVE, **more: Any) -> ClientRecord:
    plain = {
        "reason": "",
        "certificate": "ab" * 32,
        "certificate_expires": NOW + timedelta(days=30),
        "invitation_expires": None,
        "enrolled_at": NOW,
        "last_seen": NOW - timedelta(minutes=5),
        "version": "0.1.0",
    }
    return ClientRecord(**{"name": name, "status": status, **plain, **more})


def parsed(text: bytes) -> Found:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(found: Found, name: str, /, **labels: str) -> float | None:
    return found.get((f"fedlora_{name}", frozenset(labels.items())))


def about(found: Found, name: str) -> list[dict[str, str]]:
    return [dict(labels) for key, labels in found if key == f"fedlora_{name}"]


class Scene:
    """A store, clients and a link, and what is scraped of them; nothing is kept between scrapes."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.clients: list[ClientRecord] = []
        self.link = LinkState()
        self.asked: list[tuple[str, int]] = []
        self.epsilon = Epsilon({"released": 1.5}, {"released": 3.0})
        collector = ServerCollector(
            store, lambda: self.clients, lambda: self.link, Spent(self._work), clock=NOW.timestamp
        )
        self._text = cached(collector, fresh=0)

    def _work(self, run: str, rounds: int) -> Epsilon:
        self.asked.append((run, rounds))
        return self.epsilon

    def scrape(self) -> Found:
        return parsed(self._text())

    def until(self, true: Callable[[Found], bool]) -> Found:
        ends = time.monotonic() + 10
        while not true(found := self.scrape()):
            assert time.monotonic() < ends
            time.sleep(0.01)
        return found


@pytest.fixture
def scene(store: RunStore) -> Scene:
    return Scene(store)


def of_sites(samples: ModuleType, privacy: str = "none", **changes: Any) -> RunConfig:
    noise = {} if privacy == "none" else {"noise_multiplier": 1.0}
    federation = {"clients": 3, "cohort": 3, "rounds": 5, "sites": ("ward-1", "ward-2", "ward-3")}
    found: RunConfig = samples.config(federation=federation, privacy={"name": privacy, **noise}, **changes)
    return found


def played(store: RunStore, samples: ModuleType, config: RunConfig, rounds: int = 2, **more: Any) -> RunInfo:
    run = store.create(config, **{"name": "first", **more})
    for number in range(rounds + 1):
        store.commit_round(run, samples.record(number))
    return store.get(run.id)


def test_without_anything_there_are_the_servers_own(scene: Scene) -> None:
    found = scene.scrape()
    assert {value(found, "runs", status=status) for status in RunStatus} == {0}
    assert value(found, "queue_length") == 0
    assert value(found, "build_info", version="0.1.0") == 1
    assert not about(found, "run_info")
    assert found["process_resident_memory_bytes", frozenset()] > 1e6


def test_a_run(scene: Scene, samples: ModuleType) -> None:
    run = played(scene.store, samples, of_sites(samples))
    scene.store.create(samples.config(), name="waits", status=RunStatus.QUEUED)
    found, this = scene.scrape(), {"run": run.id, "strategy": "fed_sb"}
    assert value(found, "runs", status="running") == value(found, "queue_length") == 1
    assert value(found, "run_info", **this, name="first", status="running", privacy="none") == 1
    assert (value(found, "run_round", **this), value(found, "run_rounds", **this)) == (2, 5)
    assert value(found, "run_last_round_seconds", **this) == 1.5
    assert value(found, "run_metric", **this, metric="validation_accuracy") == 0.52
    committed = value(found, "run_last_commit_timestamp_seconds", **this)
    assert committed is not None
    assert abs(committed - time.time()) < 60
    assert value(found, "run_updates_total", **this, outcome="reported") == 2
    assert value(found, "run_updates_total", **this, outcome="rejected") == 2
    assert value(found, "run_updates_total", **this, outcome="lost") == 0
    assert [value(found, "run_bytes_total", **this, direction=to) for to in ("up", "down", "once")] == [400, 800, 14]
    assert not about(found, "run_epsilon")


def test_a_run_that_has_committed_nothing(scene: Scene, samples: ModuleType) -> None:
    run = scene.store.create(samples.config(), name="new")
    found, this = scene.scrape(), {"run": run.id, "strategy": "fed_sb"}
    assert value(found, "run_rounds", **this) == 5
    assert value(found, "run_round", **this) is None
    assert not about(found, "run_metric")


def test_numbers_that_are_not_finite(scene: Scene, samples: ModuleType) -> None:
    run = scene.store.create(samples.config(), name="wild")
    wild = {"train_loss": float("nan"), "validation_loss": float("inf")}
    scene.store.commit_round(run, RoundRecord(0, wild, ()))
    found, this = scene.scrape(), {"run": run.id, "strategy": "fed_sb"}
    loss = value(found, "run_metric", **this, metric="train_loss")
    assert loss != loss
    assert value(found, "run_metric", **this, metric="validation_loss") == float("inf")


def test_clients(scene: Scene, samples: ModuleType) -> None:
    played(scene.store, samples, of_sites(samples))
    scene.clients = [
        client("ward-1"),
        client("ward-2", last_seen=None),
        client("new", ClientStatus.INVITED, certificate_expires=None),
        client("gone", ClientStatus.REVOKED),
    ]
    scene.link = LinkState({"ward-2": True})
    found = scene.scrape()
    assert value(found, "clients", status="active") == 2
    assert value(found, "clients", status="invited") == value(found, "clients", status="revoked") == 1
    assert {labels["client"] for labels in about(found, "client_connected")} == {"ward-1", "ward-2"}
    assert value(found, "client_connected", client="ward-1") == 0
    assert value(found, "client_connected", client="ward-2") == value(found, "client_paused", client="ward-2") == 1
    assert value(found, "client_last_seen_timestamp_seconds", client="ward-1") == NOW.timestamp() - 300
    assert value(found, "client_last_seen_timestamp_seconds", client="ward-2") == NOW.timestamp()
    expiry = value(found, "client_certificate_expiry_timestamp_seconds", client="ward-1")
    assert expiry == (NOW + timedelta(days=30)).timestamp()
    assert value(found, "client_updates_total", client="ward-1", outcome="reported") == 2
    assert value(found, "client_updates_total", client="ward-2", outcome="rejected") == 2
    assert value(found, "client_bytes_total", client="ward-1", direction="up") == 200
    assert value(found, "link_connected_clients") == 1


def test_open_works(scene: Scene, samples: ModuleType) -> None:
    run = played(scene.store, samples, of_sites(samples))
    scene.link = LinkState(works={run.id: 2, "unknown": 5})
    assert value(scene.scrape(), "link_open_works") == 2


def test_under_central_dp_nothing_tells_who_took_part(scene: Scene, samples: ModuleType) -> None:
    run = played(scene.store, samples, of_sites(samples, "central"))
    scene.clients = [client("ward-1")]
    scene.link = LinkState({"ward-1": False}, {run.id: 2})
    found = scene.until(lambda found: bool(about(found, "run_epsilon")))
    told = {name for name, labels in found if ("run", run.id) in labels}
    assert told == {
        f"fedlora_run_{name}"
        for name in ("info", "round", "rounds", "last_commit_timestamp_seconds", "metric", "epsilon", "epsilon_limit")
    }
    assert value(found, "link_open_works") == 0
    assert {value(found, "client_updates_total", client="ward-1", outcome=outcome) for outcome in Outcome} == {0}
    assert value(found, "client_bytes_total", client="ward-1", direction="up") == 0
    assert scene.asked == [(run.id, 2)]


def test_epsilon_is_found_beside_the_scrapes(scene: Scene, samples: ModuleType) -> None:
    run = scene.store.create(of_sites(samples, "dp"), name="private")
    this = {"run": run.id, "strategy": "fed_sb", "view": "released"}
    for number in range(3):
        rows = [RosterRow(0, Outcome.DECLINED, "no"), RosterRow(1, Outcome.FAILED, "x"), RosterRow(2, Outcome.REPORTED)]
        roster = rows[: number + 1] if number else ()
        scene.store.commit_round(run, RoundRecord(number, {}, roster))
    found = scene.until(lambda found: value(found, "run_epsilon", **this) is not None)
    assert (value(found, "run_epsilon", **this), value(found, "run_epsilon_limit", **this)) == (1.5, 3.0)
    scene.scrape()
    assert scene.asked == [(run.id, 2)]  # client 1 was asked twice and never declined; it is worked out once
    scene.epsilon = Epsilon({"released": 2.0}, {"released": 3.0})
    scene.store.commit_round(run, RoundRecord(3, {}, (RosterRow(1, Outcome.LOST, "x"),)))
    scene.until(lambda found: value(found, "run_epsilon", **this) == 2.0)


def test_an_epsilon_that_cannot_be_had_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Event()

    def work(run: str, rounds: int) -> Epsilon:
        tried.set()
        raise ValueError("no accountant")

    spent = Spent(work)
    assert spent.of("a", 1) == Epsilon()
    assert tried.wait(10)
    ends = time.monotonic() + 10
    while "no accountant" not in caplog.text and time.monotonic() < ends:
        time.sleep(0.01)
    assert caplog.text.count("no accountant") == 1
    assert spent.of("a", 1) == Epsilon()


def test_only_so_many_runs_have_metrics_of_their_own(scene: Scene, samples: ModuleType) -> None:
    ended = []
    for number in range(MOST_RUNS + 2):
        run = scene.store.create(samples.config(), name="old", run_id=f"old-{number}")
        ended.append(scene.store.finish(run, RunStatus.FINISHED))
    running = scene.store.create(samples.config(), name="now")
    found = scene.scrape()
    assert value(found, "runs", status="finished") == MOST_RUNS + 2
    shown = {labels["run"] for labels in about(found, "run_info")}
    assert shown == {running.id, *(run.id for run in ended[-(MOST_RUNS - 1) :])}


def test_only_so_many_figures_of_a_round_the_servers_own_first(scene: Scene, samples: ModuleType) -> None:
    run = scene.store.create(samples.config(), name="many")
    figures = {f"clients_{number}": 1.0 for number in range(500)} | {"validation_accuracy": 0.5}
    scene.store.commit_round(run, RoundRecord(0, figures, ()))
    shown = [labels["metric"] for labels in about(scene.scrape(), "run_metric")]
    assert len(shown) == MOST_FIGURES
    assert "validation_accuracy" in shown


def test_counters_count_new_rounds_and_do_not_fall(scene: Scene, samples: ModuleType) -> None:
    run = played(scene.store, samples, of_sites(samples))
    scene.clients = [client("ward-1")]

    def reported() -> tuple[float | None, float | None]:
        found, this = scene.scrape(), {"run": run.id, "strategy": "fed_sb", "outcome": "reported"}
        return (
            value(found, "run_updates_total", **this),
            value(found, "client_updates_total", client="ward-1", outcome="reported"),
        )

    assert reported() == (2, 2)
    scene.store.commit_round(run, samples.record(3))
    assert reported() == (3, 3)
    with scene.store.database.writes() as connection:  # as `keep_rosters_days` does
        connection.execute(sa.delete(tables.roster))
    assert reported() == (3, 3)
    scene.store.discard_after(run, 1)
    assert reported() == (3, 3)
    scene.store.commit_round(run, samples.record(2))
    assert reported() == (4, 4)


def test_what_it_asks_of_the_database_does_not_grow(scene: Scene, samples: ModuleType) -> None:
    played(scene.store, samples, of_sites(samples))
    scene.clients = [client("ward-1")]
    asked: list[str] = []
    engine = scene.store.database._engine
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))

    def selects() -> list[str]:
        asked.clear()
        scene.scrape()
        return [statement for statement in asked if statement.startswith("SELECT")]

    selects()
    few = selects()
    assert len(few) == 2
    for number in range(12):
        played(scene.store, samples, of_sites(samples), rounds=4, name=str(number))
    assert len(selects()) == 2 + 3  # configurations, rounds and rosters that are new
    assert selects() == few


HOSTILE = 'a"b\\c\nfedlora_runs{status="running"} 99\n# HELP x \r\x00 é 漢 {}=,'


def test_hostile_names_stay_inside_their_label(scene: Scene, samples: ModuleType) -> None:
    run = scene.store.create(samples.config(), name=HOSTILE)
    scene.store.commit_round(run, RoundRecord(0, {HOSTILE: 1.0, "\ud800": 2.0, "x" * 5000: 3.0}, ()))
    scene.clients = [client(HOSTILE)]
    found = scene.scrape()
    assert value(found, "runs", status="running") == 1
    assert HOSTILE.replace("\x00", "\ufffd") in {labels["name"] for labels in about(found, "run_info")}
    assert {labels["metric"] for labels in about(found, "run_metric")} == {HOSTILE, "\ufffd" * 3, "x" * MAX_LABEL}
    assert value(found, "client_connected", client=HOSTILE) == 0


@settings(max_examples=60)
@given(st.text(max_size=60))
def test_any_text_can_be_a_label(text: str) -> None:
    class One(Collector):
        def collect(self) -> Any:
            sheet = Sheet()
            sheet.add("client_connected", 1, client=text)
            return sheet.metrics()

    found = parsed(cached(One(), fresh=0)())
    assert [labels["client"] for labels in about(found, "client_connected")] == [
        text.encode("utf-8", "replace").decode()
    ]


def test_a_sample_needs_the_labels_of_its_family() -> None:
    for name, labels in (("client_connected", {}), ("runs", {"status": "running", "x": "y"}), ("nothing", {})):
        with pytest.raises(KeyError):
            Sheet().add(name, 1, **labels)


def test_names_follow_the_conventions() -> None:
    for family in FAMILIES:
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.kind in ("gauge", "counter")
        assert not any(word in family.name for word in ("_ms", "_percent", "_kb", "_mb", "_minutes"))
        assert family.help[0].isupper() or family.help[0] == "1"
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_a_scrape_is_kept_for_a_second(scene: Scene) -> None:
    now, count = 0.0, 0

    class Counting(Collector):
        def collect(self) -> Any:
            nonlocal count
            count += 1
            return ()

    text = cached(Counting(), fresh=1.0, clock=lambda: now)
    before = count
    first = text()
    now = 0.99
    assert text() is first
    assert count == before + 1
    now = 1.0
    text()
    assert count == before + 2


def test_scrapes_at_once_are_one(scene: Scene, samples: ModuleType) -> None:
    played(scene.store, samples, of_sites(samples))
    calls = []

    def link() -> LinkState:
        calls.append(1)
        time.sleep(0.2)
        return LinkState()

    text = make_metrics(scene.store, list, link)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(text())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(calls) == 1
