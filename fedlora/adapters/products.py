"""A sum of many low-rank products, kept small: Σ_k w_k·L_k·M_k."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters import algebra
from fedlora.adapters.algebra import Factors, Matrix, float64


@dataclass(frozen=True)
class ProductSum:
    """Σ w_k·L_k·M_k of shape (d, k), streamed; immutable, so `plus` and `merge` give a new sum.

    Terms are kept as factors while their ranks add up to less than min(d, k). Then they are multiplied out into one
    dense (d, k) matrix and collected anew. So it needs at most 2·d·k + max(d, k)·(min(d, k) + r) numbers, however many
    terms there are, and no d×k matrix at all while there are few.

    It is made of float64 arrays alone: lefts of shape (d, r_i), rights of shape (r_i, k), dense of shape (d, k) or
    None.
    """

    shape: tuple[int, int]
    lefts: tuple[Matrix, ...] = ()
    rights: tuple[Matrix, ...] = ()
    dense: Matrix | None = None

    @property
    def rank(self) -> int:
        """The ranks of the terms that are kept as factors, added up."""
        return sum(left.shape[1] for left in self.lefts)

    def plus(self, left: NDArray[Any], right: NDArray[Any], weight: float = 1.0) -> "ProductSum":
        """This sum and weight·left·right, with left of shape (d, r) and right of shape (r, k).

        A term with a zero factor adds nothing and is not kept. Raises ValueError for other shapes.
        """
        if (left.shape[0], right.shape[1]) != self.shape or left.shape[1] != right.shape[0]:
            raise ValueError(f"factors of shapes {left.shape} and {right.shape} do not make a {self.shape} product")
        if not (weight and left.any() and right.any()):
            return self
        term = weight * float64(left)
        return replace(
            self, lefts=(*self.lefts, term), rights=(*self.rights, np.array(right, dtype=np.float64))
        )._bounded()

    def merge(self, other: "ProductSum") -> "ProductSum":
        """The sum of both. Raises ValueError if their shapes differ."""
        if self.shape != other.shape:
            raise ValueError(f"sums of shapes {self.shape} and {other.shape} cannot be added")
        parts = [dense for dense in (self.dense, other.dense) if dense is not None]
        dense = sum(parts[1:], start=parts[0]) if parts else None
        return ProductSum(self.shape, self.lefts + other.lefts, self.rights + other.rights, dense)._bounded()

    def scaled(self, factor: float) -> "ProductSum":
        """This sum times `factor`."""
        lefts = tuple(factor * left for left in self.lefts)
        return replace(self, lefts=lefts, dense=None if self.dense is None else factor * self.dense)

    def times(self, right: NDArray[Any]) -> Matrix:
        """The sum times `right` of shape (k, m): shape (d, m)."""
        left, middle = self._factors()
        thin: Matrix = left @ (middle @ right)
        return thin if self.dense is None else self.dense @ right + thin

    def norm(self) -> float:
        """The Frobenius norm of the sum."""
        if self.dense is None:
            return algebra.norm(self._factors())
        left, right = self._factors()
        return float(np.linalg.norm(self.dense + left @ right))

    def _factors(self) -> Factors:
        d, k = self.shape
        return algebra.stack([(np.zeros((d, 0)), np.zeros((0, k))), *zip(self.lefts, self.rights, strict=True)])

    def _bounded(self) -> "ProductSum":
        if self.rank < min(self.shape):
            return self
        left, right = self._factors()
        product = left @ right
        return ProductSum(self.shape, dense=product if self.dense is None else self.dense + product)
