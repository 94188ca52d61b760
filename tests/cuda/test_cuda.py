"""What is computed on a GPU is what is computed on the CPU. Skipped where torch finds no CUDA device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora.client.worker import worker_for
from fedlora.config.schema import RunConfig
from fedlora.privacy.layers import recorded
from fedlora.server.checkpoint import load
from fedlora.server.records import RunHistory, RunStatus
from fedlora.simulations.simulate import Watch, run
from fedlora.strategies.base import global_tensors
from fedlora.tasks.base import move
from fedlora.training.local import trained_names
from tests.adapters.making import adapted_task, random_tensors
from tests.tiny import tiny_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
RECORDS = [3, 11, 17, 29, 40]


def settings(device: str, store: Path, **updates: Any) -> dict[str, Any]:
    """Two clients, two rounds, without anything that draws on the device."""
    return {
        "train.device": device,
        "store": store,
        "engine": {"name": "sequential"},
        "adapter": {"dropout": 0.0},
        "federation": {"clients": 2, "cohort": 2, "rounds": 2},
    } | updates


def trained(config: RunConfig) -> tuple[RunHistory, dict[str, torch.Tensor]]:
    """A finished run and its last global tensors."""
    history = run(config, Watch())
    assert history.run.status is RunStatus.FINISHED
    state = load(history.run.folder, history.rounds[-1].round).state
    return history, {name: torch.tensor(value) for name, value in global_tensors(state).items()}


@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
@pytest.mark.parametrize("model", ["bert", "llama", "vit"])
def test_each_row_is_the_gradient_of_one_record_alone(request: pytest.FixtureRequest, model: str, method: str) -> None:
    data = {"bert": "tiny_text_csv", "llama": "tiny_qa_jsonl", "vit": "tiny_images"}[model]
    places = [request.getfixturevalue(name) for name in (f"tiny_{model}", data)]
    config = tiny_config(*places)
    task, adapted = adapted_task(config, method)
    adapted.load(random_tensors(adapted.manifest))
    adapted.model.double().to("cuda")
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)
    encoded = worker_for(config).encoded("train")

    def losses(rows: list[int]) -> torch.Tensor:
        batch = encoded.batch(rows)
        floats = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
        return task.losses(adapted.model, move(floats, torch.device("cuda")))

    with recorded(adapted, names) as rows:
        rows.begin(len(RECORDS))
        torch.autograd.backward(losses(RECORDS).sum())
        found = rows.finish().clone()
    parameters = adapted.parameters(names)
    alone = [torch.autograd.grad(losses([record]).sum(), parameters) for record in RECORDS]
    expected = torch.stack([torch.cat([part.reshape(-1) for part in parts]) for parts in alone])
    assert found.is_cuda
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["fedavg", "ffa_lora", "lora_fair", "fed_sb"])
@pytest.mark.parametrize("privacy", [{"name": "none"}, {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}])
def test_a_run_on_the_gpu_is_the_run_on_the_cpu_but_for_rounding(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, method: str, privacy: dict[str, Any]
) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        updates = settings(device, tmp_path / device, strategy={"name": method}, privacy=privacy)
        # SGD: AdamW divides by the gradient's size, which blows rounding up where a gradient is next to nothing.
        updates["train.optimizer"] = "sgd"
        found[device] = trained(tiny_config(tiny_bert, tiny_text_csv, **updates))[1]
    assert found["cpu"].keys() == found["cuda"].keys()
    for name, value in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("privacy", [{"name": "none"}, {"name": "dp", "epsilon": 8.0, "rate": 0.3}])
def test_dropout_and_tf32_train_on_the_gpu(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, privacy: dict[str, Any]
) -> None:
    updates = settings("cuda", tmp_path / "runs", privacy=privacy, adapter={"dropout": 0.1})
    updates |= {"train.matmul": "high"}
    _, tensors = trained(tiny_config(tiny_bert, tiny_text_csv, **updates))
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


@pytest.mark.parametrize("privacy", [{"name": "none"}, {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}])
@pytest.mark.parametrize(
    ("updates", "apart"),
    [
        ({"engine": {"name": "sequential", "group": 2}}, 1e-3),
        ({"train.keep_prefix": True}, 1e-3),
        ({"train.precision": "bfloat16"}, 0.05),
        ({"train.precision": "bfloat16", "engine": {"name": "sequential", "group": 2}}, 0.05),
    ],
)
def test_groups_kept_prefixes_and_a_half_base_on_the_gpu(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, updates: dict[str, Any], apart: float, privacy: dict[str, Any]
) -> None:
    """Each beside the plain run on the CPU: tensors whose distance is small beside their size."""
    upper = {"adapter": {"dropout": 0.0, "targets": ("1.attention.self.query", "1.attention.self.value")}}
    plain = settings("cpu", tmp_path / "cpu", privacy=privacy, **upper) | {"train.optimizer": "sgd"}
    other = settings("cuda", tmp_path / "cuda", privacy=privacy, **upper) | {"train.optimizer": "sgd"} | updates
    _, wanted = trained(tiny_config(tiny_bert, tiny_text_csv, **plain))
    _, found = trained(tiny_config(tiny_bert, tiny_text_csv, **other))
    for name, value in wanted.items():
        assert float((found[name].cpu() - value).norm() / value.norm()) < apart, name
