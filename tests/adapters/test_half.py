"""A bfloat16 base under float32 adapters, on real tiny models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fedlora.adapters.half import halve_base
from fedlora.client.worker import Worker
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.privacy.layers import recorded
from fedlora.server.checkpoint import load
from fedlora.simulations.simulate import Watch, run
from fedlora.tasks.base import move
from fedlora.training.local import trained_names
from tests.adapters.making import adapted_task, random_tensors
from tests.tiny import tiny_config

MODELS = [("tiny_bert", "tiny_text_csv"), ("tiny_llama", "tiny_qa_jsonl"), ("tiny_vit", "tiny_images")]


@pytest.fixture(params=MODELS, ids=[model for model, _ in MODELS])
def config(request: pytest.FixtureRequest) -> RunConfig:
    model, data = (request.getfixturevalue(name) for name in request.param)
    return tiny_config(model, data)


@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
def test_the_base_is_half_and_what_is_sent_is_not(config: RunConfig, method: str) -> None:
    _, adapted = adapted_task(config, method)
    mine = {id(one) for one in adapted.parameters(adapted.manifest)}
    buffers = {name: value.dtype for name, value in adapted.model.named_buffers()}
    halve_base(adapted)
    for name, parameter in adapted.model.named_parameters():
        assert parameter.dtype is (torch.float32 if id(parameter) in mine else torch.bfloat16), name
    assert {name: value.dtype for name, value in adapted.model.named_buffers()} == buffers
    tensors = random_tensors(adapted.manifest)
    adapted.load(tensors)
    back = adapted.read(adapted.manifest)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("method", ["lora", "sb"])
def test_losses_and_gradients_are_those_of_a_rounded_base(config: RunConfig, method: str) -> None:
    worker, found = Worker(config), {}
    encoded = worker.encoded("train")
    for half in (False, True):
        task, adapted = adapted_task(config, method)
        adapted.load(random_tensors(adapted.manifest))
        if half:
            halve_base(adapted)
        names = trained_names(adapted.manifest)
        adapted.set_trained(names)
        losses = task.losses(adapted.model, move(encoded.compact(list(range(8))), adapted.device))
        torch.autograd.backward(losses.sum())
        gradient = torch.cat([torch.as_tensor(one.grad).flatten() for one in adapted.parameters(names)])
        assert losses.dtype is gradient.dtype is torch.float32
        found[half] = (losses.detach(), gradient)
    (wanted, exact), (rounded, near) = found[False], found[True]
    assert torch.allclose(wanted, rounded, rtol=0.03, atol=0.02)
    apart = float((exact - near).norm() / exact.norm())
    assert 1e-5 < apart < 0.08, apart  # 0: it was not half at all


def test_each_records_gradient_is_still_its_own(tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    task, adapted = adapted_task(config)
    adapted.load(random_tensors(adapted.manifest))
    halve_base(adapted)
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)
    encoded = Worker(config).encoded("train")
    with recorded(adapted, names) as rows:
        rows.begin(4)
        torch.autograd.backward(task.losses(adapted.model, encoded.batch([0, 1, 2, 3])).sum())
        together = rows.finish().clone()
    for record in range(4):
        adapted.set_trained(names)
        torch.autograd.backward(task.losses(adapted.model, encoded.batch([record])).sum())
        alone = torch.cat([torch.as_tensor(one.grad).flatten() for one in adapted.parameters(names)])
        assert float((together[record] - alone).norm() / alone.norm()) < 0.03
    assert together.dtype is torch.float32


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("privacy", [{}, {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}])
def test_a_whole_run(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, group: int, privacy: dict[str, Any]) -> None:
    """The same federation, base, and number of bytes; an adapter of float32 tensors that is near the exact one."""
    found = {}
    for precision in ("float32", "bfloat16"):
        config = tiny_config(
            tiny_bert,
            tiny_text_csv,
            federation={"clients": 4, "cohort": 3, "rounds": 2},
            train={"optimizer": "sgd", "lr": 0.05, "precision": precision},
            engine=EngineConfig(name="sequential", group=group),
            privacy=privacy or {"name": "none"},
            store=tmp_path / precision,
        )
        history = run(config, Watch())
        found[precision] = (history, load(history.run.folder, 2).state)
    (one, exact), (other, near) = found["float32"], found["bfloat16"]
    assert [r.bytes_up for r in one.rounds] == [r.bytes_up for r in other.rounds]
    for name, values in exact.shared.items():
        assert near.shared[name].dtype == values.dtype
        apart = np.linalg.norm(near.shared[name] - values) / np.linalg.norm(values)
        assert apart < 0.05, f"{name}: {apart}"
    assert any(not np.array_equal(near.shared[name], values) for name, values in exact.shared.items())
    with safe_open(other.run.folder / "adapter" / "adapter_model.safetensors", "np") as saved:
        assert {str(saved.get_tensor(name).dtype) for name in saved.keys()} == {"float32"}  # noqa: SIM118


def test_the_base_has_one_digest_in_both_precisions(config: RunConfig) -> None:
    """So that sites that begin with the same checkpoint agree, whatever their base computes in."""
    digests = []
    for precision in ("float32", "bfloat16"):
        train = config.train.model_copy(update={"precision": precision})
        worker = Worker(config.model_copy(update={"train": train}))
        method = make_strategy(worker.config.strategy)
        worker.adapted(method.manifest(worker.setup(method)))
        digests.append(worker.base_digest)
    assert digests[0] == digests[1]
