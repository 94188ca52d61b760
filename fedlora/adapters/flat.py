"""Named tensors that lie one behind another in one piece of memory: copied, checked and added up in one go.

An adapter is some dozens of small tensors, and each operation on an array costs a microsecond before it does anything.
What a simulation's client trains comes in one piece, and stays in one piece until it is averaged.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.manifest import Tensors

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes, in order."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each of some named tensors lies in one piece. Made by `layout_of`: equal ones are the same object."""

    shapes: Shapes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(name for name, _ in self.shapes)

    @cached_property
    def places(self) -> Mapping[str, tuple[int, int, tuple[int, ...]]]:
        """By name: where its values begin and end, and its shape."""
        found, end = {}, 0
        for name, shape in self.shapes:
            begin, end = end, end + math.prod(shape)
            found[name] = (begin, end, shape)
        return found

    @cached_property
    def size(self) -> int:
        """The number of values."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def __reduce__(self) -> tuple[Any, ...]:
        return layout_of, (self.shapes,)


@lru_cache(maxsize=256)
def layout_of(shapes: Shapes) -> Layout:
    """The layout of tensors with these names and shapes, one behind another."""
    return Layout(shapes)


class Flat(Mapping[str, NDArray[Any]]):
    """Tensors by name, as views of one array that nobody changes any more.

    vector: shape (layout.size,).
    """

    __slots__ = ("_views", "layout", "vector")

    def __init__(self, layout: Layout, vector: NDArray[Any]) -> None:
        """Takes `vector` over: they become read-only. Raises ValueError if they are not as many as the layout has."""
        if vector.shape != (layout.size,):
            raise ValueError(f"the vector has shape {vector.shape}; the layout has ({layout.size},)")
        vector.flags.writeable = False
        self.layout, self.vector = layout, vector
        self._views: dict[str, NDArray[Any]] | None = None

    def __getitem__(self, name: str) -> NDArray[Any]:
        if self._views is None:
            places = self.layout.places.items()
            self._views = {each: self.vector[begin:end].reshape(shape) for each, (begin, end, shape) in places}
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.places

    def __reduce__(self) -> tuple[Any, ...]:
        return Flat, (self.layout, self.vector)


def flattened(tensors: Tensors) -> Tensors:
    """The tensors in one piece, unless they are, or their dtypes differ: then as they are."""
    kinds = {array.dtype for array in tensors.values()} if not isinstance(tensors, Flat) else set()
    if len(kinds) != 1:
        return tensors
    layout = layout_of(tuple((name, array.shape) for name, array in tensors.items()))
    return Flat(layout, np.concatenate([np.ravel(array) for array in tensors.values()]))


def only(tensors: Tensors, names: Iterable[str]) -> Tensors:
    """Those of `tensors` with these `names`, in their order: in one piece if they are, and no others."""
    wanted = tuple(names)
    if isinstance(tensors, Flat) and tensors.layout.names == wanted:
        return tensors
    return {name: tensors[name] for name in wanted}


def weighted_sum(sums: Tensors, tensors: Tensors, weight: float) -> Tensors:
    """sums + weight·tensors in float64, each tensor by itself (or all in one go, which gives the same bits).

    sums: {} for none so far. A tensor that it does not have begins there.
    """
    if isinstance(tensors, Flat) and (not sums or (isinstance(sums, Flat) and sums.layout is tensors.layout)):
        total = tensors.vector.astype(np.float64)  # by itself: a product that converts goes through small buffers
        total *= weight
        if isinstance(sums, Flat):
            total += sums.vector
        return Flat(tensors.layout, total)
    terms = {name: np.asarray(weight * np.asarray(array, dtype=np.float64)) for name, array in tensors.items()}
    for name, term in terms.items():
        if name in sums:
            np.add(sums[name], term, out=term)
    return terms
