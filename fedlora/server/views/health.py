"""How a run fares: as expected, slow or stalled, and for whom it waits. The one place with the thresholds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedlora.server.views.model import Health
from fedlora.words import seconds_text

SLOW, SLOW_AT_LEAST = 2.0, 30.0
"""Amber: no commit for twice what a round is expected to take, and for 30 s at least."""

STALLED, STALLED_AT_LEAST = 5.0, 60.0
"""Red: no commit for five times as long, for 60 s at least, and not before the round's deadline and its slack."""

DEADLINE_SLACK = 30.0
"""Seconds that a round may go on after `federation.timeout`: what came is still aggregated and measured."""

NOBODY_AT_FIRST = 60.0
"""Amber: seconds without a first commit while none of the sites is connected; red after as many again."""

MOST_NAMES = 5
"""Clients that a sentence names."""


@dataclass(frozen=True)
class Whereabouts:
    """What is known of a client now. since: when it came, or was last there; None: not known."""

    name: str
    connected: bool
    since: datetime | None = None
    working: bool = False
    paused: str | None = None


@dataclass(frozen=True)
class Signs:
    """What the health of a run that is being driven follows from.

    quiet: seconds since the last commit, or since its process took it up. expected: seconds of a round, None before
    there was one. timeout: of the configuration. round: the one under way. awaited: those whose answers are missing, if
    that is known; sites: all of the run's, empty for virtual clients. retried: why the round is tried again.
    """

    quiet: float
    expected: float | None
    timeout: float | None
    round: int
    sites: Sequence[Whereabouts]
    awaited: Sequence[Whereabouts]
    retried: str = ""


def slow_after(expected: float) -> float:
    """Seconds without a commit after which a run is slow."""
    return max(SLOW * expected, SLOW_AT_LEAST)


def stalled_after(expected: float, timeout: float | None) -> float:
    """Seconds without a commit after which a run is stalled."""
    deadline = 0.0 if timeout is None else timeout + DEADLINE_SLACK
    return max(STALLED * expected, STALLED_AT_LEAST, deadline)


def judge(signs: Signs, now: datetime) -> tuple[Health, str]:
    """The health of a run that is being driven, and the reason in a sentence; "" where all is well."""
    if signs.expected is None:
        return _before_the_first(signs, now)
    health = _level(signs.quiet, slow_after(signs.expected), stalled_after(signs.expected, signs.timeout))
    if health == "ok":
        return health, ""
    usual = f"round {signs.round} has taken {seconds_text(signs.quiet)}, about {seconds_text(signs.expected)} is usual"
    return health, f"{_upper(usual)}: {cause(signs, now)}"


def _before_the_first(signs: Signs, now: datetime) -> tuple[Health, str]:
    nobody = bool(signs.sites) and not any(site.connected for site in signs.sites)
    if not nobody or signs.quiet <= NOBODY_AT_FIRST:
        return "waiting", "Waiting for the first round." + (f" {_upper(cause(signs, now))}" if signs.sites else "")
    health = _level(signs.quiet, NOBODY_AT_FIRST, 2 * NOBODY_AT_FIRST)
    return health, f"The first round has not come in {seconds_text(signs.quiet)}: {cause(signs, now)}"


def _level(quiet: float, slow: float, stalled: float) -> Health:
    return "stalled" if quiet > stalled else "slow" if quiet > slow else "ok"


def cause(signs: Signs, now: datetime) -> str:
    """The probable cause, as the end of a sentence."""
    if signs.retried:
        return f"it is tried again, because {signs.retried.rstrip('.')}."
    if not signs.sites:
        return "its clients are simulated by the process that drives it, which is busy or hangs."
    if not any(site.connected for site in signs.sites):
        return f"no client is connected ({_named(signs.sites, now)})."
    if signs.awaited:
        away_first = sorted(signs.awaited, key=lambda site: site.connected)
        return f"waiting for {_named(away_first, now)}."
    return "no client is being waited for; the server aggregates, measures or saves."


def _named(sites: Sequence[Whereabouts], now: datetime) -> str:
    told = [f"{site.name}, {_state(site, now)}" for site in sites[:MOST_NAMES]]
    more = len(sites) - len(told)
    return "; ".join([*told, *([f"and {more} more"] if more else [])])


def _state(site: Whereabouts, now: datetime) -> str:
    for holds, words in _STATES:
        if holds(site):
            return words(site, now)
    return "connected and idle"


def _away(site: Whereabouts, now: datetime) -> str:
    if site.since is None:
        return "not connected since this server started"
    return f"away since {site.since:%Y-%m-%d %H:%M:%S} UTC ({seconds_text((now - site.since).total_seconds())})"


_STATES: Sequence[tuple[Callable[[Whereabouts], bool], Callable[[Whereabouts, datetime], str]]] = (
    (lambda site: not site.connected, _away),
    (lambda site: site.paused is not None, lambda site, now: f"paused by its owner ({site.paused})"),  # noqa: ARG005
    (lambda site: site.working, lambda site, now: "connected and at work"),  # noqa: ARG005
)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def seconds_since(moment: datetime | None, now: datetime) -> float:
    """Seconds from `moment` until `now`; 0 for None and for clocks that were set back."""
    return 0.0 if moment is None else max(0.0, (now - moment) / timedelta(seconds=1))
