"""What an update is worth that was begun before the present state: its change counts from here, damped.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, arXiv:2106.06639 (FedBuff); the damping is its s(τ) = (1 + τ)^(−a) with a = 1/2.

A client that began at x_v sends x_v + δ. If the state is x_t by then, it counts as x_t + s(t − v)·δ. So the mean of K
updates, whichever state each began at, is

    x_{t+1} = x_t + (1/K)·Σ s(τ_k)·δ_k,

FedBuff with a server rate of 1. It holds for methods whose server averages each tensor by itself (`Strategy.buffered`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora.adapters.manifest import Tensors


def damping(staleness: int, exponent: float) -> float:
    """s(τ) = (1 + τ)^(−a) for staleness τ ≥ 0 and exponent a ≥ 0: 1 for what is not stale, less the older it is."""
    return float((1.0 + staleness) ** -exponent)


def moved(tensors: Tensors, begun: Tensors, now: Tensors, part: float) -> Tensors:
    """The update `tensors`, trained from `begun`, as it counts at the state `now`: now + part·(tensors − begun).

    begun and now have at least the names of `tensors`, in the same shapes. In float64: it is folded in, not sent.
    """
    return {
        name: _float64(now[name]) + part * (_float64(array) - _float64(begun[name])) for name, array in tensors.items()
    }


def _float64(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
