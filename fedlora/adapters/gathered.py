"""An adapter's parameters in one piece of memory, so that one copy reads or loads them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedlora.adapters.flat import layout_of


class Gathered:
    """Parameters that are moved, in the given order, into one tensor; each is a view of its part of it from then on.

    They stay the same objects, for optimizers and layers. Whoever gives one other memory (`parameter.data = …`) takes
    it out: `piece` notices.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """parameters: of one dtype, on one device."""
        self._parameters = parameters
        self._memory = torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in parameters.items())
        self._places = layout_of(shapes).places
        self._known: dict[tuple[str, ...], _Piece | None] = {}
        for name, (begin, end, shape) in self._places.items():
            parameters[name].data = self._memory[begin:end].view(shape)

    def piece(self, names: tuple[str, ...]) -> Tensor | None:
        """The memory of exactly these parameters, one behind another; None if it is not that of them in this order."""
        if names not in self._known:
            self._known[names] = self._found(names)
        found = self._known[names]
        return found.memory if found is not None and found.is_theirs() else None

    def _found(self, names: tuple[str, ...]) -> "_Piece | None":
        if not names or not self._places.keys() >= set(names):
            return None
        places = [self._places[name] for name in names]
        joined = all(one[1] == other[0] for one, other in pairwise(places))
        if not joined:
            return None
        begin, size = self._memory.data_ptr(), self._memory.element_size()
        owners = [self._parameters[name] for name in names]
        return _Piece(self._memory[places[0][0] : places[-1][1]], owners, [begin + size * one[0] for one in places])


@dataclass(frozen=True)
class _Piece:
    """Memory of parameters one behind another. starts: the address at which each began."""

    memory: Tensor
    owners: Sequence[nn.Parameter]
    starts: Sequence[int]

    def is_theirs(self) -> bool:
        """Whether nobody has given one of them other memory since."""
        return list(map(Tensor.data_ptr, self.owners)) == self.starts
