"""Packed rows are of one width, so there are gaps at their ends: layers that can leave them out are told where."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fedlora.adapters.forwards import Forwards, instead
from fedlora.adapters.unpadded import Tokens, on_tokens
from fedlora.tasks.base import Batch
from fedlora.tasks.last_layer import last_layer
from fedlora.tasks.packing import LENGTHS, OWNERS


@contextmanager
def without_gaps(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Within the block, those of `model`'s layers that can compute the tokens of the batch's rows alone."""
    with instead(_forwards(model, batch) if OWNERS in batch else {}):
        yield


def _forwards(model: nn.Module, batch: Batch) -> Forwards:
    owners, known = batch[OWNERS], last_layer(model)
    if known is None or owners.device.type != "cpu":  # on a GPU, few calls count for more than few tokens
        return {}
    real = owners < len(batch[LENGTHS])
    empty_rows = not bool(real[:, 0].all())
    return {} if empty_rows or bool(real.all()) else on_tokens(known.layers, Tokens.of(real))
