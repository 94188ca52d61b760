"""Whatever dies, whenever: a resumed run leaves the bits of an unbroken one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedlora.config.schema import EngineConfig, PrivacyConfig, RunConfig
from fedlora.privacy.ledger import open_ledger
from fedlora.server.records import Outcome
from fedlora.server.store import RunStore
from tests.tiny import tiny_config

LIVES = Path(__file__).with_name("lives.py")
ROOT = Path(__file__).parents[2]


def run_lives(folder: Path, config: RunConfig, *how: str, path: Path | None = None) -> str:
    text = folder / "config.json"
    text.write_text(config.model_dump_json())
    places = [str(ROOT), *([str(path)] if path else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(LIVES), str(folder), str(text), *how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(done.stdout)  # the seed and the moments, for whoever reads a failure
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def config(tiny_bert: Path, tiny_text_csv: Path) -> RunConfig:
    return tiny_config(tiny_bert, tiny_text_csv, federation={"rounds": 3})


def with_strategy(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"strategy": config.strategy.model_copy(update={"name": name})})


def with_workers(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"engine": EngineConfig(name="processes", workers=2)})


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "workers"), [("lora_fair", False), ("fed_sb", True)])
def test_killed_at_each_named_step_of_a_checkpoint(
    tmp_path: Path, config: RunConfig, strategy: str, workers: bool
) -> None:
    config = with_strategy(with_workers(config) if workers else config, strategy)
    said = run_lives(tmp_path, config, "steps")
    assert said.count("same bits") == 6 * 3


@pytest.mark.slow
def test_killed_at_each_step_while_clients_keep_tensors_of_their_own(
    tmp_path: Path, config: RunConfig, example_package: Path
) -> None:
    config = with_strategy(with_workers(config), "fedsa_lora")
    said = run_lives(tmp_path, config, "steps", path=example_package)
    assert said.count("same bits") == 6 * 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [False, True])
def test_killed_at_twenty_random_moments(tmp_path: Path, config: RunConfig, workers: bool) -> None:
    config = with_workers(config) if workers else config
    said = run_lives(tmp_path, config, "random", str(time.time_ns() % 10**9), "20")
    assert said.count("same bits") == 20


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "count"), [("fedavg", 10), ("fedsa_lora", 5)])
def test_killed_at_random_moments_under_dp(
    tmp_path: Path, config: RunConfig, example_package: Path, strategy: str, count: int
) -> None:
    """The same bits, with noise from the seed; no ledger counts less than was sent, or over one round more a kill."""
    privacy = PrivacyConfig.model_validate({"name": "dp", "noise_multiplier": 1.0, "noise": "seeded", "rate": 0.3})
    config = with_strategy(with_workers(config), strategy).model_copy(update={"privacy": privacy})
    seed = str(time.time_ns() % 10**9)
    said = run_lives(tmp_path, config, "random", seed, str(count), path=example_package)
    assert said.count("same bits") == count
    counted = [pair for trial in tmp_path.glob("trial-*") for pair in sent_and_counted(trial)]
    assert len(counted) >= count
    assert all(sent <= spent <= sent + 1 for sent, spent in counted)


def sent_and_counted(store: Path) -> list[tuple[int, int]]:
    """For each client of the store's one run: rounds in which its update counted, and rounds that its ledger counts."""
    with RunStore.open(store, create=False) as opened:
        (info,) = opened.list()
        rows = [row for record in opened.history(info).rounds for row in record.roster]
    found = []
    for folder in sorted((info.folder / "ledgers").glob("client-*")):
        sent = sum(row.client == int(folder.name[-5:]) and row.outcome is Outcome.REPORTED for row in rows)
        with open_ledger(folder) as ledger:
            found.append((sent, ledger.runs[info.id].participated()))
    return found
