"""How far a round's new adapter is from the mean of what its clients learned.

    error = ‖ΔW* − ΔW_new‖_F / ‖ΔW*‖_F        over all adapted modules together,

where ΔW* = Σ p_k·L_k·M_k is the weighted mean of the clients' products and ΔW_new = L·M that of the state after the
round. The scaling s cancels.

Exactly, from centred factors. With means L̄ = Σ p_k·L_k and M̄ = Σ p_k·M_k,

    ΔW* − L·M = Σ p_k·(L_k − L̄)(M_k − M̄) + (L̄ − L)·M̄ + L·(M̄ − M),

where every term is small by itself; the difference of the two large products is never taken. A method that shares one
of its factors (FFA-LoRA, Fed-SB) has M_k = M̄ = M, and what is left is the rounding of the new L to the wire's dtype.

From a sketch, for a large cohort. With Ω of shape (k, q), entries N(0, 1), E‖X·Ω‖_F² = q·‖X‖_F². Σ w_k·L_k·(M_k·Ω)
streams in d·q numbers a module and needs no update to be kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlora.adapters.algebra import Factors, Matrix, product
from fedlora.adapters.manifest import Delivery, Manifest, Role, Tensors
from fedlora.adapters.products import ProductSum
from fedlora.errors import StrategyError
from fedlora.seeding import stream
from fedlora.strategies.base import State, Update, global_tensors

MAX_EXACT = 32
"""Clients up to which the error is exact. Until the round ends their updates are kept, 32 adapters in memory (10 MB for
MiniLM at r = 8, 0.5 GB for a 7B model at r = 16), and the QR at the end costs O((d + k)·(32·r)²) a module: well below
a second for MiniLM. Both grow with the cohort, the second with its square."""

SKETCH_COLUMNS = 64
"""q. The standard error of an estimated norm is at most 1/√(2q) = 9 % of it, for a single module whose difference has
rank one; over m alike modules it is √m times smaller (2.6 % for 12)."""


@dataclass(frozen=True)
class MeasuredError:
    """`value` ≥ 0, 0 for an exact aggregate; `estimated` says that a random sketch gave it."""

    value: float
    estimated: bool


@dataclass(frozen=True)
class AggregationError:
    """Collects the updates that a strategy folds. Immutable; measures over disjoint sets of clients merge.

    Make one with `begin`. known: every tensor of the model before the round; a client's update replaces those that it
    trained.
    """

    manifest: Manifest
    known: Tensors
    max_exact: int
    held: tuple[Update, ...] = ()
    sketch: "_Sketch | None" = None

    @classmethod
    def begin(cls, state: State, max_exact: int = MAX_EXACT) -> "AggregationError":
        """An empty measure of a round that starts at `state`; exact for up to `max_exact` ≥ 0 clients."""
        return cls(state.manifest, global_tensors(state), max_exact)

    @property
    def defined(self) -> bool:
        """Whether there is an error to tell: not where clients keep a factor, as the server then knows no ΔW_k."""
        specs = self.manifest.tensors
        return all(specs[name].role is Role.HEAD for name in self.manifest.names(Delivery.LOCAL))

    def fold(self, update: Update) -> "AggregationError":
        """This measure with one more client's `update` counted in."""
        return replace(self, held=(*self.held, update))._bounded() if self.defined else self

    def merge(self, other: "AggregationError") -> "AggregationError":
        """The measure over both sets of clients; `other` must come from the same round."""
        sketch = self.sketch.plus(other.sketch) if self.sketch and other.sketch else self.sketch or other.sketch
        return replace(self, held=self.held + other.held, sketch=sketch)._bounded()

    def finish(self, state: State) -> MeasuredError | None:
        """The error of the aggregate `state` that the round ended with; 0 if ‖ΔW*‖ = 0. None if it is not `defined`.

        Raises StrategyError if no update was counted in.
        """
        if not self.defined:
            return None
        if not self.held and self.sketch is None:
            raise StrategyError("no client's update was counted in: there is no aggregation error to tell")
        tensors = global_tensors(state)
        new = {module: product(self.manifest, tensors, module) for module in self.manifest.modules()}
        squares = self._exact(new) if self.sketch is None else self.sketch.squares(new)
        gap, target = np.sum(squares, axis=0)
        return MeasuredError(float(np.sqrt(gap / target)) if target > 0 else 0.0, self.sketch is not None)

    def _exact(self, new: Mapping[str, Factors]) -> list[tuple[float, float]]:
        clients = [self._client(update) for update in self.held]
        weights = [update.weight for update in self.held]
        return [
            _squares([product(self.manifest, client, module) for client in clients], weights, new[module])
            for module in new
        ]

    def _client(self, update: Update) -> Tensors:
        return {**self.known, **update.tensors}

    def _bounded(self) -> "AggregationError":
        """Itself, or with the updates moved into a sketch if they are too many to keep."""
        if self.sketch is None and len(self.held) <= self.max_exact:
            return self
        sketch = self.sketch or _Sketch.empty(self.manifest)
        for update in self.held:
            sketch = sketch.with_client(self.manifest, self._client(update), update.weight)
        return replace(self, held=(), sketch=sketch)


