"""The shipped presets run end to end on their real models and data, cut down to seconds of training.

They need the packaged assets: a download, if those are not in the cache yet.
"""

import json
from pathlib import Path

import pytest

from fedlora.errors import ExitCode
from tests.e2e.conftest import Fedlora

pytestmark = pytest.mark.slow

SHORT = ["federation.rounds=1", "federation.cohort=1", "train.steps=2", "train.threads=1", "eval.test=false"]


@pytest.mark.parametrize(
    ("preset", "limit", "measured"),
    [("causal_lm", 16, "token_accuracy"), ("image", 200, "accuracy")],
)
def test_a_preset_trains_measures_and_leaves_an_adapter(
    fedlora: Fedlora, preset: str, limit: int, measured: str
) -> None:
    small = [f"data.limit={limit}", *SHORT]
    done = fedlora("simulate", f"experiment={preset}", *small, "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    said = json.loads(done.stdout)
    assert (said["status"], said["rounds_done"]) == ("finished", 1)
    before, after = (record["metrics"] for record in said["history"])
    assert {f"validation_{measured}", "validation_loss"} <= set(before)
    assert before["validation_loss"] != after["validation_loss"]
    assert after["train_loss"] > 0
    assert said["history"][1]["bytes_up"] > 0
    assert (Path(said["adapter"]) / "adapter_model.safetensors").is_file()
