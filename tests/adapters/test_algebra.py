import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters import algebra
from fedlora.adapters.algebra import Factors
from fedlora.errors import StrategyError
from fedlora.strategies.base import global_tensors
from fedlora.strategies.fed_sb import FedSb
from fedlora.strategies.fedavg import FedAvg
from tests.strategies import worlds

sides = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def factors(seed: int, d: int, k: int, r: int) -> Factors:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((d, r)), rng.standard_normal((r, k))


@given(seeds, sides, sides, sides, sides)
def test_every_figure_equals_the_one_of_the_dense_products(seed: int, d: int, k: int, r: int, other_r: int) -> None:
    one, other = factors(seed, d, k, r), factors(seed + 1, d, k, other_r)
    p, q = one[0] @ one[1], other[0] @ other[1]
    norms = np.linalg.norm(p), np.linalg.norm(q)
    assert algebra.inner(one, other) == pytest.approx(np.sum(p * q), rel=1e-11, abs=1e-11)
    assert algebra.norm(one) == pytest.approx(norms[0], rel=1e-12)
    assert algebra.distance(one, other) == pytest.approx(np.linalg.norm(p - q), rel=1e-11, abs=1e-11)
    assert algebra.cosine(one, other) == pytest.approx(np.sum(p * q) / norms[0] / norms[1], abs=1e-11)
    left, right = algebra.stack([one, other, one])
    np.testing.assert_allclose(left @ right, 2 * p + q, atol=1e-12 * (norms[0] + norms[1]))


def test_the_distance_of_nearly_equal_products_keeps_its_digits_where_a_gram_root_loses_them() -> None:
    left, right = factors(0, 60, 50, 4)
    step = 1e-9 * np.random.default_rng(1).standard_normal(left.shape)
    other = (left + step, right)
    moved = other[0] - left  # what really was added, after rounding
    true = np.linalg.norm(moved @ right)
    assert algebra.distance((left, right), other) == pytest.approx(true, rel=1e-5)
    gap = algebra.difference((left, right), other)
    by_gram = np.sqrt(max(algebra.inner(gap, gap), 0.0))
    assert abs(by_gram - true) > 0.1 * true


def test_rescaling_one_factor_against_the_other_changes_nothing() -> None:
    left, right = factors(3, 20, 30, 4)
    assert algebra.distance((left, right), (left * 50, right / 50)) < 1e-12 * algebra.norm((left, right))


def test_cosine_has_a_value_for_zero_products() -> None:
    some = factors(0, 4, 5, 2)
    zero = (np.zeros((4, 2)), some[1])
    assert algebra.cosine(zero, zero) == 1.0
    assert algebra.cosine(zero, some) == 0.0
    tiny = (some[0] * 1e-200, some[1])
    assert algebra.cosine(tiny, tiny) == pytest.approx(1.0)


@pytest.mark.parametrize(("strategy", "roles"), [(FedAvg(), "BA"), (FedSb(), "BRA")])
def test_a_product_multiplies_the_factors_of_its_form_in_float64(strategy: FedAvg | FedSb, roles: str) -> None:
    state = worlds.start(strategy, worlds.setup(), dtype="float32")
    tensors = {
        name: np.random.default_rng(0).standard_normal(array.shape).astype(np.float32)
        for name, array in global_tensors(state).items()
    }
    module = "layer.0.query"
    left, right = algebra.product(state.manifest, tensors, module)
    assert left.dtype == right.dtype == np.float64
    parts = [tensors[f"{module}.lora_{role}"].astype(np.float64) for role in roles]
    np.testing.assert_allclose(left @ right, np.linalg.multi_dot(parts), rtol=1e-12)
    del tensors[f"{module}.lora_B"]
    with pytest.raises(StrategyError, match=r"'layer\.0\.query\.lora_B' is not among"):
        algebra.product(state.manifest, tensors, module)


def test_product_distance_is_over_all_modules() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    before = global_tensors(state)
    after = {**before, **worlds.updates(state, 1)[0].tensors}
    gaps = [
        worlds.dense(state.manifest, after, module) - worlds.dense(state.manifest, before, module)
        for module in worlds.MODULES
    ]
    expected = np.sqrt(sum(np.sum(gap**2) for gap in gaps))
    assert algebra.product_distance(state.manifest, after, before) == pytest.approx(expected, rel=1e-12)
