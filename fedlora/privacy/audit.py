"""Lower bounds on ε, measured from the released numbers of the mechanism that trains: what it gives away at least.

Canaries in gradient space: each is a unit whose gradient lies on a coordinate of its own, beyond the clipping bound. A
fair coin decides whether it takes part. Sampling, clipped sum and noise are the product's own; a canary's score is the
sum of its coordinate over the released steps. Whoever tells by the scores who took part, more often than ε allows, has
shown that ε is wrong. Nasr et al., arXiv 2101.04535 (canaries of the strongest adversary); Steinke, Nasr and Jagielski,
arXiv 2305.08846 (all in one run).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv, log_ndtr, ndtr, ndtri
from scipy.stats import binom
from torch import Tensor

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import epsilon
from fedlora.privacy.dp_sgd import DpSgd
from fedlora.privacy.randomness import RandomSource, system_source
from fedlora.privacy.rows import clipped_sum

BLOCK = 512
"""Canaries whose rows are made at once, on as many coordinates."""

TOO_LARGE = 7.0
"""How many times the clipping bound a canary's gradient is: what enters the sum is what the clipping leaves of it."""

GUESSES = (0.1, 0.2, 0.3, 0.5, 1.0)
"""Parts of the canaries that the one-run audit guesses, abstaining on the others. Fixed before it looks."""

FEWEST = 1000
"""Canaries below which no audit says anything."""

RUN_PART = 50
"""The whole run is audited with that many times fewer canaries than one step: each goes through all steps."""

CAREFUL = 100
"""A threshold is chosen by bounds that fail that many times less often: many are tried, and luck would win else."""

_Numbers = NDArray[np.float64]
_Shown = Callable[[_Numbers, _Numbers, tuple[int, int], float], _Numbers]

_QUANTILES: _Numbers = ndtr(np.linspace(-3.1, 3.1, 201))  # where thresholds are tried, dense in the tails


@dataclass(frozen=True)
class Canaries:
    """What an adversary sees of m canaries, and the truth. included [m] bool; scores [m], higher if included."""

    included: NDArray[np.bool_]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, some: slice) -> "Canaries":
        return Canaries(self.included[some], self.scores[some])


@dataclass(frozen=True)
class Bound:
    """One audit's result. claimed: what the accountant says; lower: what was shown. Both ε at the audit's δ."""

    name: str
    claimed: float
    lower: float
    canaries: int

    @property
    def contradicted(self) -> bool:
        """Whether more leaks than is claimed."""
        return self.lower > self.claimed


@dataclass(frozen=True)
class Audit:
    """The results of all audits. confidence: with at least that probability all lower bounds hold together."""

    delta: float
    confidence: float
    bounds: tuple[Bound, ...]

    @property
    def contradicted(self) -> bool:
        """Whether any audit contradicts its claim."""
        return any(bound.contradicted for bound in self.bounds)


