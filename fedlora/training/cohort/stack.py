"""A model in which several clients' adapters are in place at once, stacked; the base is there once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedlora.adapters.adapted import ADAPTER, AdaptedModel
from fedlora.adapters.attach import FactorProduct
from fedlora.adapters.flat import Flat, layout_of
from fedlora.adapters.forwards import instead
from fedlora.adapters.manifest import Tensors
from fedlora.errors import RunError
from fedlora.privacy.functions import compute_dtype, keep_bias_gradient, keep_gradient
from fedlora.privacy.layers import Forward, left_out, replacements
from fedlora.privacy.rows import GradientRows
from fedlora.training.cohort.grouped import Deal, GroupedUpdate, Keep, Parts, grouped


class Stack:
    """The tensors in which clients differ, each as one parameter [K, *shape]; all others are the model's own.

    starts: each client's values of the same tensors, by manifest name. Of these, `trained` get gradients. rows: where
    a backward pass leaves, instead, each record's gradient of them, under the model's own parameters.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        starts: Sequence[Tensors],
        trained: Sequence[str],
        rows: GradientRows | None = None,
    ) -> None:
        self.adapted, self.clients, self.deal = adapted, len(starts), Deal()
        self.names, self._rows = list(starts[0]), rows
        own = adapted.parameters(self.names)
        self.stacked = {name: _stacked(name, starts, like) for name, like in zip(self.names, own, strict=True)}
        self.trained = [self.stacked[name] for name in trained]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self._of = {id(like): self.stacked[name] for name, like in zip(self.names, own, strict=True)}

    @torch.no_grad()
    def read_each(self, names: Sequence[str]) -> Sequence[Tensors]:
        """Copies of the named tensors of each client, in one piece each; they come from the device in one, too."""
        shapes = tuple((name, tuple(self.stacked[name].shape[1:])) for name in names)
        if not names:
            return [{}] * self.clients
        values = torch.cat([self.stacked[name].flatten(1) for name in names], 1).cpu().numpy()
        return [Flat(layout_of(shapes), values[client].copy()) for client in range(self.clients)]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the model computes each row with its client's tensors, as `deal` says.

        Raises RunError if a stacked tensor belongs to a layer for which that is not known.
        """
        forwards = replacements(self.adapted, self._holds, self._adapted_forward, self._head_forward)
        odd = left_out(self.adapted, self.names, forwards)
        if odd:
            raise RunError(
                f"these tensors belong to layers of which several clients' versions cannot be computed at once: {odd};"
                " train the clients one at a time (engine.group=1), or use a head of linear layers (model.head=mean)"
            )
        with instead(forwards):
            yield

    def linear(self, parts: Parts, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x·Wᵀ + c with each client's own W and c. parts: how many rows of x each client has, as `deal` says."""
        dtype = compute_dtype(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            each = None if bias is None else self._of[id(bias)].to(dtype)
            return grouped(x.to(dtype), self._of[id(weight)].to(dtype), each, parts, self._keeper(weight, bias))

    def _each(self, weight: Tensor) -> Tensor:
        """The clients' own values, [K, …]; the model's, seen K times, where clients do not differ."""
        found = self._of.get(id(weight))
        return weight.expand(self.clients, *weight.shape) if found is None else found

    def _keeper(self, weight: Tensor, bias: Tensor | None) -> Keep | None:
        rows = self._rows
        if rows is None:
            return None

        def keep(g: Tensor, x: Tensor) -> None:
            keep_gradient(rows, weight, g, x)
            keep_bias_gradient(rows, bias, g)

        return keep

    def _holds(self, parameter: Tensor) -> bool:
        return id(parameter) in self._of

    def _adapted_forward(self, path: str, layer: LoraLayer) -> Forward:
        factors = [layer.lora_A[ADAPTER].weight, *_outputs(layer.lora_B[ADAPTER])]
        keeps = [self._keeper(factor, None) for factor in factors]
        scaling = float(layer.scaling[ADAPTER])

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            parts = self.deal.parts(x.shape[0], path)
            y: Tensor = layer.base_layer(x, *args, **kwargs)
            dtype = compute_dtype(x, factors[0])
            with torch.autocast(x.device.type, enabled=False):
                mine = [self._each(factor).to(dtype) for factor in factors]
                found: Tensor = GroupedUpdate.apply(x, y, scaling, parts, keeps, *mine)  # type: ignore[no-untyped-call]
            return found

        return forward

    def _head_forward(self, path: str, module: nn.Linear) -> Forward:
        def forward(x: Tensor) -> Tensor:
            return self.linear(self.deal.parts(x.shape[0], path), x, module.weight, module.bias)

        return forward


def _outputs(b: nn.Module) -> list[Tensor]:
    """The weights after A, in the order in which a row meets them."""
    return [b.R.weight, b.B.weight] if isinstance(b, FactorProduct) else [b.get_parameter("weight")]


def _stacked(name: str, starts: Sequence[Mapping[str, NDArray[Any]]], like: nn.Parameter) -> nn.Parameter:
    values = torch.from_numpy(np.stack([start[name] for start in starts]))
    return nn.Parameter(values.to(dtype=like.dtype, device=like.device), requires_grad=False)
