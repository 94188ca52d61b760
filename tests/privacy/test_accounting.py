"""The accountants against the published grid, against each other, and under composition."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release, calibrate, epsilon

# N = 1000, batch 32, three epochs: q = 1/32, 96 steps, δ = 1e-5. Independent runs of Opacus 1.6 and dp-accounting 0.6.
GRID = [
    (0.5, {"rdp": 15.02, "prv": 12.82, "pld": 12.81}),
    (0.8, {"rdp": 4.48, "prv": 3.75, "pld": 3.74}),
    (1.0, {"rdp": 2.61, "prv": 2.18, "pld": 2.17}),
    (2.0, {"rdp": 0.72, "prv": 0.66, "pld": 0.65}),
    (8.0, {"rdp": 0.145, "prv": 0.13, "pld": 0.12}),
]


@pytest.mark.parametrize(("noise", "expected"), GRID)
def test_the_grid(noise: float, expected: dict[str, float]) -> None:
    found = {name: epsilon([Release(noise, 1 / 32, 96)], 1e-5, name) for name in expected}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.006, rel=1e-3), name
    assert found["pld"] <= found["prv"] <= found["pld"] + 0.0125
    assert found["pld"] < found["rdp"]


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    """One release with σ = 1 and δ = 1e-5: ε = 4.38 by Balle and Wang (arXiv 1805.06530, theorem 8)."""
    assert epsilon([Release(1.0, 1.0, 1)], 1e-5) == pytest.approx(4.377, abs=0.002)


def test_rounds_restarts_and_servers_compose_to_all_steps() -> None:
    """Ten rounds of 96 steps are 960 steps, however the ledger cut them; not ten times one round's bound, nor one's."""
    whole = epsilon([Release(1.0, 1 / 32, 960)], 1e-5)
    assert epsilon([Release(1.0, 1 / 32, 96)] * 10, 1e-5) == whole
    assert epsilon([Release(1.0, 1 / 32, 1)] * 960, 1e-5) == whole
    once = epsilon([Release(1.0, 1 / 32, 96)], 1e-5)
    assert once < whole < 10 * once


def test_different_mechanisms_compose_in_any_order() -> None:
    releases = [Release(1.0, 1 / 32, 50), Release(2.0, 0.1, 20), Release(5.0, 1.0, 1)]
    found = epsilon(releases, 1e-5)
    assert epsilon(releases[::-1], 1e-5) == pytest.approx(found, rel=1e-9)
    assert max(epsilon([release], 1e-5) for release in releases) < found


@settings(max_examples=15)
@given(st.floats(0.6, 5.0), st.floats(0.005, 0.3), st.integers(1, 200))
def test_more_noise_fewer_steps_and_rarer_samples_cost_less(noise: float, rate: float, steps: int) -> None:
    spent = epsilon([Release(noise, rate, steps)], 1e-5, "rdp")
    assert epsilon([Release(noise * 1.2, rate, steps)], 1e-5, "rdp") <= spent
    assert epsilon([Release(noise, rate, steps + 1)], 1e-5, "rdp") >= spent
    assert epsilon([Release(noise, rate * 0.8, steps)], 1e-5, "rdp") <= spent * (1 + 1e-6)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Release(1.0, 0.1, 0)], 1e-5) == 0.0


@pytest.mark.parametrize(("accountant", "target"), [("pld", 1.0), ("prv", 8.0), ("rdp", 1.0), ("rdp", 8.0)])
def test_calibrated_noise_spends_the_target_and_no_more(accountant: str, target: float) -> None:
    noise = calibrate(target, 1e-5, 1 / 32, 20, accountant)
    spent = epsilon([Release(noise, 1 / 32, 20)], 1e-5, accountant)
    assert 0.98 * target < spent <= target


def test_a_target_below_an_accountants_own_slack_is_still_met() -> None:
    noise = calibrate(0.02, 1e-5, 0.01, 1, "prv")
    assert epsilon([Release(noise, 0.01, 1)], 1e-5, "prv") <= 0.02


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Release(0.0, 2.0, -1), "noise_multiplier = 0.0 must be above 0; rate = 2.0 .*; steps = -1"),
        (lambda: epsilon([], 0.0), r"delta = 0\.0 must lie between 0 and 1"),
        (lambda: epsilon([], 1e-5, "gdp"), "there is no accountant 'gdp'"),
        (lambda: calibrate(0.0, 1e-5, 0.1, 1), "must be above 0"),
        (lambda: calibrate(1e-9, 1e-30, 1.0, 10**9, "rdp"), "no noise below"),
    ],
)
def test_what_cannot_be_accounted_is_named(call, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PrivacyError, match=text):
        call()
