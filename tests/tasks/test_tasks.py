"""What the seam promises, for every task alike."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from fedlora.config.schema import TaskConfig
from fedlora.tasks.base import move
from fedlora.tasks.registry import TASKS

Cases = dict[str, tuple[Any, Dataset]]
NAMES = ["mean", "stock", "causal_lm", "image"]
CLASSIFIERS = ["mean", "stock", "image"]


def test_every_task_of_the_schema_is_registered() -> None:
    assert set(TASKS) == set(TaskConfig.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_records_loss_and_logits_depend_on_no_other_record_and_no_padding(cases: Cases, name: str) -> None:
    task, rows = cases[name]
    model, encoded = task.load_base(), task.encode(rows)
    alone = [task.losses(model, encoded.batch([row])) for row in (0, 1, 2)]
    for company in ([0, 1, 2], [0, 7, 11], [0, 30, 41, 58]):
        batch = encoded.batch(company)
        torch.testing.assert_close(task.losses(model, batch)[:1], alone[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            task.logits(model, batch)[:1], task.logits(model, encoded.batch([0])), atol=1e-6, rtol=0
        )
    torch.testing.assert_close(task.losses(model, encoded.batch([0, 1, 2])), torch.cat(alone), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_gives_one_finite_value_a_record(cases: Cases, name: str) -> None:
    task, rows = cases[name]
    model, batch = task.load_base(), task.encode(rows).batch(range(10))
    with torch.no_grad():
        values = task.evaluate(model, batch)
    accuracy = "token_accuracy" if name == "causal_lm" else "accuracy"
    assert set(values) == {"loss", accuracy}
    assert all(value.shape == (10,) and torch.isfinite(value).all() for value in values.values())
    assert ((values[accuracy] >= 0) & (values[accuracy] <= 1)).all()
    torch.testing.assert_close(values["loss"], task.losses(model, batch).detach())


@pytest.mark.parametrize("name", NAMES)
def test_the_skeleton_has_the_names_and_shapes_of_the_model_and_no_values(cases: Cases, name: str) -> None:
    task, _ = cases[name]
    model, skeleton = task.load_base(), task.load_skeleton()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in skeleton.named_parameters()} == shapes
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert task.head_parameters(skeleton) == task.head_parameters(model)
    assert type(skeleton) is type(model)


@pytest.mark.parametrize("name", NAMES)
def test_loading_neither_reads_nor_moves_torchs_global_stream(cases: Cases, name: str) -> None:
    task, _ = cases[name]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = task.load_base().state_dict()
    task.load_skeleton()
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)
    second = task.load_base().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_model_comes_in_eval_mode_and_float32(cases: Cases, name: str) -> None:
    model = cases[name][0].load_base()
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_learns_from_its_losses(cases: Cases, name: str) -> None:
    task, rows = cases[name]
    model, encoded = task.load_base(), task.encode(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    train, held_out = order[:-60], order[-60:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        picked = train[np.arange(step * 16, step * 16 + 16) % len(train)]
        optimizer.zero_grad()
        task.losses(model, encoded.batch(picked)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = task.evaluate(model, encoded.batch(held_out))["accuracy"].mean().item()
    assert accuracy > 0.9


def test_a_causal_lm_learns_its_answers(cases: Cases) -> None:
    task, rows = cases["causal_lm"]
    model, batch = task.load_base(), task.encode(rows).batch(range(len(rows)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        task.losses(model, batch).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert task.evaluate(model, batch)["token_accuracy"].mean().item() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_moves_to_a_device_whole(cases: Cases, name: str) -> None:
    task, rows = cases[name]
    batch = task.encode(rows).batch([0, 1])
    moved = move(batch, torch.device("meta"))
    assert set(moved) == set(batch)
    assert all(tensor.is_meta for tensor in moved.values())


@pytest.mark.parametrize(
    ("name", "expected"), [("mean", "TOKEN_CLS"), ("stock", "SEQ_CLS"), ("causal_lm", "CAUSAL_LM"), ("image", None)]
)
def test_peft_accepts_the_task_type(cases: Cases, name: str, expected: str | None) -> None:
    from peft import LoraConfig

    assert LoraConfig(task_type=cases[name][0].peft_task_type).task_type == expected
