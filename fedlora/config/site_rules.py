"""Rules for runs whose clients are sites: data owners' daemons."""

from collections.abc import Iterator
from operator import attrgetter

from fedlora.config.contradiction import Contradiction
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy

FEW = 3
"""Reports of sites without which an undisguised average is not released: the sites could subtract their own."""


def sites_are_clients(config: RunConfig) -> Iterator[Contradiction]:
    """A site's client number is its place among the names, so each name is there once and there is no other client."""
    federation = config.federation
    repeated = sorted({name for name in federation.sites if federation.sites.count(name) > 1})
    if repeated:
        yield Contradiction(
            ("federation.sites",),
            f"federation.sites names {', '.join(repeated)} more than once: each site is one client, name it once",
        )
    if federation.sites and len(federation.sites) != federation.clients:
        yield Contradiction(
            ("federation.sites", "federation.clients"),
            f"federation.sites names {len(federation.sites)} sites, and federation.clients = {federation.clients}: each"
            f" site is one client, set 'federation.clients={len(federation.sites)}'",
        )


def sites_keep_what_is_theirs(config: RunConfig) -> Iterator[Contradiction]:
    """Ledgers and ceilings are their owners', and nobody but a simulation has all clients' rows."""
    if not config.federation.sites:
        return
    for key in ("privacy.ledgers", "privacy.ceiling"):
        if attrgetter(key)(config) is not None:
            yield Contradiction(
                (key, "federation.sites"),
                f"{key} is for simulated clients, and federation.sites are no such: their owners keep their ledgers and"
                " set their ceilings; drop it",
            )
    if make_strategy(config.strategy).reads_private_data:
        yield Contradiction(
            ("strategy.init", "federation.sites"),
            "this strategy.init starts from all clients' rows, which a simulation alone has; choose"
            " strategy.init=weights or random",
        )


def undisguised(config: RunConfig) -> bool:
    """Whether nothing but the number of updates in an average hides a site's own."""
    federation = config.federation
    return bool(federation.sites) and config.privacy.name == "none" and not federation.release_few


def sites_are_not_exposed(config: RunConfig) -> Iterator[Contradiction]:
    """An average of two is the other one's update to each of them."""
    federation = config.federation
    if undisguised(config) and not federation.buffered and federation.cohort < FEW:
        yield Contradiction(
            ("federation.cohort", "federation.release_few", "privacy.name"),
            f"federation.cohort = {federation.cohort}: without DP each of so few sites could work out another's update"
            f" from the average; ask {FEW} or more, choose privacy=dp, or, if all agree, federation.release_few=true",
        )


def over_selection_of_sites(config: RunConfig) -> Iterator[Contradiction]:
    """More are asked than are needed only where nothing is spent, and somebody may really be slow."""
    if config.federation.over_selection == 1:
        return
    if config.privacy.name != "none":
        yield Contradiction(
            ("federation.over_selection", "privacy.name"),
            f"federation.over_selection = {config.federation.over_selection:g} with privacy={config.privacy.name}: who"
            " is asked and not counted has spent ε for nothing; set it to 1",
        )
