from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlora.adapters import algebra
from fedlora.adapters.products import ProductSum
from fedlora.errors import StrategyError
from fedlora.strategies.base import Update
from fedlora.strategies.fedavg import FedAvg
from fedlora.strategies.lora_fair import LoraFair, Problem, cosine, ridge
from tests.strategies import worlds

Matrix = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, *, clients: int = 3, spread: float = 0.5, d: int = 9, k: int = 8, r: int = 2) -> Problem:
    """Clients that agree on a direction, and the means of their factors."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((d, r)), rng.standard_normal((r, k))
    own = [tuple(each + spread * rng.standard_normal(each.shape) for each in common) for _ in range(clients)]
    target = ProductSum((d, k))
    for left, right in own:
        target = target.plus(left, right, 1 / clients)
    return Problem(target, np.mean([b for b, _ in own], axis=0), np.mean([a for _, a in own], axis=0))


def dense(case: Problem) -> Matrix:
    return case.target.times(np.eye(case.a.shape[1]))


def dense_cosine(one: Matrix, other: Matrix) -> float:
    return float(np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other))


def slope(function: Callable[[Matrix], float], at: Matrix) -> Matrix:
    """The gradient by central differences."""
    result, step = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = step
        result[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return result


@given(seeds, st.sampled_from([0.01, 0.3, 1.0, 25.0]))
@settings(max_examples=40)
def test_ridge_equals_the_dense_solution(seed: int, lam: float) -> None:
    case = problem(seed)
    residual = dense(case) - case.b @ case.a
    r = case.a.shape[0]
    # min ‖residual − X·Ā‖² + λ‖X‖² is a least-squares problem: [Āᵀ; √λ·I]·Xᵀ ≈ [residualᵀ; 0].
    system = np.vstack([case.a.T, np.sqrt(lam) * np.eye(r)])
    wanted = np.vstack([residual.T, np.zeros((r, residual.shape[0]))])
    expected = np.linalg.lstsq(system, wanted, rcond=None)[0].T
    np.testing.assert_allclose(ridge(case, lam, 1), expected, atol=1e-10 * np.linalg.norm(case.b))


@given(seeds)
@settings(max_examples=20)
def test_unregularised_ridge_is_the_least_norm_solution_also_where_a_lacks_a_rank(seed: int) -> None:
    case = problem(seed, r=3)
    flat = replace(case, a=np.vstack([case.a[:2], case.a[0] - 2 * case.a[1]]))
    for each in (case, flat):
        expected = (dense(each) - each.b @ each.a) @ np.linalg.pinv(each.a)
        np.testing.assert_allclose(ridge(each, 0.0, 1), expected, atol=1e-8)


@given(seeds, st.floats(0, 10))
@settings(max_examples=40)
def test_ridge_never_raises_the_error(seed: int, lam: float) -> None:
    case = problem(seed)
    done = case.outcome(ridge(case, lam, 1))
    assert done.error_after <= done.error_before * (1 + 1e-12)


@given(seeds, st.sampled_from([0.0, 1e-4, 1e-3, 1e-2, 0.1]))
@settings(max_examples=60)
def test_the_cosine_and_the_objective_never_get_worse(seed: int, lam: float) -> None:
    case = problem(seed)
    delta = cosine(case, lam, 300)
    after = dense_cosine(dense(case), (case.b + delta) @ case.a)
    before = dense_cosine(dense(case), case.b @ case.a)
    assert after >= before - 1e-13
    assert 1 - after + lam * np.linalg.norm(delta) <= 1 - before + 1e-13


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lam", [1e-4, 1e-3, 1e-2])
def test_the_cosine_solver_ends_where_the_dense_objective_is_stationary(seed: int, lam: float) -> None:
    case = problem(seed)
    target = dense(case)

    def misalignment(delta: Matrix) -> float:
        return 1 - dense_cosine(target, (case.b + delta) @ case.a)

    delta = cosine(case, lam, 2000)
    gradient = slope(misalignment, delta)
    length = np.linalg.norm(delta)
    if length == 0:  # then the norm's subgradients, all matrices up to length λ, must balance it
        assert np.linalg.norm(gradient) <= lam * 1.001
    else:
        assert np.linalg.norm(gradient + lam * delta / length) < 1e-5


def test_both_outcomes_of_the_penalty_occur() -> None:
    case = problem(0)
    assert np.any(cosine(case, 1e-3, 300))
    assert not np.any(cosine(case, 1.0, 300))


def test_without_a_penalty_the_cosine_reaches_the_best_that_a_allows() -> None:
    case = problem(1)
    target = dense(case)
    q, _ = np.linalg.qr(case.a.T)
    best = np.linalg.norm(target @ q) / np.linalg.norm(target)
    delta = cosine(case, 0.0, 2000)
    assert dense_cosine(target, (case.b + delta) @ case.a) == pytest.approx(best, abs=1e-10)


@given(seeds)
@settings(max_examples=20)
def test_figures_from_factors_equal_dense_ones(seed: int) -> None:
    case = problem(seed)
    delta = np.random.default_rng(seed).standard_normal(case.b.shape)
    done, target = case.outcome(delta), dense(case)
    before, after = case.b @ case.a, (case.b + delta) @ case.a
    assert done.cosine_before == pytest.approx(dense_cosine(target, before), abs=1e-12)
    assert done.cosine_after == pytest.approx(dense_cosine(target, after), abs=1e-12)
    assert done.error_before == pytest.approx(np.linalg.norm(target - before), rel=1e-9)
    assert done.error_after == pytest.approx(np.linalg.norm(target - after), rel=1e-9)
    assert done.target == pytest.approx(np.linalg.norm(target), rel=1e-12)


@pytest.mark.parametrize("solver", [cosine, ridge])
def test_many_clients_give_the_same_correction_as_the_dense_sum(
    solver: Callable[[Problem, float, int], Matrix],
) -> None:
    case = problem(2, clients=12)
    assert case.target.dense is not None
    left, s, right = np.linalg.svd(dense(case))
    thin = replace(case, target=ProductSum((9, 8), (left[:, :8] * s,), (right,)))
    np.testing.assert_allclose(solver(case, 1e-3, 300), solver(thin, 1e-3, 300), atol=1e-7)


@pytest.mark.parametrize("solver", ["cosine", "ridge"])
def test_a_huge_penalty_gives_fedit(solver: str) -> None:
    strategy = LoraFair(solver=solver, regularization=1e15)  # type: ignore[arg-type]
    made = worlds.setup()
    state = worlds.start(strategy, made, dtype="float32")
    answers = worlds.updates(state, 5)
    fair, metrics = worlds.aggregate(strategy, state, answers)
    plain, _ = worlds.aggregate(FedAvg(), worlds.start(FedAvg(), made, dtype="float32"), answers)
    assert all(np.array_equal(fair.shared[name], plain.shared[name]) for name in plain.shared)
    assert metrics["fair_relative_correction"] < 1e-10
    assert metrics["fair_error_after"] == pytest.approx(metrics["fair_error_before"], rel=1e-12)


@pytest.mark.parametrize("solver", ["cosine", "ridge"])
def test_the_reported_figures_are_those_of_the_new_state(solver: str) -> None:
    strategy = LoraFair(solver=solver, regularization=1e-3)  # type: ignore[arg-type]
    state = worlds.start(strategy, worlds.setup())
    answers = worlds.updates(state, 5)
    fair, metrics = worlds.aggregate(strategy, state, answers)
    plain, _ = worlds.aggregate(FedAvg(), state, answers)
    assert metrics["fair_error_before"] == pytest.approx(worlds.dense_error(state, answers, plain), rel=1e-9)
    assert metrics["fair_error_after"] == pytest.approx(worlds.dense_error(state, answers, fair), rel=1e-9)
    names = [name for name in plain.shared if name.endswith("lora_B")]
    sizes = [
        np.linalg.norm([np.linalg.norm(part) for part in parts])
        for parts in (
            [fair.shared[name] - plain.shared[name] for name in names],
            [plain.shared[name] for name in names],
        )
    ]
    assert metrics["fair_relative_correction"] == pytest.approx(sizes[0] / sizes[1], rel=1e-9)
    assert metrics["fair_relative_correction"] > 0
    cosines = [
        dense_cosine(worlds.dense_mean(state, answers, module), worlds.dense(state.manifest, fair.shared, module))
        for module in worlds.MODULES
    ]
    assert metrics["fair_cosine_after"] == pytest.approx(np.mean(cosines), rel=1e-12)
    assert metrics["fair_cosine_after"] > metrics["fair_cosine_before"]


@pytest.mark.parametrize("solver", ["cosine", "ridge"])
def test_no_change_and_cancelling_changes_leave_a_usable_state(solver: str) -> None:
    strategy = LoraFair(solver=solver)  # type: ignore[arg-type]
    state = worlds.start(strategy, worlds.setup())
    still, metrics = worlds.aggregate(strategy, state, [Update(0, state.shared, 1.0)])
    assert all(np.array_equal(still.shared[name], state.shared[name]) for name in state.shared)
    assert metrics["fair_error_after"] == metrics["fair_relative_correction"] == 0.0
    # B̄ = 0 though ΔW* ≠ 0: B₁ = −B₂ with different A. The cosine is undefined there.
    one = worlds.updates(state, 1)[0]
    other = {name: -array if name.endswith("lora_B") else 2 * array for name, array in one.tensors.items()}
    new, metrics = worlds.aggregate(strategy, state, [replace(one, weight=1.0), Update(1, other, 1.0)])
    assert all(np.isfinite(array).all() for array in new.shared.values())
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["fair_cosine_before"] == 0.0
    assert metrics["fair_error_after"] <= metrics["fair_error_before"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "sgd"}, "strategy.solver='sgd'.*'cosine' or 'ridge'"),
        ({"regularization": -0.1}, "strategy.regularization=-0.1.*greater than or equal to 0"),
        ({"regularization": float("inf")}, "strategy.regularization=inf.*finite"),
        ({"max_steps": 0}, "strategy.max_steps=0.*greater than or equal to 1"),
        ({"solver": "x", "max_steps": 1.5}, "solver='x'.*max_steps=1.5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(StrategyError, match=said):
        LoraFair(**options)  # type: ignore[arg-type]


def test_a_problem_needs_no_dense_matrix_while_few_clients_report() -> None:
    case = problem(3, clients=2, d=40, k=30)
    assert case.target.dense is None
    assert case.cosine(case.b) == pytest.approx(
        algebra.safe_cosine(float(np.sum(dense(case) * (case.b @ case.a))), case.size, algebra.norm((case.b, case.a)))
    )
