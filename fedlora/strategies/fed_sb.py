"""Fed-SB: W = W0 + s·B·R·A with B and A frozen and common to all; only the small R is trained and averaged.

Singhal, Ponkshe, Vartak, Varshney, Vepakomma, "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and
Performance in (Private) Federated LoRA Fine-Tuning", arXiv:2502.15436; its initialisation is LoRA-SB's, Ponkshe,
Singhal et al., arXiv:2411.19557.

    R ← Σ p_k·R_k.        Exact: Σ p_k·B·R_k·A = B·(Σ p_k·R_k)·A.

B (d, r) has orthonormal columns and A (r, k) orthonormal rows, whichever initialisation makes them:

init=weights    W0 = U·S·Vᵀ, B = U_r, A = V_rᵀ, R = 0. Reads no data.
init=random     B and A random (Haar), from the seed, R = 0. Reads no data.
init=public     LoRA-SB: with G the gradient of the loss at W0 on public rows, −η·sign(G) = U·S·Vᵀ is the first step of
                Adam in full fine-tuning; B = U_r, A = V_rᵀ, R = diag(S_r)/s, so that training starts at W0 plus the
                rank-r part of that step.
init=paper      The same with G from the union of all clients' private rows, as in the paper's code: simulation only. B,
                A and R then say something of private rows that no privacy mechanism covers.
init=private    Experimental, not in the paper: B and A from a sketch of the clients' first-step gradients that is
                differentially private. With Ω (k, r) and Ψ (d, r) public, from the seed, the server gets the clients'
                mean of Y = G·Ω and Z = Gᵀ·Ψ, clipped and noised by each client; B = basis of Y's columns, Aᵀ = basis
                of Z's, R = 0 (a randomised range finder: Halko, Martinsson, Tropp, arXiv:0909.4061). Costs one DP
                release; B and A are post-processing of it. The sketches have r·(d + k) numbers a module, so the noise
                drowns them unless there are many clients, or many units a client.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedlora.adapters.algebra import Matrix, float64
from fedlora.adapters.manifest import Form, Manifest, Role, factor_name
from fedlora.errors import StrategyError
from fedlora.seeding import stream
from fedlora.strategies.base import Setup, State, Strategy, sketch_name
from fedlora.strategies.layout import FIXED, SHARED, adapter_manifest, initial_state

log = logging.getLogger(__name__)

Start = tuple[Matrix, Matrix, Matrix]
"""B (d, r), R (r, r) and A (r, k) of one module."""

NOT_PRIVATE = (
    "strategy.init=paper reads the gradient of all clients' private rows and gives what it learns to everyone: this run"
    " is NOT private, whatever noise is added later. Use it in simulations, to compare with the paper;"
    " init=weights and init=random read no data, init=public reads only public rows"
)


@dataclass(frozen=True)
class FedSb(Strategy):
    """Fed-SB. Bytes a module and round, each way: r² numbers; A and B once, r·(d + k) numbers.

    init=private is experimental: B and A from differentially private sketches, r·(d + k) numbers a module, sent once by
    each client before round 1.
    """

    init: Annotated[
        Literal["weights", "random", "public", "paper", "private"],
        Field(
            description="where B, A and the first R come from: SVD of the base weights, the seed, LoRA-SB on public"
            " rows, LoRA-SB on all clients' private rows (the paper's: simulation only, not private), or noised"
            " sketches of the clients' gradients (private: experimental, needs privacy=dp, costs one release)"
        ),
    ] = "weights"
    init_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="public and paper: η, the size of LoRA-SB's first step")
    ] = 1e-4

    name = "fed_sb"
    summary = "Fed-SB: B and A are common and frozen, only the r×r core R is trained and sent"
    paper = "Singhal et al., arXiv:2502.15436 (LoRA-SB: Ponkshe et al., arXiv:2411.19557)"
    exact = True
    buffered = True
    defaults: ClassVar[Mapping[str, Any]] = {"adapter.r": 64, "adapter.scaling": 1.0, "train.lr": 1e-2}

    @property
    def reads_private_data(self) -> bool:
        """True for `init=paper`, which is not private."""
        return self.init == "paper"

    @property
    def private_start(self) -> bool:
        """True for `init=private`."""
        return self.init == "private"

    def manifest(self, setup: Setup) -> Manifest:
        """B, R and A of each module: R trained and sent in every round, B and A frozen and sent once."""
        return adapter_manifest(setup, Form.LORA_SB, {Role.B: FIXED, Role.R: SHARED, Role.A: FIXED})

    def start(self, setup: Setup) -> State:
        """B, A and the first R of each module, by `init`.

        Raises StrategyError if a weight, gradient or sketch that `init` needs is missing, has a wrong shape or is not
        finite, or if `init=private` meets clients that do not train under DP.
        """
        manifest = self.manifest(setup)
        values: dict[str, NDArray[Any]] = dict(setup.head)
        start = _INITS[self.init](setup, self.init_lr)
        for module in setup.modules:
            for role, factor in zip((Role.B, Role.R, Role.A), start(module), strict=True):
                values[factor_name(module, role)] = factor
        return initial_state(manifest, values)


def truncated_svd(matrix: NDArray[Any], r: int) -> tuple[Matrix, NDArray[np.float64], Matrix]:
    """The rank-r part U_r·diag(S_r)·V_rᵀ of `matrix` (d, k): U_r (d, r), S_r (r,) falling, V_rᵀ (r, k); r ≤ min(d, k).

    LAPACK in float64. A singular pair's sign is free; here the entry of U_r's column that is largest in magnitude is
    positive, so the factors do not hang on the LAPACK.
    """
    u, s, vt = np.linalg.svd(float64(matrix), full_matrices=False)
    u, vt = u[:, :r], vt[:r]
    signs = np.sign(u[np.argmax(np.abs(u), axis=0), np.arange(r)])
    return u * signs, s[:r], vt * signs[:, None]


def bases_from_sketches(y: NDArray[Any], z: NDArray[Any]) -> tuple[Matrix, Matrix]:
    """B (d, r) and A (r, k) from a module's sketches Y (d, r) and Z (k, r): orthonormal bases of their columns.

    B holds the left singular vectors of Y, A those of Z, transposed, by falling singular values. r ≤ min(d, k).
    """
    r = y.shape[1]
    return truncated_svd(y, r)[0], truncated_svd(z, r)[0].T


def _from_weights(setup: Setup, init_lr: float) -> Callable[[str], Start]:
    del init_lr

    def start(module: str) -> Start:
        weight = _checked("base weight", module, setup.weight(module), setup.modules[module])
        u, _, vt = truncated_svd(weight, setup.r)
        return u, np.zeros((setup.r, setup.r)), vt

    return start


def _from_seed(setup: Setup, init_lr: float) -> Callable[[str], Start]:
    del init_lr

    def start(module: str) -> Start:
        d, k = setup.modules[module]
        b = _orthonormal(d, setup.r, setup.seed, "fed_sb", "B", module)
        a = _orthonormal(k, setup.r, setup.seed, "fed_sb", "A", module)
        return b, np.zeros((setup.r, setup.r)), a.T

    return start


def _orthonormal(rows: int, columns: int, seed: int, *purpose: str) -> Matrix:
    """Orthonormal columns, distributed evenly: Q of a Gaussian matrix, with R's diagonal made positive."""
    q, r = np.linalg.qr(stream(seed, *purpose).standard_normal((rows, columns)))
    return float64(q * np.sign(np.diag(r)))


