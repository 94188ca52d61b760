"""An audit finds nothing in the mechanism that trains, and finds the noise that is missing in a broken one."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from torch import Tensor

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release, epsilon
from fedlora.privacy.audit import (
    BLOCK,
    Audit,
    Canaries,
    audit,
    gaussian_bound,
    gaussian_epsilon,
    guesses_bound,
    observe,
    one_run_probability,
    rates_bound,
)
from fedlora.privacy.dp_sgd import ROUNDING, DpSgd
from fedlora.privacy.randomness import RandomSource, seeded_source

DELTA = 1e-5
FAILING = 0.05
RIGHT = DpSgd(noise_multiplier=2.0, bound=0.5, rate=0.1, expected=8.0, steps=120)
BOUNDS = (guesses_bound, rates_bound, gaussian_bound)


@dataclass(frozen=True)
class Broken(DpSgd):
    """Adds only a part of the noise that it is accounted for."""

    part: float = 1.0

    def noised_mean(self, total: Tensor, source: RandomSource) -> Tensor:
        honest = DpSgd(self.noise_multiplier * self.part, self.bound, self.rate, self.expected, self.steps)
        return honest.noised_mean(total, source)


def broken(mechanism: DpSgd, part: float) -> Broken:
    return Broken(**vars(mechanism), part=part)


def audited(mechanism: DpSgd, seed: int = 0, canaries: int = 100_000, confidence: float = 0.95) -> Audit:
    source = seeded_source(seed, "audit")
    return audit(mechanism, DELTA, canaries=canaries, confidence=confidence, source=source)


def gaussian_canaries(mu: float, count: int, seed: int = 0) -> Canaries:
    draw = np.random.default_rng(seed)
    included = draw.random(count) < 0.5
    return Canaries(included, draw.normal(size=count) + mu * included)


@pytest.mark.parametrize("seed", range(4))
def test_the_mechanism_is_not_contradicted(seed: int) -> None:
    found = audited(RIGHT, seed)
    assert not found.contradicted
    assert all(bound.lower <= bound.claimed for bound in found.bounds)
    assert found.bounds[0].lower > 0.85 * found.bounds[0].claimed  # and the audit is a sharp one
    assert found.bounds[2].lower > 0.4


def test_the_weakest_audit_mostly_shows_something_too() -> None:
    """A thousand canaries, whose counts vary: 0 for one seed in ten."""
    assert np.median([audited(RIGHT, seed).bounds[1].lower for seed in range(8)]) > 0.1


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
def test_too_little_noise_by_the_root_of_two_is_caught_in_one_step(noise: float) -> None:
    mechanism = DpSgd(noise_multiplier=noise, bound=1.0, rate=0.2, expected=4.0, steps=3)
    assert not audited(mechanism).contradicted
    found = audited(broken(mechanism, 0.5**0.5))
    assert found.contradicted
    assert found.bounds[0].lower > found.bounds[0].claimed


def test_a_quarter_of_the_noise_is_caught_by_every_audit_of_the_whole_run() -> None:
    found = audited(broken(RIGHT, 0.25), canaries=250_000)
    assert [bound.contradicted for bound in found.bounds] == [True, True, True]


def test_a_clip_that_is_left_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.privacy.audit.clipped_sum", lambda rows, _: rows.sum(dim=0))
    assert audited(RIGHT, canaries=5000).contradicted


def test_claims_are_the_accountants() -> None:
    one, rates, guesses = audited(RIGHT, canaries=5000).bounds
    assert one.claimed == epsilon([Release(2.0, 1.0, 1)], DELTA)
    assert rates.claimed == guesses.claimed == epsilon([RIGHT.release()], DELTA)
    assert (one.canaries, rates.canaries) == (5000, 1000)


def test_more_confidence_shows_less() -> None:
    timid, bold = (audited(RIGHT, confidence=confidence) for confidence in (0.999, 0.8))
    assert all(a.lower < b.lower for a, b in zip(timid.bounds, bold.bounds, strict=True))


@pytest.mark.parametrize("bound", BOUNDS)
def test_pure_noise_shows_nothing(bound: object) -> None:
    assert callable(bound)
    assert bound(gaussian_canaries(0.0, 5000), DELTA, FAILING) == 0.0


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_stronger_signal_shows_more(bound: object) -> None:
    assert callable(bound)
    shown = [bound(gaussian_canaries(mu, 20_000), DELTA, FAILING) for mu in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert shown == sorted(shown)
    assert shown[-1] > 2


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_hold_at_their_confidence(bound: object) -> None:
    """200 audits of a Gaussian mechanism with a lax 20 % each: as many failures as allowed, at most."""
    assert callable(bound)
    true = gaussian_epsilon(0.5, 0.01)
    failures = sum(bound(gaussian_canaries(0.5, 1000, seed), 0.01, 0.2) > true for seed in range(200))
    assert failures <= 40


def test_perfect_scores_do_not_show_infinity() -> None:
    included = np.arange(4000) % 2 == 0
    for bound in BOUNDS:
        shown = bound(Canaries(included, included.astype(float)), DELTA, FAILING)
        assert 3 < shown < 50


def test_canaries_go_through_clipping_noise_and_sampling() -> None:
    width = BLOCK + 88  # more than a block, and a part of one
    mechanism = DpSgd(noise_multiplier=1e-3, bound=0.5, rate=0.3, expected=2.0, steps=40)
    found = observe(mechanism, width, seeded_source(3, "observe"))
    steps = np.round(found.scores / 0.25)  # a step in the sample is worth bound/expected, the rest is noise
    assert np.abs(found.scores - 0.25 * steps).max() < 0.02
    assert (steps[~found.included] == 0).all()
    assert steps[found.included].mean() == pytest.approx(12, rel=0.05)
    assert found.included.mean() == pytest.approx(0.5, abs=0.07)


def test_scores_of_one_step_are_the_noised_sum() -> None:
    step = replace(RIGHT, rate=1.0, steps=1, expected=1.0)
    found = observe(step, 50_000, seeded_source(4, "observe"))
    noise = found.scores - 0.5 * found.included
    assert noise.std() == pytest.approx(2.0 * 0.5 * (1 + ROUNDING), rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_the_epsilon_of_a_gaussian_is_the_accountants(mu: float) -> None:
    assert gaussian_epsilon(mu, DELTA) == pytest.approx(epsilon([Release(1 / mu, 1.0, 1)], DELTA), rel=2e-3)


def test_the_epsilon_of_no_signal_is_zero() -> None:
    assert gaussian_epsilon(0.0, DELTA) == 0.0
    assert gaussian_epsilon(1e-7, DELTA) == 0.0


def test_the_probability_of_right_guesses_by_hand() -> None:
    """Two guesses, e^ε = 3: accuracy 3/4; both right: 9/16; slack max(P[1]/1, P[0 or 1]/2) = 6/16."""
    assert one_run_probability(10, 2, 2, np.log(3), 0.0) == pytest.approx(9 / 16)
    assert one_run_probability(10, 2, 2, np.log(3), 0.01) == pytest.approx(9 / 16 + 2 * 10 * 0.01 * 6 / 16)
    assert one_run_probability(10, 2, 0, np.log(3), 0.01) == 1.0
    assert one_run_probability(10**6, 2, 2, np.log(3), 0.5) == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"canaries": 999}, "canaries = 999"),
        ({"confidence": 1.0}, "confidence = 1.0"),
        ({"confidence": 0.0}, "confidence = 0.0"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"accountant": "gdp"}, "'gdp'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        audit(RIGHT, **{"delta": DELTA, **settings})  # type: ignore[arg-type]


def test_the_default_source_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.privacy.audit.system_source", lambda: seeded_source(5, "system"))
    told = audit(RIGHT, DELTA, canaries=5000)
    assert told == audit(RIGHT, DELTA, canaries=5000, source=seeded_source(5, "system"))
    assert told != audit(RIGHT, DELTA, canaries=5000, source=seeded_source(6, "system"))
