"""What every classifier shares: loss and accuracy of each record from its logits."""

from torch import Tensor
from torch.nn.functional import cross_entropy


def record_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each record: logits [n, C], labels [n] → [n]."""
    return cross_entropy(logits, labels, reduction="none")


def record_metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`loss` and `accuracy` (0 or 1) of each record, each [n]."""
    return {
        "loss": record_losses(logits, labels),
        "accuracy": (logits.argmax(dim=-1) == labels).to(logits.dtype),
    }
