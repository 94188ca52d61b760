"""Puts per-record gradients into an adapted model for the time of DP-SGD, and takes them out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedlora.adapters.adapted import ADAPTER, AdaptedModel
from fedlora.adapters.attach import FactorProduct
from fedlora.adapters.forwards import instead
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
    forwards = replacements(
        adapted,
        rows.holds,
        lambda path, layer: _lora_forward(path, layer, rows),
        lambda path, module: _head_forward(path, module, rows),
    )
    odd = left_out(adapted, names, forwards)
    if odd:
        raise PrivacyError(
            f"these trained tensors belong to layers whose per-record gradient is not known: {odd}. Freeze them (for a"
            " head: model.train_head=false), or use a head that is one linear layer (model.head=mean)"
        )
    with instead(forwards):
        yield rows


def replacements(
    adapted: AdaptedModel,
    holds: Callable[[Tensor], bool],
    of_adapted: Callable[[str, LoraLayer], Forward],
    of_head: Callable[[str, nn.Linear], Forward],
) -> dict[nn.Module, Forward]:
    """The adapted layers and the linear ones outside them that own a tensor which `holds`, with a forward pass each.

    of_adapted, of_head: make it, of the module's path and the module.
    """
    found: dict[nn.Module, Forward] = {
        layer: of_adapted(path, layer)
        for path, layer in adapted.layers.items()
        if any(holds(parameter) for parameter in _own(layer))
    }
    inside = {module for layer in adapted.layers.values() for module in layer.modules()}
    for path, module in adapted.model.named_modules():
        if module not in inside and type(module) is nn.Linear and any(holds(parameter) for parameter in _own(module)):
            found[module] = of_head(path, module)
    return found


def left_out(adapted: AdaptedModel, names: Sequence[str], forwards: Mapping[nn.Module, Forward]) -> list[str]:
    """Those of the tensors `names`, by manifest, that belong to none of the modules with a forward pass."""
    known = {id(parameter) for module in forwards for parameter in _own(module)}
    return [name for name, owned in zip(names, adapted.parameters(names), strict=True) if id(owned) not in known]


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
    """A module's parameters: an adapted layer's are its factors."""
    if isinstance(module, LoraLayer):
        return [*module.lora_A.parameters(), *module.lora_B.parameters()]
    return list(module.parameters(recurse=False))
