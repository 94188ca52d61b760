"""One gradient for each record: a buffer [n, P], and the sum of its clipped rows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.errors import PrivacyError


class GradientRows:
    """The buffer in which a backward pass leaves each record's gradient: row i is record i's, all parameters in a row.

    Each parameter has its columns, and each is written exactly once a pass: what is missing, or comes twice, would be
    released unclipped or not at all, so `finish` and `slot` raise then. A "parameter" may be any tensor that stands for
    what is kept: its identity, shape, dtype and device count, its values do not.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._offsets = _offsets(self._parameters)
        self._room = self._buffer = torch.empty(0)
        self._written: set[int] = set()
        self.records = 0

    @property
    def width(self) -> int:
        """P: the numbers in a row."""
        return sum(parameter.numel() for parameter in self._parameters)

    def begin(self, records: int) -> None:
        """Makes ready for a backward pass over a batch of `records` records."""
        like = self._parameters[0]
        if records * self.width > self._room.numel() or self._room.dtype is not like.dtype:
            self._room = torch.empty(records * self.width, dtype=like.dtype, device=like.device)
        # Samples differ in size from step to step: the memory that the largest needed is used again.
        self._buffer = self._room[: records * self.width].view(records, self.width)
        self._written.clear()
        self.records = records

    def zeros(self) -> Tensor:
        """An empty sum of rows, shape [P], of the parameters' type and device."""
        like = self._parameters[0]
        return torch.zeros(self.width, dtype=like.dtype, device=like.device)

    def holds(self, parameter: Tensor) -> bool:
        """Whether `parameter` is one of those whose gradients are kept."""
        return id(parameter) in self._offsets

    def slot(self, parameter: Tensor) -> Tensor:
        """Where the gradients of `parameter` belong: a view [n, *shape], to be overwritten.

        Raises PrivacyError if it was asked for before in this pass: a module that is used twice in one forward pass.
        """
        if id(parameter) in self._written:
            raise PrivacyError(
                f"a parameter of shape {tuple(parameter.shape)} got its per-record gradient twice in one backward pass:"
                " its module is used more than once in the model's forward pass, which DP-SGD here does not support;"
                " leave that module out of adapter.targets"
            )
        self._written.add(id(parameter))
        offset = self._offsets[id(parameter)]
        columns = self._buffer[:, offset : offset + parameter.numel()]
        return columns.view(self.records, *parameter.shape)

    def check_records(self, rows: int, module: str) -> None:
        """Raises PrivacyError unless a module that was given `rows` rows saw one for each record."""
        if rows != self.records:
            raise PrivacyError(
                f"module {module!r} was given {rows} rows for a batch of {self.records} records: rows that are shared"
                " or split between records (packed texts, flattened tokens) cannot be clipped record by record; set"
                " train.packing=false, or leave that module out of adapter.targets"
            )

    def finish(self) -> Tensor:
        """The rows [n, P] of this pass; valid until the next `begin`.

        Raises PrivacyError if a parameter got no gradient.
        """
        missing = len(self._parameters) - len(self._written)
        if missing:
            raise PrivacyError(
                f"{missing} of {len(self._parameters)} trained parameters got no per-record gradient: the loss does not"
                " depend on them, or their module is not one that DP-SGD here supports"
            )
        return self._buffer


def _offsets(parameters: Sequence[Tensor]) -> dict[int, int]:
    offsets, width = {}, 0
    for parameter in parameters:
        offsets[id(parameter)] = width
        width += parameter.numel()
    return offsets


def sum_by_unit(rows: Tensor, units: Tensor, count: int) -> Tensor:
    """The rows of each privacy unit added up: rows [n, P], units [n] with values in 0..count−1 → [count, P]."""
    return torch.zeros(count, rows.shape[1], dtype=rows.dtype, device=rows.device).index_add_(0, units, rows)


def clipped_sum(rows: Tensor, bound: float) -> Tensor:
    """Σ_i g_i · min(1, bound / ‖g_i‖₂) over the rows g_i of `rows` [n, P]; shape [P].

    A row that is not finite, or whose norm is not, weighs 0. So adding or removing one row moves the sum by at most
    `bound` (up to the rounding of `rows.dtype`). Abadi et al. (arXiv 1607.00133, algorithm 1), clipping as in Opacus.
    """
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    weights = torch.where(finite, (bound / norms).clamp(max=1.0), torch.zeros_like(norms))
    if not bool(finite.all()):
        rows = rows.masked_fill(~finite.unsqueeze(1), 0.0)  # 0 · NaN would be NaN
    return weights @ rows


def split_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """`flat` [P] cut into the shapes of `parameters`, in their order. Views."""
    parts = torch.split(flat, [math.prod(parameter.shape) for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
