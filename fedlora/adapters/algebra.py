"""Arithmetic on products left·right of thin factors, without forming them.

A product P = L·M has L of shape (d, r) and M of shape (r, k) with r far below d and k. Inner products come from small
Gram matrices,

    ⟨L₁M₁, L₂M₂⟩ = Σ_ij (L₁ᵀL₂)_ij (M₁M₂ᵀ)_ij        (O((d + k)·r₁·r₂)),

norms from QR: ‖L·M‖_F = ‖R_L·R_Mᵀ‖_F with L = Q_L·R_L and Mᵀ = Q_M·R_M. A norm is never taken as the root of a Gram
inner product: if P is a difference of nearly equal products, that root keeps half of the digits and QR keeps them all.

Everything is computed in float64.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.manifest import Form, Manifest, Role, Tensors, factor_name
from fedlora.errors import StrategyError

Matrix = NDArray[np.float64]
Factors = tuple[Matrix, Matrix]
"""(left, right) of shapes (d, r) and (r, k); they stand for left·right."""

_LEFT_ROLES = {Form.LORA: (Role.B,), Form.LORA_SB: (Role.B, Role.R)}


def product(manifest: Manifest, tensors: Tensors, module: str) -> Factors:
    """The update of `module` as factors with ΔW = s·left·right (s, the manifest's scaling, is left out).

    tensors: by manifest name, all factors of the module: shared, fixed and seed-derived ones together. left is B
    (form lora) or B·R (form lora_sb), shape (d, r); right is A, shape (r, k).

    Raises StrategyError if a factor is missing.
    """
    left = reduce(np.matmul, [_factor(tensors, module, role) for role in _LEFT_ROLES[manifest.form]])
    return left, _factor(tensors, module, Role.A)


def _factor(tensors: Tensors, module: str, role: Role) -> Matrix:
    name = factor_name(module, role)
    if name not in tensors:
        raise StrategyError(
            f"the update of module {module!r} cannot be computed: tensor {name!r} is not among the {len(tensors)}"
            " given; pass shared, fixed and seed-derived tensors together"
        )
    return float64(tensors[name])


def float64(array: NDArray[Any]) -> Matrix:
    """`array` in float64; itself, if it is already."""
    return np.asarray(array, dtype=np.float64)


def stack(terms: Sequence[Factors]) -> Factors:
    """Factors of the sum of `terms` (at least one): all lefts side by side, all rights one below the other."""
    return np.concatenate([left for left, _ in terms], axis=1), np.concatenate([right for _, right in terms], axis=0)


def difference(one: Factors, other: Factors) -> Factors:
    """Factors of one − other, of rank r₁ + r₂."""
    return stack([one, (-other[0], other[1])])


def inner(one: Factors, other: Factors) -> float:
    """The Frobenius inner product ⟨one, other⟩."""
    return float(np.sum((one[0].T @ other[0]) * (one[1] @ other[1].T)))


def norm(factors: Factors) -> float:
    """The Frobenius norm ‖left·right‖_F, with an error of a few units in the last place of ‖left‖·‖right‖."""
    left, right = factors
    return float(np.linalg.norm(_triangle(left) @ _triangle(right.T).T))


def _triangle(matrix: Matrix) -> Matrix:
    """R of matrix = Q·R, shape (min(rows, columns), columns)."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def distance(one: Factors, other: Factors) -> float:
    """‖one − other‖_F, accurate also where the two nearly agree."""
    return norm(difference(one, other))


def cosine(one: Factors, other: Factors) -> float:
    """⟨one, other⟩ / (‖one‖·‖other‖), in [−1, 1]. Two zero products count as equal (1), a zero and another as 0."""
    return safe_cosine(inner(one, other), norm(one), norm(other))


def safe_cosine(dot: float, one_norm: float, other_norm: float) -> float:
    """The cosine from an inner product and two norms, with `cosine`'s convention for zeros."""
    if one_norm == 0.0 or other_norm == 0.0:
        return float(one_norm == other_norm)
    # Divided one after the other: the product of two tiny norms could underflow.
    return float(np.clip(dot / one_norm / other_norm, -1.0, 1.0))


def product_distance(manifest: Manifest, one: Tensors, other: Tensors) -> float:
    """‖ΔW_one − ΔW_other‖_F / s over all adapted modules together; each argument holds all factors by manifest name.

    Raises StrategyError if a factor is missing.
    """
    parts = [distance(product(manifest, one, m), product(manifest, other, m)) for m in manifest.modules()]
    return float(np.linalg.norm(parts))
