"""Other forward passes for modules, for a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Forwards = Mapping[Any, Callable[..., Any]]
"""Modules, each with another forward pass."""


@contextmanager
def instead(forwards: Forwards) -> Iterator[None]:
    """Within the block, each of the modules has another forward pass; afterwards its own, whatever happened."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward  # the class's own is back
            else:
                module.forward = own
