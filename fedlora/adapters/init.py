"""Initial values of factors, from the run's seed and nothing else."""

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.manifest import Delivery, Manifest, Role
from fedlora.seeding import portable_uniform


def kaiming_a(seed: int, module: str, r: int, k: int, dtype: str = "float32") -> NDArray[np.floating]:
    """LoRA's usual A, shape (r, k): uniform in ±1/√k (Kaiming uniform with a = √5, as PEFT draws it).

    It depends on the seed and the module's name alone, so different modules get different A and every host
    computes the same bits.
    """
    bound = 1.0 / np.sqrt(k)
    return portable_uniform((r, k), -bound, bound, seed, "lora_A", module).astype(dtype)


def derive_seeded(manifest: Manifest) -> dict[str, NDArray[np.floating]]:
    """All tensors of `manifest` that are never sent because the seed determines them (`Delivery.SEED`).

    Raises ValueError for a tensor other than an A: only A has a seeded definition.
    """
    derived = {}
    for name in manifest.names(Delivery.SEED):
        spec = manifest.tensors[name]
        if spec.role is not Role.A:
            raise ValueError(
                f"tensor {name!r} has role {spec.role} and delivery 'seed': only A can be derived from a seed"
            )
        r, k = spec.shape
        derived[name] = kaiming_a(manifest.seed, spec.module, r, k, spec.dtype)
    return derived
