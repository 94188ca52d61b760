"""A real model's clients in groups and one at a time. Needs the asset (a download, if it is not in the cache)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.config.schema import EngineConfig
from fedlora.server.checkpoint import load
from fedlora.simulations.simulate import Watch, run
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow


DP = {"name": "dp", "noise_multiplier": 1.0, "rate": 0.2, "noise": "seeded"}


@pytest.mark.parametrize(
    ("strategy", "privacy"),
    [*((name, {"name": "none"}) for name in ("fedavg", "ffa_lora", "lora_fair", "fed_sb")), ("ffa_lora", DP)],
)
def test_minilms_clients_together_are_each_alone(
    tiny_text_csv: Path, tmp_path: Path, strategy: str, privacy: dict[str, Any]
) -> None:
    found = {}
    for group in (1, 3):
        config = tiny_config(
            Path("minilm"),
            tiny_text_csv,
            model={"source": "asset", "name": "minilm", "path": None},
            strategy={"name": strategy},
            train={"optimizer": "sgd", "lr": 0.05, "batch": 4},
            federation={"clients": 3, "cohort": 3, "rounds": 1},
            eval={"every": 5, "test": False},
            privacy=privacy,
            engine=EngineConfig(name="sequential", group=group),
            store=tmp_path / str(group),
        )
        history = run(config, Watch())
        found[group] = load(history.run.folder, 1).state.shared
    for name, values in found[1].items():
        apart = np.linalg.norm(found[3][name].astype(float) - values) / np.linalg.norm(values)
        assert apart < 1e-5, f"{name}: {apart:.1e}"
