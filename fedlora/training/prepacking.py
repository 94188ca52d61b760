"""Whether frozen weights are laid out for the processor beforehand (`train.prepack`): measured, where it is left open.

It is where that is as exact and not slower: `fedlora.adapters.prepacked` says what is gained. Only a clear loss speaks
against it: a line amid what is common would have machines waver, and it decides the last bits of every result.
"""

import functools
from collections.abc import Iterable

import psutil
import torch
from torch import nn

from fedlora.adapters.encoder_layer import shorten_layers, shortened
from fedlora.adapters.prepacked import possible, prepack, prepacked_bytes
from fedlora.config.schema import TrainConfig
from fedlora.errors import RunError
from fedlora.training.probe import Speed, prepacked_products
from fedlora.training.verdicts import Verdicts, verdicts

LOSS = 0.9
"""Of the plain products' speed: what is slower than that is not used."""

ROOM = 1 / 8
"""Of the machine's memory: what would take more is not used."""


def prepack_frozen(config: TrainConfig, model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Does it to `model`, if it is to be done; `trained`: parameters that are not frozen.

    Raises RunError if `train.prepack=true` and this torch cannot.
    """
    trained = list(trained)
    if prepacks(config, model, trained):
        prepack(model, trained)
        shorten_layers(model)


def prepacks(config: TrainConfig, model: nn.Module, trained: Iterable[nn.Parameter]) -> bool:
    """Whether it is to be done, for a model where it trains (or one without values). Raises as `prepack_frozen`."""
    if config.prepack and not possible():
        raise RunError(
            f"train.prepack=true, but torch {torch.__version__} has no oneDNN on this processor: drop the setting"
        )
    if config.prepack is not None:
        return config.prepack
    on_cuda = next(model.parameters()).device.type == "cuda"
    if on_cuda or not possible() or prepacked_bytes(model, trained) > ROOM * psutil.virtual_memory().total:
        return False
    return _measured_once(verdicts(), config.precision) == "yes"


def leaves_gaps(config: TrainConfig, skeleton: nn.Module, trained: Iterable[nn.Parameter]) -> bool:
    """Whether layers of the model on the CPU will compute a packed batch's tokens alone; skeleton: without values."""
    return shortened(skeleton) and prepacks(config, skeleton, trained)


def verdict(plain: Speed, prepacked: Speed) -> str:
    """ "yes" unless it is less exact, or clearly slower."""
    exact = prepacked.error <= 1.1 * plain.error or (plain.exact and prepacked.exact)
    return "yes" if exact and prepacked.gflops >= LOSS * plain.gflops else "no"


@functools.cache
def _measured_once(known: Verdicts, precision: str) -> str:
    return known.answer(f"train.prepack {precision}", lambda: _measure(precision), ("yes", "no"))


def _measure(precision: str) -> str:
    try:
        return verdict(*prepacked_products(torch.bfloat16 if precision == "bfloat16" else torch.float32))
    except RuntimeError:  # oneDNN has no such product on this processor
        return "no"
