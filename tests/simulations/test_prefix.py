"""`train.keep_prefix`: whole runs whose frozen lower layers are computed once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.config.compose import compose
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.errors import ConfigError, ModelError
from fedlora.server.checkpoint import load
from fedlora.server.records import RunHistory
from fedlora.simulations.simulate import Watch, run
from fedlora.tasks import prefix
from tests.tiny import tiny_config

TARGETS = {
    "text_classification": ["1.attention.self.query", "1.attention.self.value"],
    "causal_lm": ["1.self_attn.q_proj", "1.self_attn.v_proj"],
    "image_classification": ["1.attention.q_proj"],
}


def made(model: Path, data: Path, store: Path, **updates: Any) -> RunConfig:
    settings = {
        "federation": {"clients": 4, "cohort": 3, "rounds": 2},
        "train": {"optimizer": "sgd", "lr": 0.05},
        "engine": EngineConfig(name="sequential"),
        "store": store,
        **updates,
    }
    config = tiny_config(model, data, **settings)
    adapter = config.adapter.model_copy(update={"targets": tuple(TARGETS[config.task.name])})
    return config.model_copy(update={"adapter": adapter})


def kept(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"keep_prefix": True})})


def assert_near(found: RunHistory, wanted: RunHistory) -> None:
    mine, one = (load(history.run.folder, 2).state.shared for history in (found, wanted))
    for name, values in one.items():
        apart = np.linalg.norm(mine[name].astype(float) - values) / np.linalg.norm(values)
        assert apart < 1e-5, f"{name}: {apart:.1e}"
    for ours, theirs in zip(found.rounds, wanted.rounds, strict=True):
        assert ours.metrics == pytest.approx(dict(theirs.metrics), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "updates",
    [
        {},
        {"engine": EngineConfig(name="sequential", group=3)},
        {"engine": EngineConfig(name="processes", workers=2)},
        {"privacy": {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}},
    ],
    ids=["alone", "group", "processes", "private"],
)
def test_a_run_is_the_same(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, updates: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tiny_bert, tiny_text_csv, tmp_path / "all", **updates)
    wanted = run(config, Watch())
    layers: list[int] = []
    fill = prefix.with_states
    monkeypatch.setattr(
        "fedlora.client.prefix.with_states",
        lambda model, rows, layer, **more: (layers.append(layer), fill(model, rows, layer, **more))[1],
    )
    assert_near(run(kept(config), Watch()), wanted)
    assert set(layers) == {1}


def test_of_a_language_model_too(tiny_llama: Path, tiny_qa_jsonl: Path, tmp_path: Path) -> None:
    config = made(tiny_llama, tiny_qa_jsonl, tmp_path / "all")
    assert_near(run(kept(config), Watch()), run(config, Watch()))


def test_where_there_is_nothing_to_keep_it_says_so(
    tiny_bert: Path, tiny_text_csv: Path, tiny_vit: Path, tiny_images: Path, tmp_path: Path
) -> None:
    whole = kept(tiny_config(tiny_bert, tiny_text_csv, store=tmp_path / "text"))
    with pytest.raises(ModelError, match=r"first adapted module is '.*layer\.0\.attention\.self\.query'"):
        run(whole, Watch())
    with pytest.raises(ModelError, match=r"ViT.* has no layers below the adapters of which that is known"):
        run(kept(made(tiny_vit, tiny_images, tmp_path / "images")), Watch())


@pytest.mark.parametrize("other", ["model.dropout=true", "train.precision=bfloat16"])
def test_what_would_make_the_kept_values_wrong_is_a_config_error(other: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.keep_prefix = true keeps"):
        compose(["train.keep_prefix=true", other])
