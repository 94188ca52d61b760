"""Client-level central DP: a trusted server releases one noised mean of the clients' clipped deltas a round.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963,
algorithm 1 with uniform weights and the fixed divisor (its estimator f̃_f). Adaptive clipping: Andrew, Thakkar, McMahan,
Ramaswamy, "Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871, algorithm 1.

A round starts from a state W that all know. Each of the N clients is asked by itself with probability q = m/N, m being
the public size of an expected cohort. With Δ_k = W_k − W, of all tensors that travel (adapter and head) as one vector,

    mean = (Σ_k Δ_k·min(1, C/‖Δ_k‖) + N(0, (z·C)²·I)) / m.

Why that hides each client as a whole:

1. One client more or less moves the sum by at most C. All weigh 1, m does not depend on who reports, and nobody's delta
   depends on another client: each trains by itself, from W. A client that fails, is refused, is late or sends what is
   not finite adds 0.
2. So a round is a Gaussian mechanism with noise multiplier z on a Poisson sample of rate q, and rounds compose. A round
   in which nobody was asked is noise, released and paid for like any other.
3. All else is post-processing. The method sees one synthetic update, W + mean, in `begin`, `fold` and `finish`; so its
   state, its metrics and every later model depend on the clients through the noised means alone.
4. What a round released is not drawn anew: the round loop commits a round before it sends anything that depends on it,
   and a round that was not committed was seen by nobody.

With `spent`, who took part is secret, and sampling amplifies: that is for those who see the models only. The operator
sees the rosters: for him `spent_seen` counts, and what single clients sent reaches him without noise: he is trusted.

Adaptive clipping lets C follow the p-quantile of ‖Δ_k‖. A round also releases b = Σ_k (1[‖Δ_k‖ ≤ C] − ½), which one
client moves by ½, with noise N(0, σ_b²). Sum and count are one Gaussian mechanism with multiplier z if the sum's
own is z_Δ = (z⁻² − (2σ_b)⁻²)^(−½): the accounted z does not change.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.manifest import Tensors
from fedlora.config.schema import RunConfig
from fedlora.errors import PrivacyError, StrategyError
from fedlora.privacy.accounting import Release, calibrate, epsilon
from fedlora.privacy.randomness import RandomSource, seeded_source, system_source
from fedlora.strategies.base import State, Strategy, Update

Vector = NDArray[np.float64]

ROUNDING = 1e-6
"""What float64 adds to the sensitivity, as a part of it: room for norms of 10⁹ numbers and cohorts of 10⁴ clients."""

NOBODY = -1
"""The client number of the synthetic update."""

BOUND = "clip_bound"
"""The round metric from which a resumed run takes C."""


@dataclass(frozen=True)
class Adaptation:
    """How C follows the clients. quantile: p. rate: η_C. count_noise: σ_b, standard deviation of the count's noise."""

    quantile: float
    rate: float
    count_noise: float


