"""What a server makes of an experiment that is submitted to it: who its sites are, and what depends on this machine."""

from collections.abc import Sequence

from fedlora.config.rules import contradictions
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.server.settings import FILE as SETTINGS


def for_sites(config: RunConfig, known: Sequence[str]) -> RunConfig:
    """`config` with its sites written out: those that it names, or all that are `known`, in the order of their names.

    A cohort that is larger than the number of sites (the default may be) is all of them.

    known: the clients that may connect. Raises ConfigError if there are none, a named one is unknown, or the whole does
    not fit together.
    """
    sites = config.federation.sites or tuple(sorted(known))
    problems = [
        f"federation.sites names {name!r}, which is no client here; there are: {', '.join(known) or 'none'}"
        for name in sites
        if name not in known
    ]
    if config.track.to:
        problems.append(f"track: where figures go is for the server to say ({SETTINGS}): leave it out")
    if not sites:
        problems.append("no client has joined this server yet: `fedlora server enroll NAME` gives one a token")
    if problems:
        raise ConfigError(problems)
    federation = {"sites": sites, "clients": len(sites), "cohort": min(config.federation.cohort, len(sites))}
    found = config.model_copy(update={"federation": config.federation.model_copy(update=federation)})
    contradictory = [each.text for each in contradictions(found)]
    if contradictory:
        raise ConfigError(contradictory)
    return found