def _squares(clients: Sequence[Factors], weights: Sequence[float], new: Factors) -> tuple[float, float]:
    """‖ΔW* − ΔW_new‖² and ‖ΔW*‖² of one module."""
    shares = np.asarray(weights) / np.sum(weights)
    left, right = (_mean([factors[side] for factors in clients], shares) for side in (0, 1))
    spread = ProductSum((left.shape[0], right.shape[1]))
    for (client_left, client_right), share in zip(clients, shares, strict=True):
        spread = spread.plus(client_left - left, client_right - right, share)
    gap = spread.plus(left - new[0], right).plus(new[0], right - new[1])
    return gap.norm() ** 2, spread.plus(left, right).norm() ** 2


def _mean(matrices: Sequence[Matrix], shares: Matrix) -> Matrix:
    """Σ share·matrix, taken around the first: equal matrices give exactly that matrix."""
    first = matrices[0]
    return first + sum(
        (share * (each - first) for each, share in zip(matrices, shares, strict=True)), np.zeros_like(first)
    )


@dataclass(frozen=True)
class _Sketch:
    """Σ w and, for each module, Ω of shape (k, q) and Σ w·L·(M·Ω) of shape (d, q)."""

    weight: float
    omegas: Mapping[str, Matrix]
    sums: Mapping[str, Matrix]

    @classmethod
    def empty(cls, manifest: Manifest) -> "_Sketch":
        # From the run's seed and the module alone, so that sketches of different workers may be added.
        omegas = {module: _omega(manifest, module) for module in manifest.modules()}
        return cls(0.0, omegas, dict.fromkeys(omegas, np.zeros(())))

    def with_client(self, manifest: Manifest, tensors: Tensors, weight: float) -> "_Sketch":
        sums = {}
        for module, omega in self.omegas.items():
            left, right = product(manifest, tensors, module)
            sums[module] = self.sums[module] + weight * (left @ (right @ omega))
        return replace(self, weight=self.weight + weight, sums=sums)

    def plus(self, other: "_Sketch") -> "_Sketch":
        sums = {module: self.sums[module] + other.sums[module] for module in self.sums}
        return replace(self, weight=self.weight + other.weight, sums=sums)

    def squares(self, new: Mapping[str, Factors]) -> list[tuple[float, float]]:
        """For each module, q·‖ΔW* − ΔW_new‖² and q·‖ΔW*‖², estimated: their ratio needs no 1/q."""
        result = []
        for module, (left, right) in new.items():
            target = self.sums[module] / self.weight
            gap = target - left @ (right @ self.omegas[module])
            result.append((float(np.sum(gap**2)), float(np.sum(target**2))))
        return result


def _omega(manifest: Manifest, module: str) -> Matrix:
    columns = next(spec.shape[1] for spec in manifest.tensors.values() if spec.module == module and spec.role is Role.A)
    return stream(manifest.seed, "aggregation_error", module).standard_normal((columns, SKETCH_COLUMNS))