def _from_public_rows(setup: Setup, init_lr: float) -> Callable[[str], Start]:
    return _from_gradient(setup, init_lr, "public")


def _from_private_rows(setup: Setup, init_lr: float) -> Callable[[str], Start]:
    log.warning(NOT_PRIVATE)
    return _from_gradient(setup, init_lr, "private")


def _from_gradient(setup: Setup, init_lr: float, rows: str) -> Callable[[str], Start]:
    gradients = setup.gradient(rows)

    def start(module: str) -> Start:
        if module not in gradients:
            raise StrategyError(
                f"no gradient on {rows} rows was given for module {module!r}: fed_sb cannot start from it"
            )
        gradient = _checked(f"gradient on {rows} rows", module, gradients[module], setup.modules[module])
        u, s, vt = truncated_svd(-init_lr * np.sign(gradient), setup.r)
        return u, np.diag(s / setup.scaling), vt

    return start


def _from_sketches(setup: Setup, init_lr: float) -> Callable[[str], Start]:
    del init_lr
    sketches = setup.sketch(setup.r)

    def start(module: str) -> Start:
        d, k = setup.modules[module]
        b, a = bases_from_sketches(sketch(module, "Y", d), sketch(module, "Z", k))
        return b, np.zeros((setup.r, setup.r)), a

    def sketch(module: str, side: Literal["Y", "Z"], rows: int) -> Matrix:
        name = sketch_name(module, side)
        if name not in sketches:
            raise StrategyError(f"no sketch {name!r} was given: fed_sb cannot start {module!r} from it")
        return _checked(f"sketch {side}", module, sketches[name], (rows, setup.r))

    return start


def _checked(what: str, module: str, matrix: NDArray[Any], shape: tuple[int, int]) -> Matrix:
    if matrix.shape != shape:
        raise StrategyError(f"the {what} of {module!r} has shape {matrix.shape}, not {shape}")
    if not np.isfinite(matrix).all():
        raise StrategyError(
            f"the {what} of {module!r} has values that are NaN or infinite: fed_sb cannot start from it"
        )
    return float64(matrix)


_INITS: Mapping[str, Callable[[Setup, float], Callable[[str], Start]]] = {
    "weights": _from_weights,
    "random": _from_seed,
    "public": _from_public_rows,
    "paper": _from_private_rows,
    "private": _from_sketches,
}
