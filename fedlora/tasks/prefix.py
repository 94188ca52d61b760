"""Hidden states that no client can change, computed once.

Where the first adapted layer is layer k > 0, what enters it is a constant of each record: the layers below are frozen,
and there is no dropout in them. So it is computed once for all rows of a split, kept in a file that is mapped into
memory (processes that are forked afterwards share it), and put into the batches; layers 0 to k − 1 are then left out.

The file has no name and is gone with the last process that maps it: hidden states tell of the texts.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlora.adapters.forwards import instead
from fedlora.errors import ModelError
from fedlora.tasks.base import Batch, move
from fedlora.tasks.last_layer import FAMILIES, LastLayer, last_layer, unchanged
from fedlora.tasks.packing import LENGTHS, OWNERS
from fedlora.tasks.rows import TokenRows

STATES, LAYER = "entering", "entering_layer"
"""A batch's keys: the hidden states, [m, T, d] and 0 at padding, and which layer (0-based) they enter, []."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class EnteredRows:
    """Tokenised rows (`fedlora.tasks.base.Encoded`) whose batches have the hidden states that enter layer `layer`.

    states: float32 [tokens, d], record after record.
    """

    rows: TokenRows
    states: NDArray[np.float32]
    layer: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.rows.lengths

    def batch(self, rows: Sequence[int]) -> Batch:
        """See `TokenRows.batch`."""
        return self._entered(self.rows.batch(rows), rows)

    def compact(self, rows: Sequence[int]) -> Batch:
        """See `TokenRows.compact`."""
        return self._entered(self.rows.compact(rows), rows)

    def dealt(self, parts: Sequence[Sequence[int]], *, level: bool = False) -> tuple[Batch, Sequence[int]]:
        """See `TokenRows.dealt`."""
        batch, counts = self.rows.dealt(parts, level=level)
        return self._entered(batch, [row for part in parts for row in part]), counts

    def _entered(self, batch: dict[str, Tensor], rows: Sequence[int]) -> Batch:
        offsets = self.rows.columns["input_ids"].offsets
        found = np.concatenate([self.states[offsets[row] : offsets[row + 1]] for row in rows])
        states = torch.zeros(*batch["input_ids"].shape, found.shape[1])
        states.view(-1, found.shape[1])[_places(batch)] = torch.from_numpy(found)
        return {**batch, STATES: states, LAYER: torch.tensor(self.layer)}


def frozen_layers(model: nn.Module, adapted: Iterable[str]) -> int:
    """How many layers from the input on have none of the modules `adapted` (paths in `model`): never the last one.

    0 where the architecture is not known, or a module outside its layers, and not after them, is adapted.
    """
    known = last_layer(model)
    if known is None:
        return 0
    paths = {id(module): path for path, module in known.model.named_modules()}
    layers = [paths[id(layer)] + "." for layer in known.layers]
    after = [f"{paths[id(known.backbone)]}.{name}." for name in known.family.after]
    counted = [_layer_of(path, layers) for path in adapted if not any(path.startswith(part) for part in after)]
    return min([*counted, len(layers) - 1])


def with_states(model: nn.Module, rows: TokenRows, layer: int, *, batch: int, most: float) -> EnteredRows:
    """The rows with what enters layer `layer` (at least 1), computed now, `batch` rows of like length at a time.

    most: bytes that may be kept. Leaves the model as it is; it must be in eval mode.

    Raises ModelError if the states are larger than that, or the architecture is not known.
    """
    known = last_layer(model)
    if known is None:
        raise ModelError(f"{type(model).__name__} is no architecture whose layers can be left out: {sorted(FAMILIES)}")
    shape = (int(rows.lengths.sum()), int(known.backbone.config.hidden_size))
    if 4.0 * shape[0] * shape[1] > most:
        raise ModelError(
            f"the hidden states of {len(rows)} rows are {4e-9 * shape[0] * shape[1]:.1f} GB, more than the"
            f" {1e-9 * most:.1f} GB that may be kept; adapt all layers, or train without keeping them"
        )
    with tempfile.TemporaryFile(prefix="fedlora-") as file:  # 0600, without a name; the mapping keeps it
        states: NDArray[np.float32] = np.memmap(file, np.float32, "w+", shape=shape)
    _fill(known, rows, layer, states, batch)
    return EnteredRows(rows, states, layer)


@contextmanager
def entering(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Within the block, `model` begins at the layer that the batch has hidden states for, if it has any.

    Raises ModelError if dropout is on in the layers that would be left out.
    """
    known = last_layer(model) if STATES in batch else None
    if known is None:
        yield
        return
    below = known.layers[: int(batch[LAYER])]
    if any(layer.training for layer in below):
        raise ModelError(
            f"layers 0 to {len(below) - 1} are in train mode, but what they give was kept without dropout; set"
            " model.dropout=false, or train without keeping it"
        )
    with instead(dict.fromkeys(below[:-1], unchanged) | {below[-1]: _giving(batch[STATES])}):
        yield


def _giving(states: Tensor) -> Any:
    return lambda hidden, *_, **__: states.to(hidden.dtype)


@torch.no_grad()
def _fill(known: LastLayer, rows: TokenRows, layer: int, states: NDArray[np.float32], size: int) -> None:
    offsets = rows.columns["input_ids"].offsets
    device = next(known.model.parameters()).device
    order = np.argsort(-rows.lengths, kind="stable")
    above = dict.fromkeys(known.layers[layer:], unchanged)
    for start in range(0, len(order), size):
        chosen = order[start : start + size].tolist()
        inputs: Mapping[str, Tensor] = {n: t for n, t in rows.batch(chosen).items() if n in _INPUTS}
        found = known.before_norm(move(inputs, device), above).float().cpu().numpy()
        for place, row in enumerate(chosen):
            states[offsets[row] : offsets[row + 1]] = found[place, : offsets[row + 1] - offsets[row]]


def _places(batch: Batch) -> Tensor:
    """The flat places of all tokens in a batch, record after record."""
    if OWNERS not in batch:
        return batch["attention_mask"].flatten().nonzero().squeeze(-1)
    owners = batch[OWNERS].flatten()
    order = owners.argsort(stable=True)
    return order[: int((owners < len(batch[LENGTHS])).sum())]


def _layer_of(path: str, layers: Sequence[str]) -> int:
    return next((index for index, layer in enumerate(layers) if path.startswith(layer)), 0)
