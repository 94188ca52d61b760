"""An adapted layer in few products: what PEFT's own forward pass gives, and its gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora.adapters.adapted import ADAPTER, AdaptedModel
from fedlora.adapters.attach import attach
from fedlora.adapters.low_rank import Update
from fedlora.adapters.prepacked import possible, prepack
from tests.adapters.making import make_manifest, random_tensors


def layer_of(method: str, kind: type[nn.Module] = nn.Linear, dropout: float = 0.0) -> tuple[AdaptedModel, Any]:
    torch.manual_seed(0)
    inner = Conv1D(20, 12) if kind is Conv1D else nn.Linear(12, 20)
    adapted = attach(nn.Sequential(inner), make_manifest(method, {"0": (20, 12)}, r=3), dropout=dropout)
    adapted.load(random_tensors(adapted.manifest))
    return adapted, adapted.layers["0"]


@contextmanager
def as_peft_has_it(layer: Any) -> Iterator[None]:
    own = layer.forward
    del layer.forward
    try:
        yield
    finally:
        layer.forward = own


def outcome(layer: Any, x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *parameters])]


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12), (2, 2, 5, 12)])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
def test_outputs_and_gradients_are_those_of_peft(method: str, kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    adapted, layer = layer_of(method, kind)
    adapted.model.double()
    x = torch.randn(*shape, dtype=torch.float64)
    trained = [name for name, spec in adapted.manifest.tensors.items() if spec.trained]
    adapted.set_trained(trained)
    found = outcome(layer, x, adapted.parameters(trained))
    with as_peft_has_it(layer):
        wanted = outcome(layer, x, adapted.parameters(trained))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("trained", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("of_input", [False, True])
def test_any_factors_may_be_trained(trained: tuple[int, ...], of_input: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    shapes = [(7, 12), (7, 20), (3, 12), (3, 3), (20, 3)]
    x, y, *factors = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in shapes)
    leaves = [factors[place].requires_grad_(True) for place in trained] + ([x.requires_grad_(True)] if of_input else [])
    y.requires_grad_(True)

    def gradients(value: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((value**2).sum(), [y, *leaves])

    a, r, b = factors
    found = gradients(Update.apply(x, y, 0.7, a, r, b))  # type: ignore[no-untyped-call]
    for one, other in zip(found, gradients(y + 0.7 * x @ a.t() @ r.t() @ b.t()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not possible(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 2, 5, 12)])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
def test_a_base_that_is_laid_out_gets_its_update_in_place(
    method: str, kind: type[nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, layer = layer_of(method, kind)
    x = torch.randn(shape)
    parameters = adapted.parameters(adapted.manifest.tensors)
    adapted.set_trained(adapted.manifest.tensors)
    with as_peft_has_it(layer):
        wanted = outcome(layer, x, parameters)
    prepack(layer, parameters)
    monkeypatch.setattr(Update, "apply", None)  # the way without layouts
    for found, one in zip(outcome(layer, x, parameters), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


def test_autograd_agrees_with_differences() -> None:
    draw = torch.Generator().manual_seed(2)
    shapes = [(2, 3, 4), (2, 3, 5), (2, 4), (5, 2)]
    x, y, a, b = (torch.randn(*s, dtype=torch.float64, generator=draw).requires_grad_(True) for s in shapes)
    assert torch.autograd.gradcheck(lambda *each: Update.apply(each[0], each[1], 1.5, *each[2:]), (x, y, a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_result_has_the_bases_type(dtype: torch.dtype) -> None:
    adapted, layer = layer_of("lora")
    layer.base_layer.to(dtype)
    x = torch.randn(6, 12).to(dtype)
    adapted.set_trained(list(adapted.manifest.tensors))
    found = outcome(layer, x, adapted.parameters(adapted.manifest.tensors))
    with as_peft_has_it(layer):
        wanted = outcome(layer, x, adapted.parameters(adapted.manifest.tensors))
    assert [one.dtype for one in found] == [one.dtype for one in wanted] == [dtype, dtype, *[torch.float32] * 2]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-2)


@pytest.mark.parametrize("how", ["dropout", "disabled", "merged", "autocast"])
def test_what_peft_does_otherwise_it_still_does(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, layer = layer_of("lora", dropout=0.5)
    x, called = torch.randn(9, 12), list[str]()
    stock = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda *args, **kwargs: (called.append(how), stock(*args, **kwargs))[1])
    layer(x)
    assert not called
    if how == "dropout":
        with adapted.training():
            found = [layer(x) for _ in range(2)]
        assert not torch.equal(*found)
    elif how == "disabled":
        layer.enable_adapters(False)
        torch.testing.assert_close(layer(x), layer.base_layer(x))
    elif how == "merged":
        before = layer(x)
        layer.merge()
        torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
    assert called
    assert ADAPTER in layer.active_adapters
