"""How the messages of a round are dealt into groups whose clients are called together."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Split = Callable[[int], Sequence[int]]
"""Gives the sizes of the groups into which that many messages are dealt, in their order."""


def singly(messages: int) -> Sequence[int]:
    """Each message by itself."""
    return [1] * messages


def groups_of(size: int, places: int) -> Split:
    """Groups of at most `size`, as equal as can be, and as many for each of the `places` that work side by side."""

    def split(messages: int) -> Sequence[int]:
        count = math.ceil(messages / size)
        count = min(messages, math.ceil(count / places) * places)
        return [len(part) for part in np.array_split(range(messages), count)] if count else []

    return split