@dataclass(frozen=True)
class CentralMechanism:
    """The mechanism of one round, and the event it is accounted as.

    noise_multiplier: z. bound: C of this round. clients: N. cohort: m ≤ N, which divides the sum. delta and accountant:
    for ε. adaptation: None for a fixed C.
    """

    noise_multiplier: float
    bound: float
    clients: int
    cohort: int
    delta: float = 1e-5
    accountant: str = "pld"
    adaptation: Adaptation | None = None

    def __post_init__(self) -> None:
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise PrivacyError(
                f"the bound on an update's norm, {self.bound}, must be above 0 and finite: change privacy.clip, or"
                " lower privacy.clip_rate if C was adapted"
            )
        self.release(1)
        if self.adaptation is not None:
            self._check_count_noise(self.adaptation.count_noise)

    def _check_count_noise(self, count_noise: float) -> None:
        least = self.noise_multiplier / 2
        if not count_noise > least:
            raise PrivacyError(
                f"privacy.count_noise = {count_noise:g} is too little to adapt C with privacy.noise_multiplier ="
                f" {self.noise_multiplier:g}: it must be above half of that, {least:g} (by default it is a twentieth of"
                f" federation.cohort = {self.cohort}); raise it, ask more clients, or keep C fixed"
                " (privacy.clip_quantile=null)"
            )

    @property
    def rate(self) -> float:
        """q: with which each client is in a round's cohort."""
        return self.cohort / self.clients

    @property
    def sensitivity(self) -> float:
        """How far one client more or less moves the clipped sum, at most (Euclidean)."""
        return self.bound * (1 + ROUNDING)

    @property
    def sum_multiplier(self) -> float:
        """z_Δ: noise of the sum over its sensitivity; z where C is fixed."""
        if self.adaptation is None:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 - (2 * self.adaptation.count_noise) ** -2) ** -0.5)

    @property
    def noise_std(self) -> float:
        """Standard deviation of each number of the mean."""
        return self.sum_multiplier * self.sensitivity / self.cohort

    def release(self, rounds: int) -> Release:
        """What `rounds` rounds cost towards those who do not learn who took part."""
        return Release(self.noise_multiplier, self.rate, rounds)

    def release_seen(self, rounds: int) -> Release:
        """What they cost a client that is known to have taken part in `rounds` rounds."""
        return Release(self.noise_multiplier, 1.0, rounds)

    def spent(self, rounds: int) -> float:
        """ε of `rounds` rounds towards those who see only the models."""
        return epsilon([self.release(rounds)], self.delta, self.accountant)

    def spent_seen(self, rounds: int) -> float:
        """ε towards those who also see the rosters, of a client with `rounds` participations."""
        return epsilon([self.release_seen(rounds)], self.delta, self.accountant)

    def noised(self, deltas: Iterable[Vector], size: int, source: RandomSource) -> "Noised":
        """One round's release over deltas of shape [size], which are read one by one.

        Raises PrivacyError for a delta of another shape.
        """
        total, below = clipped_sum(deltas, size, self.bound)
        total += self.sum_multiplier * self.sensitivity * source.normal(size)
        mean = total / self.cohort
        if self.adaptation is None:
            return Noised(mean, None)
        noise = self.adaptation.count_noise * float(source.normal(1)[0])
        return Noised(mean, (below + noise) / self.cohort + 0.5)

    def after(self, fraction: float | None) -> "CentralMechanism":
        """The next round's: C·exp(−η_C·(b̃ − p)), b̃ being the noised `fraction` of this round.

        Raises PrivacyError if C leaves the range of numbers.
        """
        if self.adaptation is None or fraction is None:
            return self
        exponent = -self.adaptation.rate * (fraction - self.adaptation.quantile)
        return self.with_bound(self.bound * math.exp(min(exponent, 700.0)))

    def with_bound(self, bound: float) -> "CentralMechanism":
        """The same with another C."""
        return replace(self, bound=bound)


@dataclass(frozen=True)
class Noised:
    """What a round releases. mean: [P]. fraction: b̃, noised part of the deltas not above C; None for a fixed C."""

    mean: Vector
    fraction: float | None


def clipped_sum(deltas: Iterable[Vector], size: int, bound: float) -> tuple[Vector, float]:
    """Σ_k Δ_k·min(1, bound/‖Δ_k‖₂) in float64, shape [size], and Σ_k (1[‖Δ_k‖₂ ≤ bound] − ½).

    A delta whose norm is not finite adds 0 to both, like a client that sent nothing: one delta more or less moves the
    first by at most `bound` and the second by ½. Raises PrivacyError for a delta of another shape.
    """
    total, below = np.zeros(size), 0.0
    for delta in deltas:
        if delta.shape != (size,):
            raise PrivacyError(f"a delta has shape {delta.shape}, the round's have ({size},): it cannot be clipped")
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.linalg.norm(delta))
        if math.isfinite(norm):
            total += delta * (bound / max(norm, bound))
            below += 0.5 if norm <= bound else -0.5
    return total, below


@dataclass(frozen=True)
class Released:
    """What a round gives: all that a method may see of it, what may be told of it, the mechanism of the next round.

    metrics: clip_bound, C of the next round; noise_std, of each number of this round's mean; and if C is adapted
    unclipped_fraction, the noised part of the updates that were not clipped.
    """

    update: Update
    metrics: Mapping[str, float]
    following: CentralMechanism


