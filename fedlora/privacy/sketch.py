"""A differentially private sketch of the first step's gradients: where Fed-SB's `init=private` gets its bases from.

Record i, with inputs x_i (T, k) and output gradients g_i (T, d) at a layer, has the weight gradient G_i = g_iᵀ·x_i. Of
it only Y_i = G_i·Ω = g_iᵀ(x_i·Ω) and Z_i = G_iᵀ·Ψ = x_iᵀ(g_i·Ψ) are formed, with Ω and Ψ thin and public: the two sides
of a randomised range finder (Halko, Martinsson, Tropp, arXiv 0909.4061). All layers' pairs together are a unit's one
vector, which is clipped and noised as one step of DP-SGD (Abadi et al., arXiv 1607.00133, algorithm 1).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora.adapters.adapted import ADAPTER, AdaptedModel
from fedlora.adapters.forwards import instead
from fedlora.adapters.modules import is_transposed, weight_shape
from fedlora.errors import PrivacyError, StrategyError
from fedlora.privacy.dp_sgd import DpSgd, Learner, Units, noised_step
from fedlora.privacy.functions import compute_dtype, keep_gradient
from fedlora.privacy.layers import Forward
from fedlora.privacy.randomness import RandomSource
from fedlora.privacy.rows import GradientRows, split_like
from fedlora.seeding import portable_uniform
from fedlora.strategies.base import sketch_name


def sketch_matrices(module: str, d: int, k: int, p: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ω (k, p) and Ψ (d, p) of one module, with orthonormal columns: public, from the run's seed and its name.

    The random matrices behind them are the same bits on every host; their QR (LAPACK, float64) is so up to rounding.

    Raises StrategyError unless 1 ≤ p ≤ min(d, k).
    """
    if not 1 <= p <= min(d, k):
        raise StrategyError(
            f"a sketch of {module!r} ({d} × {k}) cannot be {p} columns wide: set adapter.r to at least 1 and at most"
            f" {min(d, k)}, or leave that module out of adapter.targets"
        )
    return _orthonormal((k, p), seed, "omega", module), _orthonormal((d, p), seed, "psi", module)


def _orthonormal(shape: tuple[int, int], seed: int, side: str, module: str) -> NDArray[np.float64]:
    """Q of a uniform random matrix, with R's diagonal made positive so that no host turns a column round."""
    q, r = np.linalg.qr(portable_uniform(shape, -1.0, 1.0, seed, "sketch", side, module))
    return np.asarray(q * np.where(np.diag(r) < 0, -1.0, 1.0), np.float64)


@dataclass(frozen=True, eq=False)
class SketchPair:
    """One module's part. omega (k, p), psi (d, p): Ω and Ψ. y (d, p), z (k, p): stand for Y and Z, without values."""

    omega: Tensor
    psi: Tensor
    y: Tensor
    z: Tensor


def sketch_pairs(adapted: AdaptedModel, width: int, seed: int) -> dict[str, SketchPair]:
    """Ω and Ψ with `width` columns for each adapted module, in the type and on the device of its adapter.

    Raises StrategyError for a width that a module does not allow.
    """
    return {path: _pair(path, layer, width, seed) for path, layer in adapted.layers.items()}


def _pair(path: str, layer: LoraLayer, width: int, seed: int) -> SketchPair:
    d, k = weight_shape(layer.get_base_layer())
    like = layer.lora_A[ADAPTER].weight
    omega, psi = (torch.from_numpy(each).to(like) for each in sketch_matrices(path, d, k, width, seed))
    return SketchPair(omega, psi, y=torch.empty_like(psi), z=torch.empty_like(omega))


