"""Buffered rounds: how many updates end one, and the rules about them."""

import math
from collections.abc import Iterator

from fedlora.config.contradiction import Contradiction, Rule
from fedlora.config.schema import RunConfig
from fedlora.config.site_rules import FEW, undisguised
from fedlora.config.strategy import make_strategy


def buffer_size(config: RunConfig) -> int:
    """K, the updates with which a buffered round is over.

    `federation.buffer`, or half of the cohort, rounded up, and no fewer than a round needs to be released.
    """
    federation = config.federation
    if federation.buffer is not None:
        return federation.buffer
    return max(federation.min_reports, FEW if undisguised(config) else 1, math.ceil(federation.cohort / 2))


def buffer_of_buffered(config: RunConfig) -> Iterator[Contradiction]:
    """Other rounds have none."""
    federation = config.federation
    if federation.buffer is not None and not federation.buffered:
        yield Contradiction(
            ("federation.buffer", "federation.buffered"),
            f"federation.buffer = {federation.buffer} has no meaning in rounds that wait for their cohort: set"
            " federation.buffered=true or drop it",
        )


def buffer_within_clients(config: RunConfig) -> Iterator[Contradiction]:
    """A client counts at most once in a round."""
    federation, size = config.federation, buffer_size(config)
    if federation.buffered and size > federation.clients:
        few = ", or, if all sites agree, federation.release_few=true" if federation.buffer is None else ""
        yield Contradiction(
            ("federation.buffer", "federation.clients"),
            f"federation.buffer = {size} is never full: each client counts at most once in a round, and there are"
            f" {federation.clients} (federation.clients): lower it{few}",
        )


def buffer_hides_each(config: RunConfig) -> Iterator[Contradiction]:
    """As for a cohort: an average of two is the other one's update to each of them."""
    size = buffer_size(config)
    if config.federation.buffered and undisguised(config) and size < FEW:
        yield Contradiction(
            ("federation.buffer", "federation.release_few", "privacy.name"),
            f"federation.buffer = {size}: without DP each of so few sites could work out another's update from the"
            f" average; average {FEW} or more, choose privacy=dp, or, if all agree, federation.release_few=true",
        )


def method_of_buffered(config: RunConfig) -> Iterator[Contradiction]:
    """A stale update is moved to the present state; not every method allows that."""
    method = make_strategy(config.strategy)
    if config.federation.buffered and not method.buffered:
        yield Contradiction(
            ("federation.buffered", "strategy.name"),
            f"federation.buffered = true with strategy={method.name}: it cannot use an update that was begun in an"
            " earlier round; choose fedavg, ffa_lora or fed_sb, or wait for each cohort (federation.buffered=false)",
        )


def no_central_privacy(config: RunConfig) -> Iterator[Contradiction]:
    """Its accounting rests on a cohort that is drawn by chance and is all that a round holds."""
    if config.federation.buffered and config.privacy.name == "central":
        yield Contradiction(
            ("federation.buffered", "privacy.name"),
            "federation.buffered = true with privacy=central: its ε is that of cohorts drawn by chance, and who is"
            " fast enough for a buffer is not; use privacy=dp, or federation.buffered=false",
        )


def no_over_selection(config: RunConfig) -> Iterator[Contradiction]:
    """Nobody is asked in vain where a late update counts too."""
    federation = config.federation
    if federation.buffered and federation.over_selection != 1:
        yield Contradiction(
            ("federation.buffered", "federation.over_selection"),
            f"federation.over_selection = {federation.over_selection:g} has no meaning with federation.buffered ="
            " true, which drops nobody for being slow: set it to 1, and raise federation.cohort for more at work",
        )


BUFFERING: tuple[Rule, ...] = (
    buffer_of_buffered,
    buffer_within_clients,
    buffer_hides_each,
    method_of_buffered,
    no_central_privacy,
    no_over_selection,
)
