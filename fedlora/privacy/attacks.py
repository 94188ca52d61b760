"""What whoever sees one client's update can try: read the text it was trained on, and tell who was in it.

For demonstrations and tests: an attack that fails proves nothing, one that succeeds shows what an update gives away.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlora.errors import PrivacyError


@dataclass(frozen=True)
class Membership:
    """How well scores tell members from others: area under the ROC curve (1/2 is chance), and one point of it."""

    auc: float
    tpr: float
    """The part of the members found where 1 % of the others are taken for members."""


def membership(members: NDArray[np.float64], others: NDArray[np.float64]) -> Membership:
    """How well a score tells: `members` [n] should be higher than `others` [m].

    Ties count half for the area. Yeom et al., arXiv 1709.01604 (the attack by losses); Carlini et al., arXiv 2112.03570
    (why the part found at few false alarms is what counts).
    """
    below = np.searchsorted(np.sort(others), members, "left") + np.searchsorted(np.sort(others), members, "right")
    threshold = np.quantile(others, 0.99, method="higher")
    return Membership(float(below.mean() / (2 * len(others))), float((members > threshold).mean()))


@torch.no_grad()
def bert_inputs(embeddings: nn.Module, ids: Tensor, position: int) -> Tensor:
    """What a BERT's first layer is given for each token of `ids` [V] at `position`: [V, k]. Public with the model."""
    places = torch.full((len(ids), 1), position, device=ids.device)
    found: Tensor = embeddings(input_ids=ids.unsqueeze(1), position_ids=places)
    return found.squeeze(1)


def read_tokens(change: Tensor, candidates: Tensor) -> list[int]:
    """The tokens of the one text that a LoRA module of the first layer was trained on for one step from B = 0.

    change [d, r]: what plain SGD made of B, a multiple of Σ_t g_t (A·x_t)ᵀ over the text's T tokens: its rows span what
    A·x_t span. candidates [T, V, r]: A·x for each position and each token of the vocabulary. Returns for each position
    the number of the token that lies best in the T strongest directions of `change`. The span check of DAGER (Petrov et
    al., arXiv 2405.15586), in the r dimensions that LoRA leaves.

    Raises PrivacyError unless T < r: everything lies in r directions.
    """
    tokens, _, rank = candidates.shape
    if not tokens < rank:
        raise PrivacyError(f"{tokens} tokens cannot be told apart in {rank} dimensions: give a shorter text")
    directions = torch.linalg.svd(change.double(), full_matrices=False).Vh[:tokens].to(candidates.dtype)
    inside = torch.linalg.vector_norm(candidates @ directions.T, dim=2) / torch.linalg.vector_norm(candidates, dim=2)
    return [int(token) for token in inside.argmax(dim=1)]
