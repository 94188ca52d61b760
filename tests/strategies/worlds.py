"""Small made-up runs for the tests of strategies: sizes, values and updates, in float64 where exactness is tested."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters import algebra
from fedlora.adapters.manifest import Manifest, Tensors
from fedlora.strategies.base import Partial, Setup, State, Strategy, Update, global_tensors

MODULES = {"layer.0.query": (12, 9), "layer.0.value": (12, 9), "layer.1.out": (7, 15)}


def no_gradient(rows: str) -> Tensors:
    raise AssertionError(f"asked for a gradient on {rows} rows")


def base_weight(module: str) -> NDArray[Any]:
    d, k = MODULES[module]
    return np.random.default_rng(len(module)).standard_normal((d, k)).astype(np.float32)


def setup(
    r: int = 3,
    *,
    seed: int = 5,
    scaling: float = 2.0,
    train_head: bool = True,
    gradient: Callable[[str], Tensors] = no_gradient,
) -> Setup:
    head = {"head.score.weight": np.full((2, 4), 0.5, dtype=np.float32)}
    return Setup(MODULES, r, scaling, seed, head, train_head, base_weight, gradient)


def start(strategy: Strategy, made: Setup, *, dtype: str = "float64") -> State:
    """The first state, with everything in `dtype`."""
    state = strategy.start(made)
    specs = {name: replace(spec, dtype=dtype) for name, spec in state.manifest.tensors.items()}
    cast = {
        part: {name: array.astype(dtype) for name, array in getattr(state, part).items()}
        for part in ("shared", "fixed", "local")
    }
    return replace(state, manifest=replace(state.manifest, tensors=specs), **cast)


def updates(state: State, clients: int, *, seed: int = 0, spread: float = 0.3) -> list[Update]:
    """Answers that share a direction, so that averaging loses something but not everything."""
    rng = np.random.default_rng(seed)
    specs = {name: state.manifest.tensors[name] for name in state.manifest.uploaded()}
    common = {name: rng.standard_normal(spec.shape) for name, spec in specs.items()}
    return [
        Update(
            client,
            {
                name: (state.shared[name] + common[name] + spread * rng.standard_normal(spec.shape)).astype(spec.dtype)
                for name, spec in specs.items()
            },
            float(rng.integers(1, 40)),
        )
        for client in range(clients)
    ]


def fold(strategy: Strategy, state: State, answers: list[Update]) -> Partial:
    partial = strategy.begin(state)
    for answer in answers:
        partial = strategy.fold(state, partial, answer)
    return partial


def aggregate(strategy: Strategy, state: State, answers: list[Update]) -> tuple[State, dict[str, float]]:
    new, metrics = strategy.finish(state, fold(strategy, state, answers))
    return new, dict(metrics)


def dense(manifest: Manifest, tensors: Tensors, module: str) -> NDArray[np.float64]:
    """left·right of one module, multiplied out."""
    left, right = algebra.product(manifest, tensors, module)
    return left @ right


def dense_mean(state: State, answers: list[Update], module: str) -> NDArray[np.float64]:
    """ΔW* of one module, by brute force."""
    known = global_tensors(state)
    total = sum(each.weight for each in answers)
    return sum(
        (each.weight / total * dense(state.manifest, {**known, **each.tensors}, module) for each in answers),
        np.zeros(MODULES[module]),
    )


def dense_error(state: State, answers: list[Update], new: State) -> float:
    """‖ΔW* − ΔW_new‖/‖ΔW*‖ over all modules, by brute force."""
    after = global_tensors(new)
    targets = {module: dense_mean(state, answers, module) for module in MODULES}
    gaps = [np.linalg.norm(targets[module] - dense(state.manifest, after, module)) for module in MODULES]
    return float(np.linalg.norm(gaps) / np.linalg.norm([np.linalg.norm(each) for each in targets.values()]))
