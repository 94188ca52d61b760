"""One client moves what central DP sums by C at most; the noise is what is paid for; wrong ones are caught."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedlora.adapters.manifest import Delivery
from fedlora.config.schema import RunConfig, StrategyConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import PrivacyError, StrategyError
from fedlora.privacy.accounting import Release, epsilon
from fedlora.privacy.central import (
    NOBODY,
    ROUNDING,
    Adaptation,
    CentralMechanism,
    Vector,
    central_mechanism,
    central_source,
    clipped_sum,
    flat_delta,
    mechanism_for,
    refuse_central,
    release_round,
)
from fedlora.privacy.randomness import RandomSource, seeded_source
from fedlora.server.cohort import draw_cohort
from fedlora.strategies.fedavg import FedAvg
from tests.privacy.test_randomness import looks_standard_normal
from tests.strategies import worlds
from tests.tiny import tiny_config

SIZE = 12
MECHANISM = CentralMechanism(noise_multiplier=1.5, bound=0.5, clients=40, cohort=8)
ADAPTIVE = replace(MECHANISM, cohort=40, adaptation=Adaptation(quantile=0.5, rate=0.2, count_noise=2.0))
LEVEL = 1e-6
"""Chance that a right mechanism fails a statistical test."""

WILD = st.one_of(
    st.floats(-3, 3), st.sampled_from([0.0, 1e-30, 1e30, -1e30, 3.4e38, 1e200, math.inf, -math.inf, math.nan])
)
DELTAS = st.lists(WILD, min_size=SIZE, max_size=SIZE).map(lambda values: np.array(values, np.float64))
"""Of honest clients and of liars."""


def config(**updates: Any) -> RunConfig:
    privacy = {"name": "central", "noise_multiplier": 1.0, "noise": "seeded"}
    return tiny_config(Path("bert"), Path("texts.csv"), **{"privacy": privacy, **updates})


def silent(source: RandomSource) -> RandomSource:
    """No noise at all."""

    class Silent(RandomSource):
        def normal(self, count: int) -> Vector:
            return np.zeros(count)

    return Silent(source.words, source.private)


NO_NOISE = silent(seeded_source(0))


@given(st.lists(DELTAS, max_size=6), DELTAS, st.floats(1e-3, 1e3))
def test_one_client_moves_sum_and_count_by_no_more_than_is_paid_for(
    others: list[Vector], delta: Vector, bound: float
) -> None:
    without, count = clipped_sum(others, SIZE, bound)
    for place in (0, len(others)):
        total, moved = clipped_sum([*others[:place], delta, *others[place:]], SIZE, bound)
        assert np.isfinite(total).all()
        assert np.linalg.norm(total - without) <= replace(MECHANISM, bound=bound).sensitivity
        assert abs(moved - count) <= 0.5


def test_the_bound_is_reached_and_small_deltas_are_left_alone() -> None:
    large, small = np.full(SIZE, 7.0), np.full(SIZE, 0.01)
    total, _ = clipped_sum([large], SIZE, 0.5)
    assert np.linalg.norm(total) == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_array_equal(clipped_sum([small, small], SIZE, 0.5)[0], 2 * small)


@pytest.mark.parametrize("liar", [np.full(SIZE, np.nan), np.full(SIZE, np.inf), np.r_[np.nan, np.zeros(SIZE - 1)]])
def test_what_is_not_finite_adds_nothing_to_sum_or_count(liar: Vector) -> None:
    honest = [np.full(SIZE, 0.01), np.full(SIZE, 9.0)]
    total, count = clipped_sum(honest, SIZE, 0.5)
    with_liar, same = clipped_sum([honest[0], liar, honest[1]], SIZE, 0.5)
    np.testing.assert_array_equal(with_liar, total)
    assert same == count == 0.0


@pytest.mark.parametrize("reporters", [0, 1, 3, 20])
def test_the_divisor_does_not_depend_on_who_reports(reporters: int) -> None:
    """Dividing by the number of reporters, a private count, would give the same mean for 1, 3 and 20."""
    delta = np.full(SIZE, 0.01)
    mean = MECHANISM.noised([delta] * reporters, SIZE, NO_NOISE).mean
    np.testing.assert_allclose(mean, reporters * delta / MECHANISM.cohort, rtol=1e-12)


def noise_of(mechanism: CentralMechanism, size: int = 200_000) -> Vector:
    deltas = [np.random.default_rng(k).standard_normal(size) for k in range(3)]
    exact = clipped_sum(deltas, size, mechanism.bound)[0] / mechanism.cohort
    return mechanism.noised(deltas, size, seeded_source(1, "central")).mean - exact


@pytest.mark.parametrize("mechanism", [MECHANISM, ADAPTIVE], ids=["fixed", "adaptive"])
def test_noise_is_normal_and_of_the_size_that_is_paid_for(mechanism: CentralMechanism) -> None:
    std = mechanism.sum_multiplier * 0.5 * (1 + ROUNDING) / mechanism.cohort
    assert mechanism.noise_std == std
    assert looks_standard_normal(noise_of(mechanism) / std)


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2])
def test_noise_of_the_wrong_size_is_caught(factor: float) -> None:
    wrong = replace(MECHANISM, noise_multiplier=factor * MECHANISM.noise_multiplier)
    assert not looks_standard_normal(noise_of(wrong) / MECHANISM.noise_std)


def test_sum_and_count_together_are_the_accounted_gaussian() -> None:
    """Sensitivities over noise, in the space where one release has noise 1: their squares add up to z⁻²."""
    assert ADAPTIVE.adaptation is not None
    joint = ADAPTIVE.sum_multiplier**-2 + (0.5 / ADAPTIVE.adaptation.count_noise) ** 2
    assert joint == pytest.approx(ADAPTIVE.noise_multiplier**-2, rel=1e-12)
    assert ADAPTIVE.sum_multiplier > ADAPTIVE.noise_multiplier
    assert ADAPTIVE.release(7) == Release(1.5, 1.0, 7)


def fractions(mechanism: CentralMechanism, deltas: list[Vector], draws: int) -> Vector:
    source = seeded_source(2, "count")
    return np.array([mechanism.noised(deltas, SIZE, source).fraction for _ in range(draws)], np.float64)


@pytest.mark.parametrize(("std", "right"), [(2.0, True), (2.0 * 2 / 3, False), (3.0, False)])
def test_the_count_has_its_noise(std: float, right: bool) -> None:
    """30 of 40 report, 10 of them unclipped: (10 − 20)/2 + noise, over 40, plus ½."""
    deltas = [np.full(SIZE, 0.01)] * 10 + [np.full(SIZE, 9.0)] * 20
    assert ADAPTIVE.adaptation is not None
    mechanism = replace(ADAPTIVE, adaptation=replace(ADAPTIVE.adaptation, count_noise=std))
    found = fractions(mechanism, deltas, 4000)
    assert looks_standard_normal((found - (0.5 - 5 / 40)) / (2.0 / 40)) is right


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("first", [1e-3, 1e2])
def test_the_bound_converges_to_the_quantile_of_the_norms(quantile: float, first: float) -> None:
    draw, source = np.random.default_rng(0), seeded_source(3, "adapt")
    mechanism = CentralMechanism(
        1.0, first, clients=400, cohort=400, adaptation=Adaptation(quantile, rate=0.2, count_noise=20.0)
    )
    bounds = []
    for _ in range(250):
        norms = draw.lognormal(size=400)
        deltas = (np.r_[norm, np.zeros(SIZE - 1)] for norm in norms)
        mechanism = mechanism.after(mechanism.noised(deltas, SIZE, source).fraction)
        bounds.append(mechanism.bound)
    settled = float(np.exp(np.mean(np.log(bounds[150:]))))
    assert stats.lognorm(s=1).cdf(settled) == pytest.approx(quantile, abs=0.03)


def test_one_step_of_the_bound_is_the_papers() -> None:
    following = ADAPTIVE.after(0.9)
    assert following == replace(ADAPTIVE, bound=0.5 * math.exp(-0.2 * (0.9 - 0.5)))
    assert MECHANISM.after(None) is MECHANISM


def test_the_price_is_that_of_the_composed_release() -> None:
    mechanism = replace(MECHANISM, delta=1e-3, accountant="rdp")
    assert mechanism.release(9) == Release(1.5, 8 / 40, 9)
    assert mechanism.spent(9) == epsilon([Release(1.5, 0.2, 3)] * 3, 1e-3, "rdp")
    assert mechanism.spent_seen(9) == epsilon([Release(1.5, 1.0, 9)], 1e-3, "rdp")
    assert mechanism.spent(0) == 0.0


@pytest.mark.parametrize(("noise", "secret", "seen"), [(1.0, 3.31, 46.0), (2.0, 1.05, 16.5)])
def test_the_grid(noise: float, secret: float, seen: float) -> None:
    """50 rounds, a tenth of the clients in each, δ = 1e-3."""
    mechanism = CentralMechanism(noise, 1.0, clients=100, cohort=10, delta=1e-3)
    assert mechanism.spent(50) == pytest.approx(secret, abs=0.01)
    assert mechanism.spent_seen(50) == pytest.approx(seen, abs=0.05)


def test_a_configuration_becomes_its_mechanism() -> None:
    given_noise = config(federation={"clients": 400, "cohort": 100, "rounds": 3}, **{"privacy.clip": 0.25})
    made = central_mechanism(given_noise)
    assert made == CentralMechanism(1.0, 0.25, 400, 100, 1e-5, "pld", None)
    adapted = central_mechanism(config(federation={"cohort": 100, "clients": 400}, **{"privacy.clip_quantile": 0.3}))
    assert adapted.adaptation == Adaptation(0.3, 0.2, 5.0)
    by_target = {"name": "central", "epsilon": 2.0, "delta": 1e-3, "accountant": "rdp"}
    made = central_mechanism(config(federation={"clients": 100, "cohort": 10, "rounds": 20}, privacy=by_target))
    assert 1.9 < made.spent(20) <= 2.0
    assert mechanism_for(FedAvg(), config(privacy={"name": "none"})) is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: replace(MECHANISM, bound=0.0), r"0\.0, must be above 0 and finite.*privacy\.clip"),
        (lambda: replace(MECHANISM, noise_multiplier=0.0), "noise_multiplier"),
        (lambda: replace(MECHANISM, clients=4), "rate = 2.0"),
        (
            lambda: replace(MECHANISM, adaptation=Adaptation(0.5, 0.2, 0.75)),
            r"count_noise = 0\.75 is too little .*noise_multiplier = 1\.5: it must be above half of that, 0\.75",
        ),
        (lambda: replace(ADAPTIVE, bound=1e300).after(-1e9), "inf, must be above 0 and finite.*clip_rate"),
        (lambda: central_mechanism(config(privacy={"name": "central"})), "needs privacy.epsilon or"),
        (lambda: clipped_sum([np.zeros(SIZE + 1)], SIZE, 1.0), r"shape \(13,\), the round's have \(12,\)"),
        (lambda: clipped_sum([np.zeros(1)], SIZE, 1.0), r"shape \(1,\)"),
    ],
)
def test_a_mechanism_without_a_meaning_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(PrivacyError, match=text):
        make()


def test_a_round_gives_the_method_one_update_that_is_the_state_moved_by_the_mean() -> None:
    state = worlds.start(FedAvg(), worlds.setup(), dtype="float32")
    names = state.manifest.uploaded()
    assert any(name.startswith("head.") for name in names)
    answers = [update.tensors for update in worlds.updates(state, 3)]
    mechanism = replace(MECHANISM, bound=2.0)
    released = release_round(mechanism, state, iter(answers), NO_NOISE)
    deltas = [np.concatenate([(a[n].astype(float) - state.shared[n]).ravel() for n in names]) for a in answers]
    mean = sum(delta * min(1.0, 2.0 / np.linalg.norm(delta)) for delta in deltas) / mechanism.cohort
    np.testing.assert_allclose(flat_delta(state.shared, released.update.tensors, names), mean, atol=1e-7)
    assert (released.update.client, released.update.weight) == (NOBODY, 1.0)
    assert {array.dtype for array in released.update.tensors.values()} == {np.dtype("float32")}
    assert released.metrics == {"clip_bound": 2.0, "noise_std": mechanism.noise_std}
    new, _ = worlds.aggregate(FedAvg(), state, [released.update])
    for name in state.manifest.names(Delivery.ROUND):
        np.testing.assert_array_equal(new.shared[name], released.update.tensors[name])


def test_a_round_without_answers_is_noise_of_the_same_size() -> None:
    state = worlds.start(FedAvg(), worlds.setup(), dtype="float64")
    released = release_round(ADAPTIVE, state, [], seeded_source(4, "central"))
    moved = flat_delta(state.shared, released.update.tensors, state.manifest.uploaded())
    assert looks_standard_normal(moved / ADAPTIVE.noise_std)
    assert set(released.metrics) == {"clip_bound", "noise_std", "unclipped_fraction"}
    assert released.metrics["clip_bound"] == released.following.bound != ADAPTIVE.bound


def test_cohorts_are_poisson() -> None:
    rounds, clients, cohort = 2000, 50, 5
    made = config(federation={"clients": clients, "cohort": cohort})
    sizes = np.array([len(draw_cohort(made, number)) for number in range(rounds)])
    spread = ((sizes - cohort) ** 2).sum() / (cohort * (1 - cohort / clients))
    assert LEVEL < stats.chi2(rounds).cdf(spread) < 1 - LEVEL
    assert stats.binomtest(int(sizes.sum()), rounds * clients, cohort / clients).pvalue > LEVEL
    fixed = config(federation={"clients": clients, "cohort": cohort}, privacy={"name": "none"})
    assert {len(draw_cohort(fixed, number)) for number in range(20)} == {cohort}
    assert draw_cohort(config(federation={"clients": 7, "cohort": 7}), 1) == list(range(7))


def test_seeded_cohorts_and_noise_repeat_and_the_systems_do_not() -> None:
    made = config(federation={"clients": 300, "cohort": 150})
    secret = config(federation={"clients": 300, "cohort": 150}, **{"privacy.noise": "system"})
    assert draw_cohort(made, 1) == draw_cohort(made, 1) != draw_cohort(made, 2)
    assert draw_cohort(secret, 1) != draw_cohort(secret, 1)
    assert (central_source(made, "noise", 1).private, central_source(secret, "noise", 1).private) == (False, True)
    first, again = (central_source(made, "noise", 1).normal(3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, central_source(made, "noise", 2).normal(3))


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "fed_sb"])
def test_methods_that_need_only_the_mean_may_run(name: str) -> None:
    refuse_central(make_strategy(StrategyConfig(name=name)))


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        ({"name": "lora_fair"}, "strategy=lora_fair compares the clients' single updates.*choose another strategy"),
        ({"name": "fed_sb", "init": "paper"}, "starts from clients' rows"),
    ],
)
def test_methods_that_need_more_are_refused(strategy: dict[str, str], text: str) -> None:
    method = make_strategy(StrategyConfig.model_validate(strategy))
    with pytest.raises(StrategyError, match=text):
        refuse_central(method)
    with pytest.raises(StrategyError, match=text):
        mechanism_for(method, config())
