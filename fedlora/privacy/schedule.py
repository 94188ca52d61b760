"""What a run's configuration releases of each client, what that costs, and how much noise keeps it within ε.

One place turns `privacy.*` into mechanisms and their accounting events: local training, the client's ledger, the plan
and the report all ask here, so they cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import ConfigError, PrivacyError
from fedlora.privacy.accounting import Release, epsilon
from fedlora.privacy.calibration import calibrated_noise
from fedlora.privacy.counts import NoisedCounts
from fedlora.privacy.dp_sgd import DpSgd


@dataclass(frozen=True)
class RunReleases:
    """All that one client can release in a run under local DP.

    each: in one round. participations: in how many rounds, at most. once: before round 1.
    """

    each: tuple[Release, ...]
    participations: int
    once: tuple[Release, ...] = ()

    def after(self, rounds: int) -> list[Release]:
        """What is released once a client has taken part in `rounds` rounds."""
        return [*self.once, *(Release(r.noise_multiplier, r.rate, r.steps * rounds) for r in self.each)]

    def all(self) -> list[Release]:
        """What is released at most."""
        return self.after(self.participations)


def training_mechanism(config: RunConfig) -> DpSgd:
    """One round's DP-SGD. Sums are divided by `train.batch`, which is public, not by the sample's size.

    Raises PrivacyError if the noise was not settled.
    """
    privacy = config.privacy
    return DpSgd(_noise(config), privacy.clip, privacy.rate, float(config.train.batch), config.train.steps)


def sketch_mechanism(config: RunConfig) -> DpSgd:
    """One noised sketch before round 1, with the noise, clip and rate of a training step."""
    privacy = config.privacy
    return DpSgd(_noise(config), privacy.clip, privacy.rate, float(config.train.batch), 1)


def counts_mechanism(config: RunConfig) -> NoisedCounts | None:
    """The noised counts with which a client measures in each round; None if clients do not measure."""
    return NoisedCounts(config.privacy.eval_noise) if clients_measure(config) else None


def clients_measure(config: RunConfig) -> bool:
    """Whether what clients find on their held-out rows travels."""
    return config.eval.where != "server"


def participations(config: RunConfig) -> int:
    """Rounds in which a client trains, at most."""
    rounds = config.federation.rounds
    return min(config.privacy.participations or rounds, rounds)


def run_releases(config: RunConfig) -> RunReleases:
    """What a client can release in a run of `config` (its noise settled). Raises PrivacyError if it was not."""
    counts = counts_mechanism(config)
    each = (training_mechanism(config).release(), *(() if counts is None else (counts.release(),)))
    once = (sketch_mechanism(config).release(),) if make_strategy(config.strategy).private_start else ()
    return RunReleases(each, participations(config), once)


def run_epsilon(config: RunConfig, rounds: int | None = None) -> float:
    """ε at `privacy.delta` after `rounds` participations; None: all that are possible."""
    releases = run_releases(config)
    spent = releases.all() if rounds is None else releases.after(rounds)
    return epsilon(spent, config.privacy.delta, config.privacy.accountant)


def settle_privacy(config: RunConfig) -> RunConfig:
    """`config` with the noise written out that `privacy.epsilon` asks for, and uniform weights under any DP.

    Raises ConfigError if a given noise multiplier spends more than a given ε; PrivacyError if no noise keeps it.
    """
    if config.privacy.name == "none":
        return config
    settled = _with_noise(_uniform(config))
    _require_kept(settled)
    return settled


def _uniform(config: RunConfig) -> RunConfig:
    """Counts are private: under DP nothing is weighted by them."""
    return config.model_copy(update={"federation": config.federation.model_copy(update={"weighting": "uniform"})})


def _with_noise(config: RunConfig) -> RunConfig:
    privacy = config.privacy
    if privacy.noise_multiplier is not None or privacy.epsilon is None:
        return config
    rate, steps, beside = _SHAPES[privacy.name](config)
    noise = calibrated_noise(privacy.epsilon, privacy.delta, rate, steps, privacy.accountant, beside)
    return config.model_copy(update={"privacy": privacy.model_copy(update={"noise_multiplier": noise})})


def _local_shape(config: RunConfig) -> tuple[float, int, Sequence[Release]]:
    """Rate and number of the steps whose noise is to be found, and what is released beside them."""
    counts = counts_mechanism(config)
    rounds, sketches = participations(config), int(make_strategy(config.strategy).private_start)
    beside = [] if counts is None else [Release(counts.noise_multiplier, 1.0, rounds)]
    return config.privacy.rate, rounds * config.train.steps + sketches, beside


def _central_shape(config: RunConfig) -> tuple[float, int, Sequence[Release]]:
    federation = config.federation
    return federation.cohort / federation.clients, federation.rounds, []


_SHAPES = {"dp": _local_shape, "central": _central_shape}


def _require_kept(config: RunConfig) -> None:
    privacy = config.privacy
    if privacy.epsilon is None or privacy.noise_multiplier is None:
        return
    rate, steps, beside = _SHAPES[privacy.name](config)
    spent = epsilon([Release(privacy.noise_multiplier, rate, steps), *beside], privacy.delta, privacy.accountant)
    if spent > privacy.epsilon:
        problem = (
            f"privacy.noise_multiplier = {privacy.noise_multiplier:g} spends epsilon {spent:.4g} over the run, more"
            f" than privacy.epsilon = {privacy.epsilon:g}: drop one of them, or raise the noise"
        )
        raise ConfigError([problem])


def _noise(config: RunConfig) -> float:
    if config.privacy.noise_multiplier is None:
        raise PrivacyError(
            "privacy.noise_multiplier is not known yet: give it, or give privacy.epsilon and settle the configuration"
        )
    return config.privacy.noise_multiplier