def release_round(
    mechanism: CentralMechanism, before: State, answers: Iterable[Tensors], source: RandomSource
) -> Released:
    """One round, over the tensors that each admitted client sent; they are read one by one and may be none."""
    manifest = before.manifest
    names = manifest.uploaded()
    deltas = (flat_delta(before.shared, tensors, names) for tensors in answers)
    noised = mechanism.noised(deltas, sum(before.shared[name].size for name in names), source)
    following = mechanism.after(noised.fraction)
    metrics = {BOUND: following.bound, "noise_std": mechanism.noise_std}
    if noised.fraction is not None:
        metrics["unclipped_fraction"] = noised.fraction
    return Released(Update(NOBODY, _moved(before, names, noised.mean), 1.0), metrics, following)


def flat_delta(before: Tensors, after: Tensors, names: list[str]) -> Vector:
    """after − before of all `names` in a row, float64, shape [P]."""
    return np.concatenate([np.subtract(after[name], before[name], dtype=np.float64).ravel() for name in names])


def _moved(before: State, names: list[str], mean: Vector) -> Tensors:
    """The state's tensors moved by `mean`, rounded to the manifest's types before anybody sees them."""
    moved, offset = {}, 0
    for name in names:
        spec, values = before.manifest.tensors[name], before.shared[name]
        part = mean[offset : offset + values.size].reshape(values.shape)
        moved[name] = (values + part).astype(spec.dtype)
        offset += values.size
    return moved


def central_mechanism(config: RunConfig) -> CentralMechanism:
    """Round 1's mechanism, by `privacy` and `federation`.

    Raises PrivacyError if neither noise nor ε is given, no noise keeps ε, or σ_b is too small to adapt C.
    """
    privacy, federation = config.privacy, config.federation
    adaptation = None
    if privacy.clip_quantile is not None:
        count_noise = federation.cohort / 20 if privacy.count_noise is None else privacy.count_noise
        adaptation = Adaptation(privacy.clip_quantile, privacy.clip_rate, count_noise)
    return CentralMechanism(
        noise_multiplier=_noise_multiplier(config),
        bound=privacy.clip,
        clients=federation.clients,
        cohort=federation.cohort,
        delta=privacy.delta,
        accountant=privacy.accountant,
        adaptation=adaptation,
    )


def mechanism_for(method: Strategy, config: RunConfig) -> CentralMechanism | None:
    """Round 1's mechanism under central DP, else None. Raises as `central_mechanism` and `refuse_central` do."""
    if config.privacy.name != "central":
        return None
    refuse_central(method)
    return central_mechanism(config)


def _noise_multiplier(config: RunConfig) -> float:
    privacy, federation = config.privacy, config.federation
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if privacy.epsilon is None:
        raise PrivacyError("privacy=central needs privacy.epsilon or privacy.noise_multiplier, and both are null")
    rate = federation.cohort / federation.clients
    return calibrate(privacy.epsilon, privacy.delta, rate, federation.rounds, privacy.accountant)


def central_source(config: RunConfig, purpose: str, round_number: int) -> RandomSource:
    """Where a round's noise or cohort comes from, by `privacy.noise`: nothing of one round is used in another."""
    if config.privacy.noise == "system":
        return system_source()
    return seeded_source(config.seed, "central", purpose, round_number)


def refuse_central(method: Strategy) -> None:
    """Raises StrategyError if `method` compares single updates or starts from clients' rows: not under central DP."""
    if method.single_updates:
        raise StrategyError(
            f"strategy={method.name} compares the clients' single updates, and privacy=central gives a method nothing"
            " but one noised mean of them: choose another strategy, or noise at the clients (privacy=dp)"
        )
    if method.reads_private_data or method.private_start:
        raise StrategyError(
            f"strategy={method.name} with these options starts from clients' rows, which no noise of privacy=central"
            " covers: choose options that read no private rows"
        )
