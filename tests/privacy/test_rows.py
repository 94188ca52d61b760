"""Clipping: the sum that brute force gives, and no record that moves it by more than the bound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from fedlora.errors import PrivacyError
from fedlora.privacy.rows import GradientRows, clipped_sum, split_like, sum_by_unit

ROWS = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-1e3, 1e3))
BOUNDS = st.floats(1e-3, 1e3)
WILD = (1e6, 1e300, np.inf, -np.inf, np.nan)


def brute_force(rows: np.ndarray, bound: float) -> np.ndarray:
    total = np.zeros(rows.shape[1])
    for row in rows:
        norm = np.sqrt(sum(value * value for value in row))
        total += row * min(1.0, bound / norm) if norm else row
    return total


@given(ROWS, BOUNDS)
def test_the_clipped_sum_is_that_of_a_loop(rows: np.ndarray, bound: float) -> None:
    found = clipped_sum(torch.from_numpy(rows), bound).numpy()
    np.testing.assert_allclose(found, brute_force(rows, bound), rtol=1e-12, atol=1e-12 * bound)


@given(ROWS, BOUNDS, st.sampled_from(WILD))
def test_a_wild_row_moves_the_sum_by_at_most_the_bound(rows: np.ndarray, bound: float, wild: float) -> None:
    without = clipped_sum(torch.from_numpy(rows), bound)
    added = np.vstack([rows, np.full((1, rows.shape[1]), wild)])
    moved = torch.linalg.vector_norm(clipped_sum(torch.from_numpy(added), bound) - without)
    assert float(moved) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("wild", [np.nan, np.inf, 1e200])
def test_a_row_without_a_finite_norm_weighs_nothing(wild: float) -> None:
    rows = torch.tensor([[0.3, 0.4], [wild, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(clipped_sum(rows, 1.0), torch.tensor([0.3, 0.4], dtype=torch.float64))


def test_not_clipping_is_caught_by_these_tests() -> None:
    """The negative control: a plain sum moves by more than the bound."""
    rows = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert float(torch.linalg.vector_norm(rows.sum(0))) > 1.0
    assert float(torch.linalg.vector_norm(clipped_sum(rows, 1.0))) == pytest.approx(1.0)


def test_an_empty_batch_sums_to_zero() -> None:
    torch.testing.assert_close(clipped_sum(torch.empty(0, 3), 1.0), torch.zeros(3))


def test_a_units_rows_are_summed_before_the_clip() -> None:
    rows = torch.tensor([[0.6, 0.0], [0.0, 0.8], [5.0, 0.0]], dtype=torch.float64)
    units = torch.tensor([0, 0, 1])
    summed = sum_by_unit(rows, units, 2)
    torch.testing.assert_close(summed, torch.tensor([[0.6, 0.8], [5.0, 0.0]], dtype=torch.float64))
    # one person with two records moves the sum by one bound, not by two
    moved = clipped_sum(summed, 0.5) - clipped_sum(summed[1:], 0.5)
    assert float(torch.linalg.vector_norm(moved)) == pytest.approx(0.5)
    torch.testing.assert_close(sum_by_unit(rows, units, 3)[2], torch.zeros(2, dtype=torch.float64))


def test_columns_follow_the_parameters() -> None:
    first, second = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))
    rows = GradientRows([first, second])
    rows.begin(5)
    rows.slot(second).fill_(2.0)
    rows.slot(first).fill_(1.0)
    filled = rows.finish()
    assert filled.shape == (5, rows.width) == (5, 10)
    parts = split_like(filled[0], [first, second])
    assert [tuple(part.shape) for part in parts] == [(2, 3), (4,)]
    assert parts[0].eq(1).all()
    assert parts[1].eq(2).all()


def test_what_is_missing_or_comes_twice_is_refused() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    rows = GradientRows(parameters)
    rows.begin(4)
    rows.slot(parameters[0])
    with pytest.raises(PrivacyError, match="1 of 2 trained parameters got no per-record gradient"):
        rows.finish()
    with pytest.raises(PrivacyError, match="twice in one backward pass"):
        rows.slot(parameters[0])
    rows.begin(4)
    rows.slot(parameters[0])
    with pytest.raises(PrivacyError, match=r"'h\.0' was given 3 rows for a batch of 4 records"):
        rows.check_records(3, "h.0")


def test_passes_of_different_sizes_give_rows_of_their_own() -> None:
    """What a larger pass left behind is in none of the rows."""
    parameter = nn.Parameter(torch.zeros(2, 3))
    rows = GradientRows([parameter])
    for records in (2, 5, 1, 0, 3):
        rows.begin(records)
        rows.slot(parameter).copy_(torch.full((records, 2, 3), float(records)))
        found = rows.finish()
        assert found.shape == (records, 6)
        assert bool((found == records).all())
    assert rows.zeros().shape == (6,)
