"""FFA-LoRA: A is frozen at its random start, only B is trained and averaged.

Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313.

    A = A₀ for ever,   B ← Σ p_k·B_k.

Exact: Σ p_k·B_k·A₀ = (Σ p_k·B_k)·A₀. Noise on B stays linear in ΔW, which is why it suits differential privacy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role
from fedlora.strategies.base import Setup, State, Strategy
from fedlora.strategies.layout import SHARED, Use, adapter_manifest, initial_state, lora_values


@dataclass(frozen=True)
class FfaLora(Strategy):
    """FFA-LoRA. No options. Bytes a module and round, each way: r·d numbers; A is never sent, the seed gives it."""

    name = "ffa_lora"
    summary = "FFA-LoRA: A is frozen and comes from the seed, only B is trained and sent"
    paper = "Sun et al., ICLR 2024, arXiv:2403.12313"
    exact = True
    buffered = True
    defaults: ClassVar[Mapping[str, Any]] = {"adapter.r": 8, "adapter.scaling": 2.0, "train.lr": 1e-2}

    def manifest(self, setup: Setup) -> Manifest:
        """A of each module: frozen, derived from the seed by every host. B: trained, sent in every round."""
        return adapter_manifest(setup, Form.LORA, {Role.A: Use(False, Delivery.SEED), Role.B: SHARED})

    def start(self, setup: Setup) -> State:
        """B = 0."""
        return initial_state(self.manifest(setup), lora_values(setup))
