"""Who is asked in a round."""

import math
from collections.abc import Collection, Container, Iterable, Sequence

from fedlora.config.schema import RunConfig
from fedlora.privacy.central import central_source
from fedlora.seeding import stream


def draw_cohort(config: RunConfig, round_number: int) -> list[int]:
    """Different clients of 0 … federation.clients − 1, in ascending order.

    Under central DP each client is asked by itself, with probability cohort/clients: their number varies and may be 0.
    Otherwise `federation.cohort` clients are (more with `federation.over_selection`), and the seed and the round alone
    decide which.
    """
    federation = config.federation
    if config.privacy.name == "central":
        source = central_source(config, "cohort", round_number)
        return [int(client) for client in source.chosen(federation.clients, federation.cohort / federation.clients)]
    size = min(federation.clients, math.ceil(federation.cohort * federation.over_selection))
    chosen = stream(config.seed, "cohort", round_number).choice(federation.clients, size=size, replace=False)
    return sorted(int(client) for client in chosen)


def asking_order(config: RunConfig, round_number: int) -> Sequence[int]:
    """All clients in the order in which idle ones are asked in a buffered round: the seed and the round decide."""
    drawn = stream(config.seed, "cohort", round_number).permutation(config.federation.clients)
    return [int(client) for client in drawn]


def to_ask(order: Iterable[int], at_work: Collection[int], there: Container[int], cohort: int) -> list[int]:
    """Who of the idle clients in `order` is asked now, in ascending order, so that up to `cohort` are at work.

    there: clients that are connected. They come first, and one that is away, asked for when it is back, takes the
    place of none of them. No more of `order` is looked at than it takes.
    """
    places = cohort - sum(client in there for client in at_work)
    chosen, away = list[int](), list[int]()
    for client in order:
        if len(chosen) >= places:
            break
        (chosen if client in there else away).append(client)
    return sorted(chosen + away[: max(0, cohort - len(at_work) - len(chosen))])
