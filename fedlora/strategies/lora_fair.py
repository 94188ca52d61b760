"""LoRA-FAIR: FedIT, and then a correction of B towards the mean of the clients' products.

Bian, Wang, Zhang, Xu, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV
2025, arXiv:2411.14961.

With Ā = Σ p_k·A_k, B̄ = Σ p_k·B_k and ΔW* = Σ p_k·B_k·A_k, for each module by itself,

    ΔB = argmin S(ΔW*, (B̄ + ΔB)·Ā) + λ·R(ΔB)        (Eq. 8),        A ← Ā,   B ← B̄ + ΔB.

solver=cosine   S = 1 − cos, R = ‖ΔB‖_F (not squared): the paper's. The paper runs SGD; the norm has no gradient at
                ΔB = 0, where the search starts, so this is proximal gradient descent with backtracking, in which the
                objective never rises. So the cosine never ends below that of FedIT.
solver=ridge    S = ‖ΔW* − (B̄ + ΔB)·Ā‖_F², R = ‖ΔB‖_F²: a closed form; the aggregation error never rises.

The two λ weigh different things. Neither solver forms a d×k matrix while few clients report: all that they need of ΔW*
is its norm and its product with the row space of Ā. Not exact: ΔB can express only what lies in the row space of Ā.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedlora.adapters.algebra import Matrix, float64, product, safe_cosine
from fedlora.adapters.algebra import norm as product_norm
from fedlora.adapters.manifest import Form, Manifest, Role, factor_name
from fedlora.adapters.products import ProductSum
from fedlora.strategies.base import Metrics, Partial, Setup, State, Strategy, Update
from fedlora.strategies.layout import SHARED, adapter_manifest, initial_state, lora_values


@dataclass(frozen=True)
class LoraFair(Strategy):
    """LoRA-FAIR. Bytes a module and round, each way: r·(d + k) numbers, as FedIT.

    With regularization = 0, directions that Ā lacks are left as they are.
    """

    solver: Annotated[
        Literal["cosine", "ridge"], Field(description="the paper's cosine similarity, or a closed form on distances")
    ] = "cosine"
    regularization: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="λ, the weight of the correction's size; 0: none")
    ] = 0.01
    max_steps: Annotated[int, Field(ge=1, description="cosine: proximal gradient steps at most, a module")] = 200

    name = "lora_fair"
    summary = "LoRA-FAIR: FedIT with a server-side correction of B towards the mean of the clients' products"
    paper = "Bian et al., ICCV 2025, arXiv:2411.14961"
    exact = False
    single_updates = True
    buffered = False  # B is made to fit products B_k·A_k that clients trained; a moved B and a moved A are no such pair
    defaults: ClassVar[Mapping[str, Any]] = {"adapter.r": 8, "adapter.scaling": 2.0, "train.lr": 3e-3}

    def manifest(self, setup: Setup) -> Manifest:
        """A and B of each module: trained, sent in every round."""
        return adapter_manifest(setup, Form.LORA, {Role.A: SHARED, Role.B: SHARED})

    def start(self, setup: Setup) -> State:
        """A from the seed (Kaiming uniform), B = 0."""
        return initial_state(self.manifest(setup), lora_values(setup))

    def fold(self, state: State, partial: Partial, update: Update) -> Partial:
        """Adds the factors, and each module's product w·B·A, into `extra` under the module's name."""
        extra = {}
        for module in state.manifest.modules():
            left, right = product(state.manifest, update.tensors, module)
            so_far = partial.extra.get(module, ProductSum((left.shape[0], right.shape[1])))
            extra[module] = so_far.plus(left, right, update.weight)
        return replace(super().fold(state, partial, update), extra=extra)

    def merge(self, left: Partial, right: Partial) -> Partial:
        """The partial aggregate of both sets of clients."""
        merged = super().merge(left, right)
        if not left.extra or not right.extra:
            return merged
        return replace(merged, extra={module: left.extra[module].merge(right.extra[module]) for module in left.extra})

    def finish(self, state: State, partial: Partial) -> tuple[State, Metrics]:
        """Averages, then corrects B of each module.

        Metrics, with modules weighted by their squared norms: fair_relative_correction = ‖ΔB‖/‖B̄‖ (0: λ was too
        large for any correction), fair_error_before and fair_error_after = ‖ΔW* − B·Ā‖/‖ΔW*‖ with B = B̄ and B̄ + ΔB;
        and as plain means over the modules fair_cosine_before and fair_cosine_after.
        """
        means = self.means(state, partial)
        outcomes = []
        for module in state.manifest.modules():
            name = factor_name(module, Role.B)
            a = float64(means[factor_name(module, Role.A)])  # as clients will load it
            problem = Problem(partial.extra[module].scaled(1 / partial.weight), partial.sums[name] / partial.weight, a)
            delta = _SOLVERS[self.solver](problem, self.regularization, self.max_steps)
            means[name] = (problem.b + delta).astype(means[name].dtype)
            outcomes.append(problem.outcome(delta))
        return replace(state, shared={**state.shared, **means}), _metrics(outcomes)


@dataclass(frozen=True)
class Outcome:
    """What a correction did to one module; the figures that `LoraFair.finish` adds up."""

    correction: float
    b: float
    target: float
    error_before: float
    error_after: float
    cosine_before: float
    cosine_after: float


@dataclass(frozen=True)
class Problem:
    """One module's: target ΔW* of shape (d, k), b = B̄ of shape (d, r), a = Ā of shape (r, k)."""

    target: ProductSum
    b: Matrix
    a: Matrix

    @cached_property
    def size(self) -> float:
        """‖ΔW*‖_F."""
        return self.target.norm()

    def outcome(self, delta: Matrix) -> Outcome:
        """The figures before and after B̄ becomes B̄ + `delta`."""
        after = self.b + delta
        return Outcome(
            correction=float(np.linalg.norm(delta)),
            b=float(np.linalg.norm(self.b)),
            target=self.size,
            error_before=self.target.plus(self.b, self.a, -1.0).norm(),
            error_after=self.target.plus(after, self.a, -1.0).norm(),
            cosine_before=self.cosine(self.b),
            cosine_after=self.cosine(after),
        )

    def cosine(self, b: Matrix) -> float:
        """cos(ΔW*, b·Ā), from ⟨ΔW*, b·Ā⟩ = ⟨ΔW*·Āᵀ, b⟩."""
        dot = float(np.sum(self.target.times(self.a.T) * b))
        return safe_cosine(dot, self.size, product_norm((b, self.a)))

    def row_space(self) -> tuple[Matrix, NDArray[np.float64], Matrix]:
        """Ā = U·diag(S)·Vᵀ without its zero singular values: U (r, ρ), S (ρ,), V (k, ρ)."""
        u, s, vt = np.linalg.svd(self.a, full_matrices=False)
        kept = s > np.finfo(np.float64).eps * max(self.a.shape) * s.max(initial=0.0)
        return u[:, kept], s[kept], vt[kept].T


