"""FedIT: federated averaging of LoRA's two factors, each by itself.

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv:2305.05644.
McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.

    A ← Σ p_k·A_k,   B ← Σ p_k·B_k,   p_k = w_k / Σ w over the clients that reported.

Not exact: Σ p_k·B_k·A_k ≠ B·A. What is missing is Σ p_k·(B_k − B)(A_k − A).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedlora.adapters.manifest import Form, Manifest, Role
from fedlora.strategies.base import Setup, State, Strategy
from fedlora.strategies.layout import SHARED, adapter_manifest, initial_state, lora_values


@dataclass(frozen=True)
class FedAvg(Strategy):
    """FedIT. No options. Bytes a module and round, each way: r·(d + k) numbers."""

    name = "fedavg"
    summary = "FedIT: clients train A and B, the server averages each by itself"
    paper = "Zhang et al., ICASSP 2024, arXiv:2305.05644"
    exact = False
    buffered = True
    defaults: ClassVar[Mapping[str, Any]] = {"adapter.r": 8, "adapter.scaling": 2.0, "train.lr": 3e-3}

    def manifest(self, setup: Setup) -> Manifest:
        """A and B of each module: trained, sent in every round."""
        return adapter_manifest(setup, Form.LORA, {Role.A: SHARED, Role.B: SHARED})

    def start(self, setup: Setup) -> State:
        """A from the seed (Kaiming uniform), B = 0."""
        return initial_state(self.manifest(setup), lora_values(setup))
