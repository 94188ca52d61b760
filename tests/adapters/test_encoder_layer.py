"""BERT's layer in few operations: outputs and gradients of transformers' own, to the last bit where it is eager."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig

from fedlora.adapters import encoder_layer
from fedlora.adapters.attach import attach
from fedlora.adapters.encoder_layer import KINDS, shorten_layers
from fedlora.adapters.prepacked import possible, prepack
from tests.adapters.making import make_manifest, random_tensors

pytestmark = pytest.mark.skipif(not possible(), reason="this torch has no oneDNN")
CONFIGS = dict(zip(KINDS, (BertConfig, RobertaConfig, XLMRobertaConfig, ElectraConfig), strict=True))
ROWS, TOKENS, WIDTH, INNER = 3, 7, 32, 48
TARGETS = {
    "query, value": ["attention.self.query", "attention.self.value"],
    "all": [
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
}


def layer_of(kind: type[Any] = KINDS[0], targets: str = "query, value", **changes: Any) -> Any:
    """A layer as `fedlora simulate` has it, in eval mode, with an adapter; the modules of `targets` are trained."""
    settings = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": INNER, **changes}
    config = CONFIGS[kind](**settings)
    config._attn_implementation = changes.get("attention", "eager")
    torch.manual_seed(0)
    layer = kind(config)
    sizes = {name: tuple(layer.get_submodule(name).weight.shape) for name in TARGETS[targets]}
    adapted = attach(layer, make_manifest("lora", sizes, r=3))
    adapted.load(random_tensors(adapted.manifest))
    names = list(adapted.manifest.tensors)
    adapted.set_trained(names)
    prepack(layer, adapted.parameters(names))
    shorten_layers(layer)
    return layer


@contextmanager
def as_transformers_has_it(layer: Any) -> Iterator[None]:
    own = vars(layer).pop("forward")
    try:
        yield
    finally:
        layer.forward = own


def outcome(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The output, and the gradients of x and of all that is trained."""
    x = x.clone().requires_grad_(True)
    y = layer(x, *args, **kwargs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *trained])]


def both(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    with as_transformers_has_it(layer):
        wanted = outcome(layer, x, *args, **kwargs)
    return outcome(layer, x, *args, **kwargs), wanted


def equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, TOKENS, WIDTH).to(dtype)


def mask_of(shape: tuple[int, ...]) -> Tensor:
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    seen[..., 0] = True
    return torch.zeros(shape).masked_fill_(~seen, torch.finfo(torch.float32).min)


