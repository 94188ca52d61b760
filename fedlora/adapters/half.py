"""The frozen base in bfloat16, what is trained in float32.

Half the memory, and on processors with instructions for it (AVX512-BF16, AMX, every current GPU) about twice the speed
of a training step. The factors, the head, their gradients and the optimizer stay float32, and so does all that clips,
noises, averages or leaves the process. What is lost is the base's own precision, 8 bits of mantissa: the model that is
adapted is the rounded one.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fedlora.adapters.adapted import AdaptedModel

HALF = torch.bfloat16


def halve_base(adapted: AdaptedModel) -> None:
    """Casts the frozen base to bfloat16, in place. Buffers (rotary frequencies, say) keep their type.

    The model takes the inputs that it took; modules whose own parameters stay float32 are given float32.
    """
    kept = {id(parameter) for parameter in adapted.parameters(adapted.manifest.tensors)}
    for parameter in adapted.model.parameters():
        if id(parameter) not in kept and parameter.is_floating_point():
            parameter.data = parameter.data.to(HALF)
    for module in adapted.model.modules():
        if _owns(module, kept):
            module.register_forward_pre_hook(_in_full)
    for module in {adapted.model, getattr(adapted.model, "base_model", adapted.model)}:  # a task may call either
        module.register_forward_pre_hook(_in_half, with_kwargs=True)


def _owns(module: nn.Module, kept: Collection[int]) -> bool:
    return any(id(parameter) in kept for parameter in module.parameters(recurse=False))


def _in_full(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    del module
    return tuple(_cast(value, torch.float32) for value in args)


def _in_half(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    del module
    return tuple(_cast(value, HALF) for value in args), {name: _cast(value, HALF) for name, value in kwargs.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
