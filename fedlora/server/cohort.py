"""Who is asked in a round."""

from fedlora.seeding import stream


def draw_cohort(seed: int, round_number: int, clients: int, size: int) -> list[int]:
    """`size` different clients of 0 … clients − 1, in ascending order: a function of the seed and the round alone."""
    chosen = stream(seed, "cohort", round_number).choice(clients, size=size, replace=False)
    return sorted(int(client) for client in chosen)
