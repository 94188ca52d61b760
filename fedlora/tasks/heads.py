"""The task's head: which parameters it is made of, and their initial values.

The head is everything in a stock classification model that is outside its backbone (transformers' `base_model_prefix`):
`classifier` in BERT and ViT, `classifier.dense` and `classifier.out_proj` in RoBERTa, `pre_classifier` and `classifier`
in DistilBERT, `score` in Llama. This is known from the structure alone, so a model without values has the same head.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fedlora.errors import ModelError
from fedlora.seeding import torch_seed


def head_parameters(model: nn.Module) -> list[str]:
    """The names in `model.named_parameters()` of the head, in the model's order.

    Raises ModelError if `model` is no stock transformers model (PEFT wrappers change the names: ask before wrapping).
    """
    prefix = str(getattr(model, "base_model_prefix", ""))
    if prefix not in dict(model.named_children()):
        raise ModelError(
            f"{type(model).__name__} has no backbone {prefix!r} beside its head, so fedlora cannot tell which"
            " parameters are new; use an architecture of transformers, not wrapped by PEFT yet"
        )
    return [name for name, _ in model.named_parameters() if not name.startswith(prefix + ".")]


def initialise_head(model: nn.Module, seed: int, missing: Collection[str]) -> None:
    """Gives the head its initial values from `seed` and each parameter's name alone, in place.

    Drawn anew are the parameters in `missing` (what the checkpoint did not have) and, always, those of the output layer
    (first dimension = number of labels): what a checkpoint's own classifier learned was about other labels. A layer
    between backbone and output that the checkpoint brings (ModernBERT's `head`) keeps its values.

    Matrices are normal with the configuration's `initializer_range` as standard deviation, biases 0, the gains of
    normalisation layers 1.
    """
    config: Any = model.config
    std = float(getattr(config, "initializer_range", 0.02))
    parameters = dict(model.named_parameters())
    for name in head_parameters(model):
        parameter = parameters[name]
        if name in missing or parameter.shape[0] == config.num_labels:
            parameter.data.copy_(_initial(name, parameter, std, seed))


def _initial(name: str, parameter: Tensor, std: float, seed: int) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros_like(parameter)
    if parameter.ndim < 2:
        return torch.ones_like(parameter)
    generator = torch.Generator().manual_seed(torch_seed(seed, "head", name))
    return torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
