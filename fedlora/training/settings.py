"""Process-wide torch settings for the time of a run, put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from fedlora.config.schema import TrainConfig
from fedlora.errors import RunError
from fedlora.training.matmul import matmul_precision


def resolve_device(config: TrainConfig) -> torch.device:
    """The device that `train.device` means here; `auto` takes CUDA where there is one.

    Raises RunError for `cuda` on a machine without it.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise RunError(
            "train.device=cuda, but torch finds no CUDA device: use train.device=auto or cpu, or install a CUDA build"
            f" of torch (this one is {torch.__version__})"
        )
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


@contextmanager
def torch_settings(config: TrainConfig) -> Iterator[torch.device]:
    """Threads, float32 matmul precision and deterministic kernels as `config` says; gives the device.

    `threads` null leaves torch's own choice (one a core, or OMP_NUM_THREADS). On CUDA the kernels are the fastest,
    deterministic or not: equal bits are promised on the CPU only.
    """
    device = resolve_device(config)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    memory: Any = torch.utils.deterministic  # its properties are invisible to type checkers
    filling = memory.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.set_float32_matmul_precision(matmul_precision(config, device))
        torch.use_deterministic_algorithms(device.type == "cpu")
        # It would fill every new tensor with NaN, for code that reads what it never wrote: 3 % of a small step.
        memory.fill_uninitialized_memory = False
        yield device
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = filling


@contextmanager
def seeded_torch(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's own draws (dropout) inside, and leaves its random state as it was outside."""
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: that would also reseed devices whose state is not saved here.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