@contextmanager
def sketched(adapted: AdaptedModel, pairs: Mapping[str, SketchPair]) -> Iterator[GradientRows]:
    """Within the block, a backward pass through `adapted.model` leaves each record's Y and Z of every adapted module.

    pairs: by module; a row holds Y, then Z, module by module in that order. The gradients are those at the base
    weights: the adapter is left out of the forward pass, the head has the values it has. No parameter is trained
    meanwhile, and none gets a gradient; afterwards the same ones are trained as before.

    Raises PrivacyError if an adapted module is of a kind whose per-record gradient is not known.
    """
    rows = GradientRows(_slots(pairs))
    forwards = {adapted.layers[path]: _forward(path, adapted.layers[path], pair, rows) for path, pair in pairs.items()}
    manifest = adapted.manifest
    trained = [n for n, each in zip(manifest, adapted.parameters(manifest), strict=True) if each.requires_grad]
    adapted.set_trained([])
    try:
        with instead(forwards):
            yield rows
    finally:
        adapted.set_trained(trained)


def _slots(pairs: Mapping[str, SketchPair]) -> list[Tensor]:
    return [slot for pair in pairs.values() for slot in (pair.y, pair.z)]


def _forward(path: str, layer: LoraLayer, pair: SketchPair, rows: GradientRows) -> Forward:
    base = layer.get_base_layer()
    if type(base) not in (nn.Linear, Conv1D):
        raise PrivacyError(
            f"module {path!r} is a {type(base).__name__}, whose per-record gradient is not known (only nn.Linear's and"
            " Conv1D's are): leave it out of adapter.targets, or use another strategy.init than private"
        )
    weight = base.weight.t() if is_transposed(base) else base.weight
    # What makes the output require a gradient where nothing before it does: in the first adapted module.
    anchor = torch.zeros((), device=weight.device, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        rows.check_records(x.shape[0], path)
        y: Tensor = Sketched.apply(x, anchor, weight, base.bias, pair, rows)  # type: ignore[no-untyped-call]
        return y

    return forward


class Sketched(torch.autograd.Function):
    """y = x·Wᵀ + c with W and c frozen: a base layer, each record's Y_i and Z_i left in `rows`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor, bias: Tensor | None, pair: SketchPair, rows: GradientRows
    ) -> Tensor:
        """x [n, …, k], weight [d, k], bias [d] or None → [n, …, d]. anchor: any tensor that requires a gradient."""
        del anchor
        dtype = compute_dtype(x, weight)
        ctx.pair, ctx.rows = pair, rows
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.to(dtype), weight.to(dtype)
            ctx.save_for_backward(x, weight)
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, w = ctx.saved_tensors
        g, pair = grads[0].to(x.dtype), ctx.pair
        keep_gradient(ctx.rows, pair.y, g, x @ pair.omega.to(x.dtype))
        keep_gradient(ctx.rows, pair.z, x, g @ pair.psi.to(x.dtype))
        return (g @ w if ctx.needs_input_grad[0] else None), None, None, None, None, None


def noised_sketch(
    learner: Learner, units: Units, mechanism: DpSgd, width: int, seed: int, source: RandomSource
) -> dict[str, NDArray[np.float32]]:
    """One client's release: per adapted module noised Y, shape (d, width), and Z, shape (k, width), by `sketch_name`.

    They are sums of gradients at the base weights over a Poisson sample of `units`, each unit's clipped after
    sketching, plus noise, over `mechanism.expected`. Nothing else about the units leaves. An empty sample is noise.
    Memory: 4·width·Σ(d + k) bytes a record of a micro-batch.

    Raises PrivacyError unless `mechanism.steps` is 1, or if a gradient cannot be told apart by record; StrategyError
    for a width that a module does not allow.
    """
    if mechanism.steps != 1:
        raise PrivacyError(f"a sketch is one release, but steps = {mechanism.steps} are accounted for: set steps to 1")
    pairs = sketch_pairs(learner.adapted, width, seed)
    slots = _slots(pairs)
    with sketched(learner.adapted, pairs) as rows:
        mean = noised_step(learner, rows, units, mechanism, source)
    parts = iter(split_like(mean, slots))
    return {sketch_name(module, side): next(parts).float().cpu().numpy() for module in pairs for side in ("Y", "Z")}
