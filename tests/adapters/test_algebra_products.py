import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlora.adapters.products import ProductSum

Term = tuple[NDArray[np.float64], NDArray[np.float64], float]


def terms(seed: int, d: int, k: int, ranks: list[int]) -> list[Term]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((d, r)), rng.standard_normal((r, k)), float(rng.uniform(0.1, 5))) for r in ranks]


def total(d: int, k: int, parts: list[Term]) -> ProductSum:
    result = ProductSum((d, k))
    for left, right, weight in parts:
        result = result.plus(left, right, weight)
    return result


@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.integers(1, 10), st.lists(st.integers(1, 5), max_size=8))
def test_factors_and_dense_accumulator_give_the_same_sum(seed: int, d: int, k: int, ranks: list[int]) -> None:
    parts = terms(seed, d, k, ranks)
    result = total(d, k, parts)
    expected = sum((w * left @ right for left, right, w in parts), np.zeros((d, k)))
    scale = 1e-12 * (1 + sum(w * np.linalg.norm(left) * np.linalg.norm(right) for left, right, w in parts))
    np.testing.assert_allclose(result.times(np.eye(k)), expected, atol=scale)
    assert result.norm() == pytest.approx(np.linalg.norm(expected), abs=scale)
    assert result.scaled(-0.5).norm() == pytest.approx(0.5 * np.linalg.norm(expected), abs=scale)
    assert result.rank < min(d, k)
    assert (result.dense is not None) == (sum(ranks) >= min(d, k))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), max_size=9), st.integers(0, 9))
def test_merged_parts_equal_one_sum_wherever_it_is_cut(seed: int, ranks: list[int], cut: int) -> None:
    parts = terms(seed, 9, 7, ranks)
    whole = total(9, 7, parts).times(np.eye(7))
    for first, second in [(parts[:cut], parts[cut:]), (parts[cut:], parts[:cut])]:
        merged = total(9, 7, first).merge(total(9, 7, second))
        np.testing.assert_allclose(merged.times(np.eye(7)), whole, atol=1e-11)
        assert merged.rank < 7


def test_it_stays_factored_while_it_can_and_bounded_afterwards() -> None:
    parts = terms(0, 40, 30, [4] * 100)
    sum_so_far = ProductSum((40, 30))
    for count, (left, right, weight) in enumerate(parts, start=1):
        sum_so_far = sum_so_far.plus(left, right, weight)
        assert (sum_so_far.dense is None) == (count * 4 < 30)
        numbers = sum(each.size for each in (*sum_so_far.lefts, *sum_so_far.rights)) + 40 * 30
        assert numbers <= 40 * 30 + 30 * (40 + 30)


def test_a_sum_owns_its_numbers() -> None:
    (left, right, _), *_ = terms(0, 5, 6, [2])
    result = ProductSum((5, 6)).plus(left, right)
    before = result.norm()
    left[:], right[:] = 0, 0
    assert result.norm() == before > 0


def test_zero_terms_are_not_kept() -> None:
    (left, right, _), *_ = terms(0, 5, 6, [2])
    empty = ProductSum((5, 6))
    assert empty.plus(left, right, 0.0) is empty
    assert empty.plus(0 * left, right) is empty
    assert empty.plus(left, 0 * right) is empty
    assert empty.norm() == 0.0
    np.testing.assert_array_equal(empty.times(np.eye(6)), np.zeros((5, 6)))


def test_wrong_shapes_are_refused() -> None:
    (left, right, _), *_ = terms(0, 5, 6, [2])
    with pytest.raises(ValueError, match=r"do not make a \(6, 5\) product"):
        ProductSum((6, 5)).plus(left, right)
    with pytest.raises(ValueError, match="do not make"):
        ProductSum((5, 6)).plus(left[:, :1], right)
    with pytest.raises(ValueError, match="cannot be added"):
        ProductSum((5, 6)).merge(ProductSum((6, 5)))
