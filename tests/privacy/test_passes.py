"""Sampled units are dealt into passes: each once, to its client, within the limit, and at the least cost."""

from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.privacy.passes import cuts, passes

LENGTHS = np.arange(1, 101)
OWNED = st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), max_size=6), min_size=1, max_size=4)
TEXTS = SimpleNamespace(lengths=LENGTHS)


def dealt(owned: list[list[list[int]]], encoded: Any, size: int) -> list[list[list[list[int]]]]:
    arrays = [[np.array(unit, np.int64) for unit in units] for units in owned]
    return [[[unit.tolist() for unit in mine] for mine in each] for each in passes(arrays, encoded, size)]


@given(OWNED, st.integers(1, 12), st.sampled_from([TEXTS, SimpleNamespace()]))
def test_each_unit_comes_once_and_to_its_client(owned: list[list[list[int]]], size: int, encoded: Any) -> None:
    found = dealt(owned, encoded, size)
    for client, units in enumerate(owned):
        assert sorted(unit for each in found for unit in each[client]) == sorted(units)
    for each in found:
        units = [unit for mine in each for unit in mine]
        assert units
        assert sum(map(len, units)) <= size or len(units) == 1


def test_nobody_sampled_is_no_pass() -> None:
    assert dealt([[], []], TEXTS, 8) == []


def cost(rows: list[int], longest: list[int], places: tuple[int, ...]) -> float:
    edges = [0, *places, len(rows)]
    parts = list(pairwise(edges))
    return sum(96 + sum(rows[a:b]) * longest[b - 1] * (1 + longest[b - 1] / 512) for a, b in parts)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 200)), min_size=1, max_size=8))
def test_the_cut_costs_no_more_than_any_other(units: list[tuple[int, int]]) -> None:
    units = sorted(units, key=lambda unit: unit[1])
    rows, longest = [each[0] for each in units], [each[1] for each in units]
    found = cuts(np.array(rows), np.array(longest), size=100)
    others = [places for count in range(len(rows)) for places in combinations(range(1, len(rows)), count)]
    least = min(cost(rows, longest, places) for places in others)
    assert cost(rows, longest, tuple(found)) == pytest.approx(least)


def test_long_texts_do_not_pad_short_ones() -> None:
    """And texts of like length stay together: a pass has its price."""
    short, long = [[row] for row in range(10, 14)], [[row] for row in range(90, 94)]
    found = dealt([short[:2] + long[:2], short[2:] + long[2:]], TEXTS, 64)
    assert found == [[short[:2], short[2:]], [long[:2], long[2:]]]
