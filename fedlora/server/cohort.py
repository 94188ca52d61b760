"""Who is asked in a round."""

import math

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
