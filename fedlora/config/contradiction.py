"""What a rule about a whole configuration says if it does not hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedlora.config.schema import RunConfig


@dataclass(frozen=True)
class Contradiction:
    """What is wrong, and the keys it is about (dotted)."""

    keys: tuple[str, ...]
    text: str


Rule = Callable[[RunConfig], Iterator[Contradiction]]
