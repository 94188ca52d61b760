"""FedSA-LoRA: clients train A and B, share A and keep B.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025,
arXiv:2410.01463.

    A ← Σ p_k·A_k,   B_k stays with client k.

What comes out is personalised: client k's update is s·B_k·A, and there is no single global one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role
from fedlora.strategies.base import Setup, State, Strategy
from fedlora.strategies.layout import SHARED, Use, adapter_manifest, initial_state, lora_values

OWN = Use(trained=True, delivery=Delivery.LOCAL)


@dataclass(frozen=True)
class FedSaLora(Strategy):
    """FedSA-LoRA. Bytes a module and round, each way: r·k numbers."""

    share_head: Annotated[
        bool, Field(description="average the task's head, which the paper keeps on the client like B")
    ] = False

    name = "fedsa_lora"
    summary = "FedSA-LoRA: clients train A and B, share A, and keep B and the head to themselves"
    paper = "Guo et al., ICLR 2025, arXiv:2410.01463"
    exact = False
    defaults: ClassVar[Mapping[str, Any]] = {"adapter.r": 8, "adapter.scaling": 2.0, "train.lr": 3e-3}

    def manifest(self, setup: Setup) -> Manifest:
        """A of each module: trained, sent in every round. B, and the head: trained, the client's own."""
        head = SHARED if self.share_head else OWN
        return adapter_manifest(setup, Form.LORA, {Role.A: SHARED, Role.B: OWN}, head)

    def start(self, setup: Setup) -> State:
        """A from the seed (Kaiming uniform). Every client's own values start alike: B = 0, and the new head."""
        return initial_state(self.manifest(setup), lora_values(setup))