def audit(
    mechanism: DpSgd,
    delta: float,
    *,
    accountant: str = "pld",
    canaries: int = 500_000,
    confidence: float = 0.95,
    source: RandomSource | None = None,
) -> Audit:
    """Audits one step of `mechanism` in which everybody is sampled, and all of its steps, against their accounted ε.

    canaries: of the one step; the whole run has `RUN_PART` times fewer. source: None for the operating system's
    entropy. Each of the three bounds may fail with probability (1 − confidence)/3.

    Raises PrivacyError for too few canaries, a confidence or δ outside (0, 1), an unknown accountant.
    """
    _check(canaries, confidence)
    source = source or system_source()
    step = replace(mechanism, rate=1.0, steps=1)
    claims = [epsilon([each.release()], delta, accountant) for each in (step, mechanism)]
    failing = (1 - confidence) / 3
    one, run = observe(step, canaries, source), observe(mechanism, max(canaries // RUN_PART, FEWEST), source)
    bounds = (
        Bound("one step", claims[0], gaussian_bound(one, delta, failing), len(one)),
        Bound("whole run, rates", claims[1], rates_bound(run, delta, failing), len(run)),
        Bound("whole run, guesses", claims[1], guesses_bound(run, delta, failing), len(run)),
    )
    return Audit(delta, confidence, bounds)


def _check(canaries: int, confidence: float) -> None:
    problems = [
        *([] if canaries >= FEWEST else [f"canaries = {canaries} are too few: ask for at least {FEWEST}"]),
        *([] if 0 < confidence < 1 else [f"confidence = {confidence} must lie between 0 and 1 (usual: 0.95)"]),
    ]
    if problems:
        raise PrivacyError(f"this audit would show nothing: {'; '.join(problems)}")


def observe(mechanism: DpSgd, canaries: int, source: RandomSource) -> Canaries:
    """Runs all steps of `mechanism` on `canaries` canaries, of which each takes part with probability 1/2."""
    included = source.uniform(canaries) < 0.5
    units = np.flatnonzero(included)
    scores = np.zeros(canaries)
    for _ in range(mechanism.steps):
        sampled = units[source.chosen(len(units), mechanism.rate)]
        total = _canary_sum(sampled, canaries, mechanism.bound)
        scores += mechanism.noised_mean(total, source).double().numpy()
    return Canaries(included, scores)


def _canary_sum(sampled: NDArray[np.int64], width: int, bound: float) -> Tensor:
    """The clipped sum [width] of the sampled canaries, whose rows are zero outside their block of coordinates."""
    total = torch.zeros(width)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        first, last = np.searchsorted(sampled, [start, stop])
        columns = torch.from_numpy(sampled[first:last] - start)
        rows = torch.zeros(len(columns), stop - start)
        rows[torch.arange(len(columns)), columns] = TOO_LARGE * bound
        total[start:stop] = clipped_sum(rows, bound)
    return total


def guesses_bound(found: Canaries, delta: float, failing: float) -> float:
    """ε that is contradicted by how many guesses are right, except with probability `failing`; 0 if none is.

    The mechanism may be anything that is (ε, δ)-DP: nothing is taken for granted about how canaries hang together.
    Steinke, Nasr and Jagielski, arXiv 2305.08846, theorem 5.2, for each part in `GUESSES` once with guesses of
    "included" only and once with as many of "left out"; `failing` is divided among them. Canaries beyond 0.03/δ are
    not used: the theorem charges 2·m·δ.
    """
    found = found[: max(FEWEST, int(0.03 / delta))]
    ordered = found.included[np.argsort(-found.scores)]
    tests = [counts for part in GUESSES for counts in _right_guesses(ordered, part)]
    bounds = (_one_run_epsilon(len(found), *counts, delta, failing / len(tests)) for counts in tests)
    return max(bounds)


def _right_guesses(ordered: NDArray[np.bool_], part: float) -> list[tuple[int, int]]:
    """(guesses, right ones), for the highest scores alone and for highest and lowest; `ordered` from the highest."""
    half = max(1, round(part * len(ordered) / 2))
    top, bottom = int(ordered[:half].sum()), int((~ordered[-half:]).sum())
    return [(half, top), (2 * half, top + bottom)]


def _one_run_epsilon(m: int, guesses: int, right: int, delta: float, failing: float) -> float:
    """The largest ε under which `right` or more right guesses have a probability of at most `failing`."""
    return _last_true(lambda value: one_run_probability(m, guesses, right, value, delta) <= failing, 30.0)


def one_run_probability(m: int, guesses: int, right: int, value: float, delta: float) -> float:
    """A bound on the probability of at least `right` right guesses of `guesses`, under (ε = value, δ)-DP.

    With W ~ Binomial(guesses, e^ε/(1 + e^ε)):  P[W ≥ right] + 2·m·δ·max_i P[right − i ≤ W < right]/i.
    Steinke, Nasr and Jagielski, arXiv 2305.08846, theorem 5.2.
    """
    accuracy = 1 / (1 + np.exp(-value))
    pure = float(binom.sf(right - 1, guesses, accuracy))
    if right == 0 or delta == 0:
        return pure
    back = np.arange(1, right + 1)
    slack = float(np.max((binom.sf(right - back - 1, guesses, accuracy) - pure) / back))
    return min(1.0, pure + 2 * m * delta * max(0.0, slack))


def rates_bound(found: Canaries, delta: float, failing: float) -> float:
    """ε that is contradicted by true- and false-positive rates at one threshold, except with probability `failing`.

    (ε, δ)-DP means TPR ≤ e^ε·FPR + δ, and the same for the test of the other side. The threshold is chosen on one half
    of the canaries, the rates are bounded on the other (Clopper and Pearson 1934, `failing`/2 each). Takes the canaries
    to be independent, as they are where noise and sampling are.
    """

    def shown(hits: _Numbers, alarms: _Numbers, of: tuple[int, int], failing: float) -> _Numbers:
        up = _log_ratio(hits, of[0], alarms, of[1], delta, failing)
        down = _log_ratio(of[1] - alarms, of[1], of[0] - hits, of[0], delta, failing)
        return np.stack([up, down])

    return max(0.0, _by_halves(found, shown, failing))


def gaussian_bound(found: Canaries, delta: float, failing: float) -> float:
    """ε(δ) of the smallest μ-GDP that allows the rates at one threshold, except with probability `failing`.

    μ-GDP means Φ⁻¹(TPR) − Φ⁻¹(FPR) ≤ μ at every threshold (Dong, Roth and Su, arXiv 1905.02383); a step of the Gaussian
    mechanism without sampling has μ = 1/σ. Halves and intervals as in `rates_bound`.
    """

    def shown(hits: _Numbers, alarms: _Numbers, of: tuple[int, int], failing: float) -> _Numbers:
        low, high = 1 - _upper(of[0] - hits, of[0], failing / 2), _upper(alarms, of[1], failing / 2)
        return np.array([ndtri(low) - ndtri(high)])

    return gaussian_epsilon(max(0.0, _by_halves(found, shown, failing)), delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The ε of μ-GDP at δ: δ = Φ(−ε/μ + μ/2) − e^ε·Φ(−ε/μ − μ/2) (arXiv 1905.02383, corollary 2.13); 0 for μ = 0."""
    if mu <= 0:
        return 0.0

    def spent(value: float) -> float:
        return float(ndtr(-value / mu + mu / 2) - np.exp(value + log_ndtr(-value / mu - mu / 2)))

    return _last_true(lambda value: spent(value) > delta, mu * (mu / 2 + 40))


def _by_halves(found: Canaries, shown: _Shown, failing: float) -> float:
    """`shown` at the threshold (and in the row of its result) that is best on one half, evaluated on the other."""
    half = len(found) // 2
    seen, kept = found[:half], found[half:]
    thresholds = np.quantile(seen.scores, _QUANTILES)
    tried = shown(*_above(seen, thresholds), failing / CAREFUL)
    row, best = np.unravel_index(np.argmax(tried), tried.shape)
    return float(shown(*_above(kept, thresholds[best : best + 1]), failing)[row, 0])


def _above(found: Canaries, thresholds: _Numbers) -> tuple[_Numbers, _Numbers, tuple[int, int]]:
    """How many of the included and of the others score above each threshold, and how many of each there are."""
    groups = [np.sort(found.scores[found.included]), np.sort(found.scores[~found.included])]
    hits, alarms = (len(group) - np.searchsorted(group, thresholds).astype(float) for group in groups)
    return hits, alarms, (len(groups[0]), len(groups[1]))


def _log_ratio(hits: _Numbers, of: int, alarms: _Numbers, among: int, delta: float, failing: float) -> _Numbers:
    """log((hit rate − δ)/alarm rate), the hit rate bounded from below, the alarm rate from above; −∞ if none is."""
    surplus = np.maximum(1 - _upper(of - hits, of, failing / 2) - delta, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(surplus) - np.log(_upper(alarms, among, failing / 2)))


def _upper(count: _Numbers, of: int, failing: float) -> _Numbers:
    """Clopper and Pearson's upper bound on a probability of which `count` events in `of` were seen."""
    inside = betaincinv(np.minimum(count + 1, of), np.maximum(of - count, 1), 1 - failing)
    return np.where(count < of, inside, 1.0)


def _last_true(holds: Callable[[float], bool], most: float) -> float:
    """The end of the interval from 0 on which `holds`, to 1e-6 from below; 0 if it is empty, `most` at most."""
    if not holds(0.0):
        return 0.0
    low, high = 0.0, most
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
