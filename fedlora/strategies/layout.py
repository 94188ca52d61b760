"""Building blocks for a method's `manifest` and `start`: which tensors there are, and their first values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.init import kaiming_a
from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, Tensors, TensorSpec, factor_name
from fedlora.errors import StrategyError
from fedlora.strategies.base import Setup, State


@dataclass(frozen=True)
class Use:
    """What a method does with a kind of tensor: whether clients train it, and how it reaches them."""

    trained: bool
    delivery: Delivery


SHARED = Use(True, Delivery.ROUND)
"""Trained by the clients, averaged by the server, sent both ways in every round."""

FIXED = Use(False, Delivery.ONCE)
"""The same for everyone and never changed: sent once."""


def adapter_manifest(setup: Setup, form: Form, factors: Mapping[Role, Use], head: Use = SHARED) -> Manifest:
    """The manifest of a method: for each module in `setup`'s order the `factors` in their order, then the head.

    head: what happens to the task's head if `setup.train_head`; a head that is not trained is `FIXED`.

    Raises StrategyError if there is no module to adapt, or the rank exceeds a side of one.
    """
    check_rank(setup)
    specs = {
        factor_name(module, role): TensorSpec(_shape(role, sides, setup.r), role, module, use.trained, use.delivery)
        for module, sides in setup.modules.items()
        for role, use in factors.items()
    }
    head_use = head if setup.train_head else FIXED
    for name, array in setup.head.items():
        dtype = str(array.dtype)
        specs[name] = TensorSpec(array.shape, Role.HEAD, "", head_use.trained, head_use.delivery, dtype)
    return Manifest(form, setup.r, setup.scaling, setup.seed, specs)


def _shape(role: Role, sides: tuple[int, int], r: int) -> tuple[int, int]:
    d, k = sides
    return {Role.A: (r, k), Role.B: (d, r), Role.R: (r, r)}[role]


def check_rank(setup: Setup) -> None:
    """Raises StrategyError if there is no module to adapt, or `setup.r` exceeds the smaller side of one.

    A rank above min(d, k) buys nothing, and r orthonormal vectors do not exist there.
    """
    if not setup.modules:
        raise StrategyError("no module of the model is adapted: name some in adapter.targets")
    module, (d, k) = min(setup.modules.items(), key=lambda item: min(item[1]))
    if setup.r > min(d, k):
        raise StrategyError(
            f"adapter.r={setup.r} is above {min(d, k)}, the smaller side of {module!r} ({d} × {k}):"
            f" set adapter.r to at most {min(d, k)}, or leave that module out of adapter.targets"
        )


def lora_values(setup: Setup) -> dict[str, NDArray[Any]]:
    """LoRA's usual start, by manifest name: A Kaiming uniform from the seed, B = 0 (so ΔW = 0); and the head."""
    values: dict[str, NDArray[Any]] = dict(setup.head)
    for module, (d, k) in setup.modules.items():
        values[factor_name(module, Role.A)] = kaiming_a(setup.seed, module, setup.r, k)
        values[factor_name(module, Role.B)] = np.zeros((d, setup.r), dtype=np.float32)
    return values


def initial_state(manifest: Manifest, values: Tensors) -> State:
    """The state before round 1: each of `values` where its delivery puts it, in the manifest's dtype and order.

    Tensors of `Delivery.SEED` are derived by whoever needs them and kept nowhere.

    Raises StrategyError for a value that is missing or has another shape than the manifest says.
    """
    placed: dict[Delivery, dict[str, NDArray[Any]]] = {delivery: {} for delivery in Delivery}
    for name, spec in manifest.tensors.items():
        if spec.delivery is not Delivery.SEED:
            placed[spec.delivery][name] = _checked(name, values, spec)
    return State(manifest, placed[Delivery.ROUND], fixed=placed[Delivery.ONCE], local=placed[Delivery.LOCAL])


def _checked(name: str, values: Tensors, spec: TensorSpec) -> NDArray[Any]:
    if name not in values:
        raise StrategyError(f"the strategy gives no initial value for tensor {name!r} of its own manifest")
    if values[name].shape != spec.shape:
        raise StrategyError(
            f"the strategy's initial value for {name!r} has shape {values[name].shape}; its manifest says {spec.shape}"
        )
    return np.ascontiguousarray(values[name], dtype=spec.dtype)
