"""Which of torch's float32 matmul precisions `train.matmul=auto` is on this machine: measured, never assumed.

`medium` lets the CPU take oneDNN's products in place of MKL's. On processors without AMX both compute in float32, and
oneDNN's were 1.0 to 2.3 times as fast on those that we saw; on processors with it, `medium` rounds to bfloat16. So it
is taken only where the error says float32 and the gain is large: a small one could be noise, and the choice decides
the last bits of every result. It is measured once and kept in the cache, so that a machine keeps its bits.
"""

import functools

import torch

from fedlora.adapters.prepacked import possible
from fedlora.config.schema import TrainConfig
from fedlora.training.probe import Speed, products
from fedlora.training.verdicts import Verdicts, verdicts

GAIN = 1.5
"""How many times as fast as `highest` another precision must be to be taken."""


def matmul_precision(config: TrainConfig, device: torch.device) -> str:
    """The precision to set: the configured one, or what `auto` is here.

    `highest` on CUDA, where the lower ones round, and where frozen weights are laid out beforehand: that takes
    oneDNN's products as they are, and leaves nothing worth other bits.
    """
    if config.matmul != "auto":
        return config.matmul
    laid_out = config.prepack is not False and possible()
    return "highest" if device.type == "cuda" or laid_out else _measured_once(verdicts())


def verdict(highest: Speed, medium: Speed) -> str:
    """The faster one, if it is exact and much faster."""
    return "medium" if medium.exact and medium.gflops >= GAIN * highest.gflops else "highest"


@functools.cache
def _measured_once(known: Verdicts) -> str:
    return known.answer("train.matmul", _measure, ("highest", "medium"))


def _measure() -> str:
    return verdict(*products(torch.device("cpu"), ("highest", "medium")))