MASKS: dict[str, tuple[int, ...] | None] = {
    "none": None,
    "keys of each row": (ROWS, 1, 1, TOKENS),
    "packed": (ROWS, 1, TOKENS, TOKENS),
    "one for all": (1, 1, TOKENS, TOKENS),
}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the three operations run, as they do."""
    ran: list[str] = []
    for kind in (encoder_layer.Attention, encoder_layer.AddNorm, encoder_layer.FeedForward):
        plain = kind.apply

        def noted(*args: Any, plain: Any = plain, name: str = kind.__name__) -> Any:
            ran.append(name)
            return plain(*args)

        monkeypatch.setattr(kind, "apply", noted)
    return ran


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_have_transformers_bits(
    kind: type[Any], mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, shape = layer_of(kind), MASKS[mask]
    ran = counted(monkeypatch)
    found, wanted = both(layer, inputs(), None if shape is None else mask_of(shape))
    assert ran == ["Attention", "AddNorm", "FeedForward"]
    assert len(found) == 2 + 2 * 2
    assert equal(found, wanted)


def test_a_mask_that_is_forgotten_does_not_go_unnoticed() -> None:
    layer = layer_of()
    assert not equal(outcome(layer, inputs()), outcome(layer, inputs(), mask_of((ROWS, 1, TOKENS, TOKENS))))


def test_nothing_is_computed_for_inputs_without_gradients() -> None:
    """In the first layer neither its input nor its keys have any: the gradients of the rest are the same."""
    layer, x, found = layer_of(), inputs(), []
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    for _ in range(2):
        y = layer(x, None)
        found.append(torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), trained))
        vars(layer).pop("forward", None)
    assert equal(list(found[0]), list(found[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_adapted_layers_are_called_and_nothing_of_them_is_skipped(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(kind, "all")
    ran = counted(monkeypatch)
    found, wanted = both(layer, inputs(), mask_of((ROWS, 1, 1, TOKENS)))
    assert ran == ["Attention"]
    assert len(found) == 2 + 2 * 6
    assert equal(found, wanted)


def test_in_bfloat16() -> None:
    layer = layer_of()
    for name, parameter in layer.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    x, mask = inputs(torch.bfloat16), mask_of((ROWS, 1, TOKENS, TOKENS)).to(torch.bfloat16)
    found, wanted = both(layer, x, mask)
    assert found[0].dtype is torch.bfloat16
    assert equal(found, wanted)


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu_python"])
def test_another_activation_is_left_to_transformers(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(hidden_act=activation)
    ran = counted(monkeypatch)
    found, wanted = both(layer, inputs(), None)
    assert ran == ["Attention", "AddNorm"]
    assert equal(found, wanted)


def test_fused_attention_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(attention="sdpa")
    ran = counted(monkeypatch)
    found, wanted = both(layer, inputs(), mask_of((ROWS, 1, TOKENS, TOKENS)))
    assert ran == ["AddNorm", "FeedForward"]
    assert equal(found, wanted)


def test_dropout_is_drawn_as_transformers_draws_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of().train()
    ran = counted(monkeypatch)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(outcome(layer, inputs(), None))
        vars(layer).pop("forward", None)
    assert not ran
    assert equal(found[0], found[1])


def test_rates_of_zero_are_no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    ran = counted(monkeypatch)
    assert equal(*both(layer, inputs(), None))
    assert len(ran) == 3


def test_more_arguments_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of()
    ran = counted(monkeypatch)
    layer(inputs(), None, position_ids=torch.arange(TOKENS), cache=None, output_attentions=False)
    assert len(ran) == 3
    layer(inputs(), None, output_attentions=True)
    assert len(ran) == 3


def test_a_norm_that_is_trained_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of()
    layer.output.LayerNorm.bias.requires_grad_(True)
    ran = counted(monkeypatch)
    found, wanted = both(layer, inputs(), None)
    assert ran == ["Attention", "AddNorm"]
    assert len(found) == 2 + 2 * 2 + 1
    assert equal(found, wanted)


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("output.dense", ["Attention", "AddNorm"]),
        ("attention.output", ["Attention", "FeedForward"]),
        ("attention.output.LayerNorm", ["Attention", "FeedForward"]),
        ("attention.self", ["AddNorm", "FeedForward"]),
        ("intermediate", ["Attention", "AddNorm"]),
    ],
)
def test_what_is_hooked_into_is_called(where: str, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, seen = layer_of(), list[nn.Module]()
    layer.get_submodule(where).register_forward_hook(lambda module, *_: seen.append(module))
    ran = counted(monkeypatch)
    found, wanted = both(layer, inputs(), None)
    assert len(seen) == 2
    assert ran == left
    assert equal(found, wanted)


@pytest.mark.parametrize("changes", [{"chunk_size_feed_forward": 1}, {"is_decoder": True}])
def test_layers_that_do_more_keep_their_own(changes: dict[str, Any]) -> None:
    config = BertConfig(hidden_size=WIDTH, num_attention_heads=4, intermediate_size=INNER, **changes)
    layer: Any = KINDS[0](config)
    shorten_layers(layer)
    assert "forward" not in vars(layer)


def test_a_weight_that_changes_is_followed() -> None:
    layer = layer_of()
    before = layer(inputs(), None)
    with torch.no_grad():
        layer.output.dense.weight.mul_(2)
    found, wanted = both(layer, inputs(), None)
    assert not torch.equal(found[0], before)
    assert equal(found, wanted)


def test_autograd_agrees_with_differences() -> None:
    """Attention alone, in float64, where no layouts are needed."""
    torch.manual_seed(4)
    parts = [torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = mask_of((2, 1, 3, 3)).double()
    heads = encoder_layer.HeadsOfRows(2, 0.5)
    assert torch.autograd.gradcheck(lambda q, k, v: encoder_layer.Attention.apply(q, k, v, mask, heads), parts)
