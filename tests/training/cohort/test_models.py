"""A group trains as each client alone on every kind of model: token and pooled heads, decoders, images, Conv1D."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.training.cohort.stack import Stack
from fedlora.training.cohort.train import Member, train_group
from fedlora.training.local import LocalResult, train_client, trained_names
from fedlora.training.settings import torch_settings
from tests.adapters.making import adapted_task, random_tensors, tiny_gpt2
from tests.tiny import tiny_config

SGD = {"optimizer": "sgd", "lr": 0.1, "steps": 3}


@pytest.fixture(params=["stock", "llama", "vit", "gpt2"])
def config(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_bert: Path,
    tiny_llama: Path,
    tiny_vit: Path,
    tiny_text_csv: Path,
    tiny_qa_jsonl: Path,
    tiny_images: Path,
) -> RunConfig:
    if request.param == "gpt2":
        tiny_gpt2(tmp_path)
    stock = {"model": {"head": "stock"}, "train": SGD}
    made: Mapping[str, Any] = {
        "stock": lambda: tiny_config(tiny_bert, tiny_text_csv, **stock),
        "llama": lambda: tiny_config(tiny_llama, tiny_qa_jsonl, train=SGD),
        "vit": lambda: tiny_config(tiny_vit, tiny_images, train=SGD),
        "gpt2": lambda: tiny_config(tmp_path, tiny_text_csv, **stock, adapter={"targets": ["c_attn"]}),
    }
    config: RunConfig = made[request.param]()
    return config


@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
def test_each_client_as_alone(config: RunConfig, method: str) -> None:
    task, adapted = adapted_task(config, method)
    common = random_tensors(adapted.manifest, size=0.1)
    names = trained_names(adapted.manifest)
    encoded = Worker(config).encoded("train")
    rows = [np.arange(0, 12), np.arange(12, 15), np.arange(15, 40)]
    begin = [random_tensors(adapted.manifest, size=0.1, seed=client) for client in range(3)]
    adapted.load(common)
    wanted = []
    with torch_settings(config.train):
        for client in range(3):
            adapted.load({name: begin[client][name] for name in names})
            where = {"round_number": 1, "rounds": 2, "seed": 5, "client": client}
            wanted.append(train_client(adapted, task, encoded, rows[client], config.train, **where))
        members = [Member(client, rows[client], {name: begin[client][name] for name in names}) for client in range(3)]
        found = train_group(adapted, task, encoded, members, config.train, round_number=1, rounds=2, seed=5)
    for mine, one in zip(found, wanted, strict=True):
        assert isinstance(mine, LocalResult)
        assert mine.loss == pytest.approx(one.loss, rel=1e-5)
        for name in names:
            apart = np.linalg.norm(mine.tensors[name].astype(float) - one.tensors[name]) / np.linalg.norm(
                one.tensors[name]
            )
            assert apart < 1e-5, f"{name}: {apart:.1e}"


def test_a_head_that_is_not_linear_is_refused_with_its_tensors(tiny_bert: Path, tiny_text_csv: Path) -> None:
    _, adapted = adapted_task(tiny_config(tiny_bert, tiny_text_csv))
    gain = adapted.model.get_parameter("bert.encoder.layer.0.output.LayerNorm.weight")
    adapted._parameters["head.gain"] = gain  # type: ignore[index]
    start = {"head.gain": gain.detach().numpy()}
    with (
        pytest.raises(RunError, match=r"'head\.gain'.*one at a time"),
        Stack(adapted, [start, start], []).in_place(),
    ):
        pass
