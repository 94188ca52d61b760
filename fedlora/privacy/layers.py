"""Puts per-record gradients into an adapted model for the time of DP-SGD, and takes them out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedlora.adapters.adapted import ADAPTER, AdaptedModel
from fedlora.adapters.attach import FactorProduct
from fedlora.errors import PrivacyError
from fedlora.privacy.functions import affine, low_rank, low_rank_product
from fedlora.privacy.rows import GradientRows

Forward = Callable[..., Tensor]


@contextmanager
def recorded(adapted: AdaptedModel, names: Sequence[str]) -> Iterator[GradientRows]:
    """Within the block, a backward pass through `adapted.model` leaves each record's gradient of the tensors `names`.

    names: by manifest; their parameters must be the trained ones. The forward pass computes what it did before.

    Raises PrivacyError if a tensor belongs to a layer whose per-record gradient is not known.
    """
    parameters = adapted.parameters(names)
    rows = GradientRows(parameters)
    forwards = _replacements(adapted, rows)
    _require_all(adapted, names, forwards)
    with replaced(forwards):
        yield rows


@contextmanager
def replaced(forwards: Mapping[Any, Forward]) -> Iterator[None]:
    """Within the block, each of the modules has another forward pass."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward  # the class's own is back


def _replacements(adapted: AdaptedModel, rows: GradientRows) -> dict[nn.Module, Forward]:
    """The modules that hold trained parameters, with the forward pass that records them."""
    found: dict[nn.Module, Forward] = {
        layer: _lora_forward(path, layer, rows)
        for path, layer in adapted.layers.items()
        if any(rows.holds(parameter) for parameter in _factors(layer))
    }
    inside = {module for layer in adapted.layers.values() for module in layer.modules()}
    for path, module in adapted.model.named_modules():
        own = list(module.parameters(recurse=False))
        if module not in inside and type(module) is nn.Linear and any(rows.holds(parameter) for parameter in own):
            found[module] = _head_forward(path, module, rows)
    return found


def _factors(layer: LoraLayer) -> list[nn.Parameter]:
    return [*layer.lora_A.parameters(), *layer.lora_B.parameters()]


def _require_all(adapted: AdaptedModel, names: Sequence[str], replaced: Mapping[nn.Module, Forward]) -> None:
    known = {id(parameter) for module in replaced for parameter in _own(module)}
    odd = [name for name, parameter in zip(names, adapted.parameters(names), strict=True) if id(parameter) not in known]
    if odd:
        raise PrivacyError(
            f"these trained tensors belong to layers whose per-record gradient is not known: {odd}. Freeze them (for a"
            " head: model.train_head=false), or use a head that is one linear layer (model.head=mean)"
        )


def _lora_forward(path: str, layer: LoraLayer, rows: GradientRows) -> Forward:
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    dropout, scaling = layer.lora_dropout[ADAPTER], float(layer.scaling[ADAPTER])

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.check_records(x.shape[0], path)
        result: Tensor = layer.base_layer(x, *args, **kwargs)
        dropped = dropout(x)
        if isinstance(b, FactorProduct):
            update = low_rank_product(dropped, a.weight, b.R.weight, b.B.weight, scaling, rows)
        else:
            update = low_rank(dropped, a.weight, b.weight, scaling, rows)
        return result + update.to(result.dtype)

    return forward


def _head_forward(path: str, module: nn.Linear, rows: GradientRows) -> Forward:
    def forward(x: Tensor) -> Tensor:
        rows.check_records(x.shape[0], path)
        return affine(x, module.weight, module.bias, rows)

    return forward


def _own(module: nn.Module) -> list[nn.Parameter]:
    return _factors(module) if isinstance(module, LoraLayer) else list(module.parameters(recurse=False))