def ridge(problem: Problem, lam: float, max_steps: int) -> Matrix:
    """argmin over ΔB of ‖ΔW* − (B̄ + ΔB)·Ā‖_F² + lam·‖ΔB‖_F², shape (d, r).

    E·Āᵀ·(Ā·Āᵀ + lam·I)⁻¹ with E = ΔW* − B̄·Ā, through the SVD of Ā: (E·V)·diag(S/(S² + lam))·Uᵀ. With lam = 0 and a
    rank-deficient Ā it is the solution of the smallest norm.
    """
    del max_steps
    u, s, v = problem.row_space()
    residual = problem.target.plus(problem.b, problem.a, -1.0)
    return (residual.times(v) * (s / (s**2 + lam))) @ u.T


def cosine(problem: Problem, lam: float, max_steps: int) -> Matrix:
    """A minimiser over ΔB of 1 − cos(ΔW*, (B̄ + ΔB)·Ā) + lam·‖ΔB‖_F, shape (d, r), found from ΔB = 0 downhill.

    0 where the cosine is undefined: if B̄·Ā = 0 or ΔW* has no part in the row space of Ā.
    """
    smooth = _Misalignment.of(problem)
    if smooth is None or not np.any(problem.b @ smooth.basis):
        return np.zeros_like(problem.b)
    return _proximal_descent(smooth, problem.b, lam, max_steps) - problem.b


_SOLVERS: Mapping[str, Callable[[Problem, float, int], Matrix]] = {"cosine": cosine, "ridge": ridge}


