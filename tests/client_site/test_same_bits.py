"""A site whose file holds the rows of a virtual client trains to the bits of that client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.privacy.account import ROSTER, read_account
from fedlora.privacy.ledger import open_ledger
from fedlora.server.records import Outcome, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations import simulate
from fedlora.simulations.simulate import Watch, resume, run
from fedlora.simulations.virtual import InProcess, VirtualGrid
from tests.client_site.places import SERVER, SiteGrid, dealt_sites, of_sites
from tests.simulations.test_simulate import adapter_of, stopping_after
from tests.tiny import tiny_config

SEEDED = {"name": "dp", "noise_multiplier": 0.8, "rate": 0.3, "noise": "seeded"}
Make = Callable[..., RunConfig]


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    """Three clients of different sizes, two of them a round."""

    def config(method: str = "fedavg", **updates: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "strategy": {"name": method},
            "store": tmp_path / "simulated",
            "federation": {"clients": 3, "cohort": 2, "rounds": 2},
            "data.partition": {"name": "size_skew", "skew": "linear"},
        }
        return tiny_config(tiny_bert, tiny_text_csv, **(settings | updates))

    return config


def check_same_bits(config: RunConfig, model: Path, folder: Path) -> None:
    simulated = run(config, Watch())
    sites = dealt_sites(config, model, folder)
    for site in sites if config.privacy.local else ():
        site.open_ledger()
    deployed = run(of_sites(config, folder / "deployed"), Watch(), grid=SiteGrid(sites))
    assert deployed.run.status is RunStatus.FINISHED
    assert {row.outcome for record in deployed.rounds for row in record.roster} == {Outcome.REPORTED}
    assert adapter_of(deployed) == adapter_of(simulated)
    for one, other in zip(deployed.rounds, simulated.rounds, strict=True):
        assert dict(one.metrics) == dict(other.metrics)
        assert [row.samples for row in one.roster] == [row.samples for row in other.roster]
        assert (one.bytes_up, one.bytes_down, one.bytes_once) == (other.bytes_up, other.bytes_down, other.bytes_once)


@pytest.mark.parametrize("strategy", ["fedavg", "fed_sb"])
@pytest.mark.parametrize("holdout", [0.0, 0.2])
def test_without_privacy(make: Make, tiny_bert: Path, tmp_path: Path, strategy: str, holdout: float) -> None:
    check_same_bits(make(strategy, **{"eval.holdout": holdout}), tiny_bert, tmp_path)


@pytest.mark.parametrize(
    "updates",
    [
        {"privacy": SEEDED},
        {"strategy": {"name": "fed_sb"}, "privacy": SEEDED},
        {"strategy": {"name": "fed_sb", "init": "private"}, "privacy": SEEDED},
        {
            "privacy": {**SEEDED, "unit": "source", "unit_rows": 3},
            "eval": {"where": "clients", "holdout": 0.4},
        },
    ],
    ids=["fedavg", "fed_sb", "a private start", "units by column, held out, and noised counts"],
)
def test_with_seeded_noise(make: Make, tiny_bert: Path, tmp_path: Path, updates: dict[str, Any]) -> None:
    check_same_bits(make(**updates), tiny_bert, tmp_path)


def test_a_row_drawn_twice_is_there_twice(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make(**{"data.partition": {"name": "bootstrap", "rows": 300}})
    check_same_bits(config, tiny_bert, tmp_path)


def test_a_causal_model(tiny_llama: Path, tiny_qa_jsonl: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_llama, tiny_qa_jsonl, store=tmp_path / "simulated")
    check_same_bits(config, tiny_llama, tmp_path)


def test_images(tiny_vit: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_vit, tiny_images, store=tmp_path / "simulated")
    check_same_bits(config, tiny_vit, tmp_path)


def test_a_resumed_run_of_sites_has_the_bits_of_an_unbroken_one(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make("fed_sb", **{"federation.rounds": 3})
    whole = run(config, Watch())
    sites = dealt_sites(config, tiny_bert, tmp_path)
    deployed = of_sites(config, tmp_path / "deployed")
    run(deployed, stopping_after(1), grid=SiteGrid(sites))
    with RunStore.open(deployed.store) as store:
        with pytest.raises(ConfigError, match="virtual clients"):
            resume(store, store.find("latest"), Watch())
        resumed = resume(store, store.find("latest"), Watch(), grid=SiteGrid(sites))
    assert adapter_of(resumed) == adapter_of(whole)


def test_what_a_site_is_sent_names_none_of_the_servers_paths(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    config = make("fed_sb")
    sites = dealt_sites(config, tiny_bert, tmp_path)
    run(of_sites(config, tmp_path / "deployed"), Watch(), grid=SiteGrid(sites))
    works = [work for site in sites for work in site.seen]
    assert works
    for work in works:
        assert str(tmp_path) not in work.config.model_dump_json()
        assert str(tiny_bert) not in work.config.model_dump_json()
        assert work.labels == ("animal", "food", "tool")
        assert len(work.base_digest) == len(work.tokenizer_digest) == 64


def test_a_private_run_of_sites_is_announced_and_kept_in_their_ledgers(
    make: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    config = make(privacy={"name": "dp", "epsilon": 8.0, "rate": 0.3}, **{"federation.cohort": 3})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    for site in sites[:2]:
        site.open_ledger()
    sites[2].open_ledger(0.1)
    history = run(of_sites(config, tmp_path / "deployed"), Watch(), grid=SiteGrid(sites))
    rows = [row for record in history.rounds for row in record.roster]
    assert {row.outcome for row in rows if row.client == 2} == {Outcome.DECLINED}
    assert all(row.samples == 0 and row.seconds == 0 and not row.metrics for row in rows)
    times = {client: sum(row.client == client for row in rows) for client in (0, 1)}
    account = read_account(history.run.folder)
    assert account is not None
    assert {client: site["rounds"] for client, site in account.sites.items()} == {c: n for c, n in times.items() if n}
    assert account.basis == ROSTER
    assert "by the roster (announced: " in account.sentence()
    assert account.promise["headline"].startswith("announced ε")
    assert account.promise["simulated"] is False
    for client in (0, 1):
        with open_ledger(sites[client].folder / "ledger") as ledger:
            assert ledger.runs[history.run.id].participated() == times[client]
            assert ledger.runs[history.run.id].schedule.server == SERVER
    assert not (history.run.folder / "ledgers").exists()
    assert not list(history.run.folder.glob("**/partition*"))


@pytest.mark.parametrize(
    ("sites", "keeps", "text"),
    [(True, False, "keep no privacy ledger"), (False, True, "keep no privacy ledger")],
)
def test_local_privacy_needs_owners_that_keep_ledgers(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sites: bool, keeps: bool, text: str
) -> None:
    config = make(privacy=SEEDED)
    monkeypatch.setattr(SiteGrid, "keeps_ledgers", keeps)
    with pytest.raises(ConfigError, match=text):
        run(of_sites(config, tmp_path) if sites else config, Watch(), grid=SiteGrid([]))


def test_virtual_clients_do_not_stand_in_for_sites(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="virtual clients do not stand in"):
        run(of_sites(make(), tmp_path), Watch())


def test_sites_choose_their_own_threads(make: Make, tmp_path: Path) -> None:
    assert simulate.resolve(of_sites(make(**{"train.threads": None}), tmp_path)).train.threads is None


def test_a_second_text_that_only_the_server_would_read_is_refused(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(tiny_text_csv.read_text().replace("text,label,source", "text,label,text_pair", 1))
    config = tiny_config(tiny_bert, pairs, store=tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"data\.text_pair=text_pair"):
        run(of_sites(config, tmp_path), Watch(), grid=VirtualGrid(InProcess(SiteGrid([])), 4))  # type: ignore[arg-type]
