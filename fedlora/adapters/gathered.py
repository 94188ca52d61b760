"""An adapter's parameters in one piece of memory, so that one copy reads or loads them all."""

from collections.abc import Mapping
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
        self._known: dict[tuple[str, ...], Tensor | None] = {}
        for name, (begin, end, shape) in self._places.items():
            parameters[name].data = self._memory[begin:end].view(shape)
        self._there = {name: parameter.data_ptr() for name, parameter in parameters.items()}

    def piece(self, names: tuple[str, ...]) -> Tensor | None:
        """The memory of exactly these parameters, one behind another; None if it is not that of them in this order."""
        if names not in self._known:
            self._known[names] = self._found(names)
        found = self._known[names]
        return found if found is not None and self._are_there(names) else None

    def _found(self, names: tuple[str, ...]) -> Tensor | None:
        if not names or not self._places.keys() >= set(names):
            return None
        places = [self._places[name] for name in names]
        joined = all(one[1] == other[0] for one, other in pairwise(places))
        return self._memory[places[0][0] : places[-1][1]] if joined else None

    def _are_there(self, names: tuple[str, ...]) -> bool:
        parameters, there = self._parameters, self._there
        return all(parameters[name].data_ptr() == there[name] for name in names)