@dataclass(frozen=True)
class _Misalignment:
    """x ↦ 1 − cos(ΔW*, x·Ā), up to a constant and without cancellation.

    With Ā = U·S·Vᵀ let y = x·U·S, so x·Ā = y·Vᵀ and ‖x·Ā‖ = ‖y‖; and let c = ΔW*·V. Then cos = best·⟨c/‖c‖, y/‖y‖⟩ with
    best = ‖c‖/‖ΔW*‖, the largest cosine there is, and best − cos = (best/2)·‖c/‖c‖ − y/‖y‖‖².
    """

    basis: Matrix  # U·S, shape (r, ρ)
    direction: Matrix  # c/‖c‖, shape (d, ρ)
    best: float

    @classmethod
    def of(cls, problem: Problem) -> "_Misalignment | None":
        u, s, v = problem.row_space()
        projected = problem.target.times(v)
        length = float(np.linalg.norm(projected))
        if length == 0.0:
            return None
        return cls(u * s, projected / length, length / problem.size)

    def value(self, x: Matrix) -> float:
        y = x @ self.basis
        length = float(np.linalg.norm(y))
        if length == 0.0:
            return inf
        return 0.5 * self.best * float(np.linalg.norm(self.direction - y / length)) ** 2

    def gradient(self, x: Matrix) -> Matrix:
        y = x @ self.basis
        length = float(np.linalg.norm(y))
        unit = y / length
        along = float(np.sum(self.direction * unit))
        return (self.best / length) * (along * unit - self.direction) @ self.basis.T


# Halvings of the step before the search gives up: 2⁻⁶⁰ of the first step is below what float64 can add to B̄.
_HALVINGS = 60
# A step below this part of ‖B̄‖ ends the search: a tenth of what float32 on the wire can show.
_TOLERANCE = 1e-8


def _proximal_descent(smooth: _Misalignment, start: Matrix, lam: float, max_steps: int) -> Matrix:
    """Minimises smooth(x) + lam·‖x − start‖_F from `start`; the sum never rises."""
    x = start
    scale = float(np.linalg.norm(start))
    step = scale**2  # the cosine's gradient goes with 1/‖x‖, so this moves x by up to its own length
    for _ in range(max_steps):
        found = _descend(smooth, x, start, lam, step)
        if found is None:
            break
        moved, step = float(np.linalg.norm(found[0] - x)), 2 * found[1]
        x = found[0]
        if moved <= _TOLERANCE * scale:
            break
    return x


def _descend(smooth: _Misalignment, x: Matrix, start: Matrix, lam: float, step: float) -> tuple[Matrix, float] | None:
    """One proximal gradient step from x and its step size, or None if there is no way down.

    A step is taken if the quadratic bound value + ⟨gradient, move⟩ + ‖move‖²/(2·step) holds at its end, for then
    the objective cannot have risen (Beck & Teboulle, SIAM J. Imaging Sciences 2009, Lemma 2.3).
    """
    value, gradient = smooth.value(x), smooth.gradient(x)
    for _ in range(_HALVINGS):
        reached = start + _shrink(x - step * gradient - start, step * lam)
        move = reached - x
        bound = value + float(np.sum(gradient * move)) + float(np.sum(move**2)) / (2 * step)
        if smooth.value(reached) <= bound:
            return reached, step
        step /= 2
    return None


def _shrink(matrix: Matrix, threshold: float) -> Matrix:
    """The proximal map of threshold·‖·‖_F: the matrix made shorter by `threshold`, or 0."""
    length = float(np.linalg.norm(matrix))
    return matrix * (1 - threshold / length) if length > threshold else np.zeros_like(matrix)


def _metrics(outcomes: Iterable[Outcome]) -> Metrics:
    table = np.array([list(vars(outcome).values()) for outcome in outcomes])
    correction, b, target, before, after = np.linalg.norm(table[:, :5], axis=0)
    cosine_before, cosine_after = table[:, 5:].mean(axis=0)
    return {
        "fair_relative_correction": _ratio(correction, b),
        "fair_error_before": _ratio(before, target),
        "fair_error_after": _ratio(after, target),
        "fair_cosine_before": float(cosine_before),
        "fair_cosine_after": float(cosine_after),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
