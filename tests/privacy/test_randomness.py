"""Noise is normal of the right size, samples are Poisson at the right rate; the same tests catch wrong ones."""

import math

import numpy as np
import pytest
from scipy import stats

from fedlora.privacy.randomness import RandomSource, seeded_source, system_source

COUNT = 200_000
LEVEL = 1e-6
"""Chance that a right source fails one of these tests."""


def looks_standard_normal(values: np.ndarray) -> bool:
    """Chi-square on the variance, z on the mean, Kolmogorov-Smirnov on the whole; all at LEVEL."""
    count = len(values)
    square = stats.chi2(count).cdf((values**2).sum())
    mean = stats.norm.cdf(values.mean() * math.sqrt(count))
    whole = stats.kstest(values, "norm").pvalue
    return bool(min(square, 1 - square, mean, 1 - mean) > LEVEL / 2 and whole > LEVEL)


@pytest.mark.parametrize("source", [system_source(), seeded_source(0, "noise")], ids=["system", "seeded"])
def test_noise_is_standard_normal_and_independent(source: RandomSource) -> None:
    values = source.normal(COUNT)
    assert looks_standard_normal(values)
    again = source.normal(COUNT)
    assert not np.array_equal(values, again)
    for other in (again, np.roll(values, 1)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2, 1 / math.sqrt(2), 0.97])
def test_noise_of_the_wrong_size_is_caught(factor: float) -> None:
    assert not looks_standard_normal(factor * seeded_source(0, "noise").normal(COUNT))


def test_uniform_noise_of_the_right_size_is_caught() -> None:
    assert not looks_standard_normal(math.sqrt(12) * (seeded_source(0, "noise").uniform(COUNT) - 0.5))


@pytest.mark.parametrize("rate", [1 / 32, 0.5])
@pytest.mark.parametrize("source", [system_source(), seeded_source(0, "sample")], ids=["system", "seeded"])
def test_each_unit_is_sampled_by_itself_at_the_rate(source: RandomSource, rate: float) -> None:
    units, steps = 200, 1000
    drawn = np.zeros((steps, units), bool)
    for step in range(steps):
        drawn[step, source.chosen(units, rate)] = True
    assert stats.binomtest(int(drawn.sum()), drawn.size, rate).pvalue > LEVEL
    sizes = drawn.sum(axis=1)  # a Poisson sample's size varies; a shuffled batch's does not
    spread = ((sizes - units * rate) ** 2).sum() / (units * rate * (1 - rate))
    assert LEVEL < stats.chi2(steps).cdf(spread) < 1 - LEVEL
    each = stats.binom(steps, rate).cdf(drawn.sum(axis=0))
    assert each.min() > LEVEL / units
    assert each.max() < 1 - LEVEL / units


def test_batches_of_fixed_size_are_caught() -> None:
    """The negative control: shuffling gives every step the same number of units, which no Poisson sampler does."""
    sizes = np.full(1000, 100)
    assert stats.chi2(1000).cdf(((sizes - 200 * 0.5) ** 2).sum() / (200 * 0.25)) < LEVEL


def test_a_rate_of_one_takes_all_and_the_smallest_rate_nobody() -> None:
    source = system_source()
    np.testing.assert_array_equal(source.chosen(50, 1.0), np.arange(50))
    assert len(source.chosen(50, 2.0**-60)) == 0


@pytest.mark.parametrize("row", range(4))
def test_each_number_is_of_four_pairs_and_each_pair_in_two_numbers(row: int) -> None:
    """Of one pair, the cosine and the sine would add up to a single cosine: half of what is claimed."""
    words = np.random.default_rng(0).integers(0, 2**64, (4, 20_000), dtype=np.uint64)
    before = RandomSource(lambda _: words.ravel(), private=False).normal(20_000)
    for column in (0, 7, 8191, 8192, 19_999):
        other = words.copy()
        other[row, column] ^= np.uint64(2**63)
        after = RandomSource(lambda _, other=other: other.ravel(), private=False).normal(20_000)
        assert set(np.flatnonzero(before != after)) == {column, (column + 1) % 20_000}


def test_odd_counts_and_none() -> None:
    source = system_source()
    assert source.normal(3).shape == (3,)
    assert source.normal(0).shape == (0,)
    assert source.normal(1).shape == (1,)
    assert looks_standard_normal(np.concatenate([source.normal(1) for _ in range(5000)]))


def test_a_seed_and_its_purpose_decide_a_seeded_stream() -> None:
    first, same = seeded_source(7, "noise", 1).normal(9), seeded_source(7, "noise", 1).normal(9)
    np.testing.assert_array_equal(first, same)
    for other in (seeded_source(8, "noise", 1), seeded_source(7, "noise", 2)):
        assert not np.array_equal(first, other.normal(9))


def test_only_the_systems_entropy_is_private() -> None:
    assert system_source().private
    assert not seeded_source(0).private
    assert not np.array_equal(system_source().normal(9), system_source().normal(9))


def test_each_draw_has_a_key_of_its_own_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def known(count: int) -> bytes:
        asked.append(count)
        return bytes([len(asked) // 3] * count)

    monkeypatch.setattr("fedlora.privacy.randomness.os.urandom", known)
    words = system_source().words
    first, second, third = words(100), words(1000), words(100)
    assert asked == [32, 32, 32]
    assert np.array_equal(first, second[:100])  # of one key: it decides all
    assert not np.isin(third, second).any()


def test_the_words_are_the_ciphers_key_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of NIST's example for AES-256 with a key of zeros: the first block, AES₀(0), and the one after it, AES₀(1)."""
    monkeypatch.setattr("fedlora.privacy.randomness.os.urandom", bytes)
    found = system_source().words(4).tobytes().hex()
    assert found == "dc95c078a2408989ad48a21492842087" + "530f8afbc74536b9a963b4f1c4cb738b"
