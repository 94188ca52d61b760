"""Frozen weights laid out for the processor: the numbers and gradients of the plain layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora.adapters.half import halve_base
from fedlora.adapters.prepacked import possible, prepack, prepacked_bytes
from fedlora.client.worker import Worker
from fedlora.tasks.base import move
from fedlora.training.local import trained_names
from tests.adapters.making import adapted_task, random_tensors
from tests.tiny import tiny_config

pytestmark = pytest.mark.skipif(not possible(), reason="this torch has no oneDNN")
MODELS = [
    ("tiny_bert", "tiny_text_csv"),
    ("tiny_llama", "tiny_qa_jsonl"),
    ("tiny_vit", "tiny_images"),
]


def layer_of(kind: type[Any], bias: bool = True) -> Any:
    torch.manual_seed(0)
    layer = Conv1D(24, 40) if kind is Conv1D else nn.Linear(40, 24, bias=bias)
    return layer.requires_grad_(False)


def gradient(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    y = layer(x)
    torch.autograd.backward((y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum())
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (3, 5, 40), (2, 3, 4, 40), (0, 40)])
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
def test_a_layer_gives_the_plain_products(kind: type[Any], bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = layer_of(kind, bias), torch.randn(*shape)
    wanted = gradient(layer, x)
    prepack(layer, ())
    assert "forward" in vars(layer)
    for found, one in zip(gradient(layer, x), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_lie_in_order() -> None:
    layer, x = layer_of(nn.Linear), torch.randn(6, 40, 2).transpose(1, 2)
    wanted = gradient(layer, x)
    prepack(layer, ())
    for found, one in zip(gradient(layer, x), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["in place", "other memory", "float64", "trained"])
def test_weights_that_change_are_followed(change: str) -> None:
    layer, x = layer_of(nn.Linear), torch.randn(5, 40)
    prepack(layer, ())
    layer(x)
    if change == "in place":
        with torch.no_grad():
            layer.weight.add_(1.0)
    elif change == "other memory":
        layer.weight.data = torch.randn(24, 40)
    elif change == "float64":
        layer.double()
        x = x.double()
    else:
        layer.weight.requires_grad_(True)
    found = layer(x)
    torch.testing.assert_close(found, nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    if change == "trained":
        torch.autograd.backward(found.sum())
        assert layer.weight.grad is not None


def test_a_trained_layer_is_left_as_it_is() -> None:
    layer = layer_of(nn.Linear)
    prepack(layer, [layer.bias])
    assert "forward" not in vars(layer)
    assert prepacked_bytes(layer, [layer.bias]) == 0
    assert prepacked_bytes(layer, ()) == 2 * 24 * 40 * 4


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("model", "data"), MODELS)
def test_a_whole_model_gives_the_plain_losses_and_gradients(
    request: pytest.FixtureRequest, model: str, data: str, half: bool
) -> None:
    found = {}
    for packed in (False, True):
        config = tiny_config(*(request.getfixturevalue(name) for name in (model, data)))
        task, adapted = adapted_task(config, "lora")
        adapted.load(random_tensors(adapted.manifest))
        if half:
            halve_base(adapted)
        names = trained_names(adapted.manifest)
        adapted.set_trained(names)
        if packed:
            prepack(adapted.model, adapted.parameters(adapted.manifest.tensors))
            packed_layers = [one for one in adapted.model.modules() if "Prepacked" in str(vars(one).get("forward"))]
            assert packed_layers
        batch = Worker(config).encoded("train").compact(list(range(8)))
        losses = task.losses(adapted.model, move(batch, adapted.device))
        torch.autograd.backward(losses.sum())
        gradients = torch.cat([torch.as_tensor(one.grad).flatten() for one in adapted.parameters(names)])
        found[packed] = torch.cat([losses.detach(), gradients])
    apart = float((found[True] - found[False]).norm() / found[False].norm())
    assert apart < (2e-2 if half else 1e-5)


def test_the_worker_does_it_where_it_is_told(tiny_bert: Path, tiny_text_csv: Path) -> None:
    for wanted in (False, True):
        worker = Worker(tiny_config(tiny_bert, tiny_text_csv, **{"train.prepack": wanted}))
        layers = [one for one in worker.base.modules() if isinstance(one, nn.Linear) and "forward" in vars(one)]
        head = {id(worker.base.get_parameter(name)) for name in worker.task.head_parameters(worker.base)}
        assert bool(layers) is wanted
        assert not any(id(one.weight) in head for one in layers)
