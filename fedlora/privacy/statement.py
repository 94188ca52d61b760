"""What a run says about privacy, in one object: plan, summary, report, card and privacy.json print it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release, epsilon
from fedlora.privacy.central import central_mechanism
from fedlora.privacy.promises import MODES, lacking
from fedlora.privacy.schedule import participations, run_releases
from fedlora.strategies.base import Strategy

ADJACENCY = "add or remove one unit"
PER_RECORD = "per record: a person with m records is not covered by this ε"


@dataclass(frozen=True)
class Figures:
    """The numbers behind an ε. releases: (noise multiplier, rate, steps), all of a client's (or the server's) together.

    epsilon: at `delta`, for those who see everything that is released. seen: for those who also see who took part,
    where that costs more (central DP); else the same.
    """

    epsilon: float
    seen: float
    delta: float
    noise_multiplier: float
    clip: float
    rate: float
    steps: int
    participations: int
    divisor: float
    accountant: str
    adjacency: str
    unit: str
    releases: Sequence[tuple[float, float, int]]


@dataclass(frozen=True)
class Statement:
    """holds: whether there is a guarantee at all. headline: one sentence. figures: None without any mechanism.

    trusted, released: in words. assumptions: what the numbers rest on.
    """

    mode: str
    holds: bool
    headline: str
    trusted: str
    released: str
    simulated: bool
    figures: Figures | None
    assumptions: Sequence[str]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def statement(config: RunConfig, method: Strategy) -> Statement:
    """What `config` (its noise settled) with `method` promises to those whose rows are trained on, at most."""
    mode = MODES[config.privacy.name]
    why = lacking(config, method)
    figures = None if mode.name == "none" else _FIGURES[mode.name](config)
    return Statement(
        mode=mode.title,
        holds=why is None,
        headline=why or _headline(config, figures),
        trusted=mode.trusted,
        released=mode.released,
        simulated=mode.name != "none" and not config.federation.sites,
        figures=figures,
        assumptions=_ASSUMPTIONS.get(mode.name, ()),
    )


def unit_words(config: RunConfig) -> str:
    """Whom the ε is about."""
    if config.privacy.name == "central":
        return "client: all of its rows together"
    if config.privacy.unit == "record":
        return PER_RECORD
    return f"{config.privacy.unit}: all rows with one value of that column, {config.privacy.unit_rows} of them used"


def _headline(config: RunConfig, figures: Figures | None) -> str:
    if figures is None:
        raise PrivacyError(f"privacy={config.privacy.name} promises something and has no figures: report this mistake")
    who = "each client" if config.privacy.local else "the global model"
    seen = "" if figures.seen == figures.epsilon else f" ({figures.seen:.3g} for those who see who took part)"
    kind = "announced" if config.federation.sites else "simulated"
    return (
        f"{kind} ε = {figures.epsilon:.3g}{seen} at δ = {figures.delta:g} for {who} over the run, at most;"
        f" {figures.unit}"
    )


def _local(config: RunConfig) -> Figures:
    releases = run_releases(config).all()
    privacy = config.privacy
    return _figures(config, releases, rate=privacy.rate, steps=config.train.steps, times=participations(config))


def _central(config: RunConfig) -> Figures:
    mechanism, rounds = central_mechanism(config), config.federation.rounds
    return _figures(
        config,
        [mechanism.release(rounds)],
        rate=mechanism.rate,
        steps=1,
        times=rounds,
        divisor=float(mechanism.cohort),
        seen=[mechanism.release_seen(rounds)],
    )


_FIGURES = {"dp": _local, "central": _central}


def _figures(
    config: RunConfig,
    releases: Sequence[Release],
    *,
    rate: float,
    steps: int,
    times: int,
    divisor: float | None = None,
    seen: Sequence[Release] | None = None,
) -> Figures:
    privacy = config.privacy
    spent = epsilon(releases, privacy.delta, privacy.accountant)
    return Figures(
        epsilon=spent,
        seen=spent if seen is None else epsilon(seen, privacy.delta, privacy.accountant),
        delta=privacy.delta,
        noise_multiplier=privacy.noise_multiplier or 0.0,
        clip=privacy.clip,
        rate=rate,
        steps=steps,
        participations=times,
        divisor=float(config.train.batch) if divisor is None else divisor,
        accountant=privacy.accountant,
        adjacency=ADJACENCY,
        unit=unit_words(config),
        releases=[(r.noise_multiplier, r.rate, r.steps) for r in releases],
    )


_ASSUMPTIONS = {
    "dp": (
        "each person's rows are at one client; with rows at k clients, the ε of those k add up",
        "the rate, the divisor, the clip and the numbers of steps and rounds are public and not computed from the rows",
        "nobody watches how long a client computes",
        "noise is added in double precision, four Box-Muller numbers a draw, and rounded: hardened, not proved safe",
        "settings were not chosen by trying them on these rows; what a sweep tried on them adds up",
    ),
    "central": (
        "the server is trusted: it sees every client's update and who took part",
        "rosters and clients' own figures stay with the operator; for those who see them the larger ε holds",
        "clients are asked independently with the public rate; the divisor is the public expected cohort",
        "settings were not chosen by trying them on these clients; what a sweep tried on them adds up",
    ),
}
"""By mode: what its numbers rest on."""
