"""What a series of noised steps costs: ε for a δ, and the noise for an ε.

Adjacency is add-or-remove-one throughout: two data sets are neighbours if one has one unit more. (Substituting a unit
costs more, up to twice as much.) Steps are Poisson-sampled Gaussian releases, composed one after another by accountants
of Google's dp-accounting and of Opacus.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import PrivacyAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant

from fedlora.errors import PrivacyError


@dataclass(frozen=True)
class Release:
    """`steps` releases of a clipped sum over a Poisson sample, with Gaussian noise.

    noise_multiplier: standard deviation of the noise over the clipping bound, > 0. rate: probability with which each
    unit is in a step's sample, in (0, 1].
    """

    noise_multiplier: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        problems = [
            *([] if self.noise_multiplier > 0 else [f"noise_multiplier = {self.noise_multiplier} must be above 0"]),
            *([] if 0 < self.rate <= 1 else [f"rate = {self.rate} must be above 0 and at most 1"]),
            *([] if self.steps >= 0 else [f"steps = {self.steps} must not be negative"]),
        ]
        if problems:
            raise PrivacyError(f"this release cannot be accounted for: {'; '.join(problems)}")


def _event(release: Release) -> DpEvent:
    noise = GaussianDpEvent(release.noise_multiplier)
    step = noise if release.rate == 1 else PoissonSampledDpEvent(release.rate, noise)
    return SelfComposedDpEvent(step, release.steps)


def _by_dp_accounting(make: Callable[[], PrivacyAccountant]) -> Callable[[list[Release], float], float]:
    def epsilon_of(releases: list[Release], delta: float) -> float:
        accountant = make()
        with _quiet():
            for release in releases:
                accountant.compose(_event(release))
            return float(accountant.get_epsilon(delta))

    return epsilon_of


def _or_refused(account: Callable[[list[Release], float], float]) -> Callable[[list[Release], float], float]:
    def epsilon_of(releases: list[Release], delta: float) -> float:
        try:
            return account(releases, delta)
        except MemoryError as error:
            least = min(release.noise_multiplier for release in releases)
            raise PrivacyError(
                f"a noise multiplier of {least:g} is so small that this accountant needs more memory than there is:"
                " raise the noise, or set privacy.accountant=rdp"
            ) from error

    return epsilon_of


def _by_prv(releases: list[Release], delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = [(release.noise_multiplier, release.rate, release.steps) for release in releases]
    with _quiet():
        return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries tell of Rényi orders that they leave out; that makes a bound looser, never wrong."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the")
            yield
    finally:
        log.setLevel(level)


ACCOUNTANTS: Mapping[str, Callable[[list[Release], float], float]] = {
    "pld": _or_refused(_by_dp_accounting(PLDAccountant)),
    "prv": _by_prv,
    "rdp": _by_dp_accounting(RdpAccountant),
}
"""By name. Each gives an upper bound: pld (privacy-loss distributions) the tightest, prv 0.01 above, rdp some 15 %.

The central-limit (GDP) accountant of Opacus is left out: it reports less than is spent.
"""


def epsilon(releases: Iterable[Release], delta: float, accountant: str = "pld") -> float:
    """The ε of all `releases` together at `delta` in (0, 1): 0 if there are none.

    Raises PrivacyError for a δ outside (0, 1) or an unknown accountant.
    """
    _check(delta, accountant)
    merged = _merged(releases)
    return _accounted(accountant, tuple(merged), delta) if merged else 0.0


@lru_cache(maxsize=1024)
def _accounted(accountant: str, releases: tuple[Release, ...], delta: float) -> float:
    """A plan, a statement and an account ask for the same ε, and PLD needs a part of a second for each."""
    return ACCOUNTANTS[accountant](list(releases), delta)


def _merged(releases: Iterable[Release]) -> list[Release]:
    """Equal mechanisms composed once: the accountants then need one convolution power, not one for each entry."""
    steps: Counter[tuple[float, float]] = Counter()
    for release in releases:
        steps[release.noise_multiplier, release.rate] += release.steps
    return [Release(noise, rate, count) for (noise, rate), count in sorted(steps.items()) if count]


def calibrate(
    target: float, delta: float, rate: float, steps: int, accountant: str = "pld", beside: Sequence[Release] = ()
) -> float:
    """The smallest noise multiplier, to one part in a thousand, with which `steps` steps spend at most `target`.

    Between bounds by RDP, which is fast and safe, the chosen accountant is asked some ten times: seconds with pld.
    beside: what is released too, with a noise of its own.

    Raises PrivacyError for a target that is not above 0, or that `beside` exceeds alone, and what `epsilon` raises.
    """
    _check(delta, accountant)
    if not target > 0:
        raise PrivacyError(f"no noise gives epsilon = {target}: it must be above 0")
    alone = epsilon(beside, delta, "rdp")
    if alone >= target:
        raise PrivacyError(
            f"what is released beside the training steps spends epsilon {alone:.3g} by itself, and the whole run may"
            f" spend {target:g}: raise privacy.eval_noise or privacy.epsilon, or let the server measure (eval=server)"
        )

    def spent(noise: float, by: str) -> float:
        return epsilon([Release(noise, rate, steps), *beside], delta, by)

    high = _bisect(lambda noise: spent(noise, "rdp") <= target, *_bracket(lambda noise: spent(noise, "rdp") <= target))
    if accountant == "rdp":
        return high
    low = 0.7 * high
    while not spent(high, accountant) <= target:  # prv adds a constant, which at tiny ε can exceed RDP's slack
        low, high = high, 1.25 * high
    return _bisect(lambda noise: spent(noise, accountant) <= target, low, high)


def _bracket(enough: Callable[[float], bool]) -> tuple[float, float]:
    """Two noise multipliers, a power of two apart: too little, and enough."""
    high = 1.0
    while not enough(high):
        high *= 2.0
        if high > 2.0**40:
            raise PrivacyError("no noise below 10^12 reaches this epsilon: raise privacy.epsilon or privacy.delta")
    while enough(high / 2.0) and high > 2.0**-10:
        high /= 2.0
    return high / 2.0, high


def _bisect(enough: Callable[[float], bool], low: float, high: float) -> float:
    """The upper end, which is enough, once it is within a thousandth of the lower one."""
    if enough(low):
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(delta: float, accountant: str) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta = {delta} must lie between 0 and 1 (usual: below one over the number of units)")
    if accountant not in ACCOUNTANTS:
        raise PrivacyError(f"there is no accountant {accountant!r}: choose from {', '.join(ACCOUNTANTS)}")
