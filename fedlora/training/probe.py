"""How fast this machine multiplies matrices, and how exactly: what `train.matmul` means here, measured.

On the CPU the setting may change nothing, choose other kernels that are as exact, or round inputs to bfloat16; on CUDA
it may choose TF32. Which of them it is depends on the processor, so nobody can say it without a look.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from fedlora.adapters.prepacked import blocked, times

SETTINGS = ("highest", "high", "medium")
EXACT = 2e-6
"""Relative error up to which a product over some hundred terms was computed in float32; bf16: 2e-3, TF32: 3e-4."""

_ROWS, _IN, _OUT = 512, 384, 1536  # a batch of 8 × 64 tokens in a small model's feed-forward layer
_WORK = 2 * _ROWS * _IN * _OUT  # operations of one product
_HEADS, _TOKENS, _WIDTH = (16, 12), 64, 32
_TRIES = 5
_SHORT_TRIES = 25  # short ones: the best of them is one that nothing else on the machine interrupted


@dataclass(frozen=True)
class Speed:
    """Of one way to compute. gflops: 10⁹ operations a second. error: relative to float64, in the Frobenius norm."""

    way: str
    gflops: float
    error: float

    @property
    def exact(self) -> bool:
        """Whether it is float32."""
        return self.error <= EXACT


def products(device: torch.device, settings: Sequence[str] = SETTINGS) -> Sequence[Speed]:
    """Of float32 products x·Wᵀ, x [512, 384], W [1536, 384], for values of `train.matmul`, on torch's threads.

    They take turns, so that a busy moment hits all of them.
    """
    x, w, wanted = _product(device)
    errors, seconds = {}, dict.fromkeys(settings, float("inf"))
    with _precision_kept():
        for _ in range(_TRIES + 1):
            for setting in settings:
                torch.set_float32_matmul_precision(setting)
                errors[setting] = _error(linear(x, w), wanted)
                seconds[setting] = min(seconds[setting], _once(lambda: linear(x, w), device))
    return [Speed(setting, _WORK / seconds[setting] / 1e9, errors[setting]) for setting in settings]


def halved(device: torch.device) -> Speed:
    """The same product with both sides in bfloat16."""
    x, w, wanted = _product(device)
    low, other = x.bfloat16(), w.bfloat16()
    return Speed(
        "bfloat16", _WORK / _seconds(lambda: linear(low, other), device) / 1e9, _error(linear(low, other), wanted)
    )


def prepacked_products(dtype: torch.dtype) -> tuple[Speed, Speed]:
    """The same product on the CPU, plain and with W laid out beforehand, in turn. Raises RuntimeError as oneDNN."""
    x, w, wanted = _product(torch.device("cpu"))
    low, other = x.to(dtype), w.to(dtype)
    blocks = blocked(other)
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: linear(low, other),
        "prepacked": lambda: times(low, blocks),
    }
    errors = {name: _error(way(), wanted) for name, way in ways.items()}
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(_SHORT_TRIES):
        for name, way in ways.items():
            seconds[name] = min(seconds[name], _once(way, torch.device("cpu"), calls=2))
    plain, prepacked = (Speed(name, _WORK / seconds[name] / 1e9, errors[name]) for name in ways)
    return plain, prepacked


def attentions(device: torch.device) -> dict[str, float]:
    """Seconds of attention forward and backward, q, k, v [16, 12, 64, 32]: plain products ("eager"), fused ("sdpa")."""
    q, k, v = (_random(*_HEADS, _TOKENS, _WIDTH, device=device).requires_grad_() for _ in range(3))

    def plain() -> Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) * _WIDTH**-0.5
        return torch.matmul(scores.softmax(-1), v)

    ways: dict[str, Callable[[], Tensor]] = {"eager": plain, "sdpa": lambda: scaled_dot_product_attention(q, k, v)}
    return {name: _seconds(lambda way=way: way().sum().backward(), device) for name, way in ways.items()}  # type: ignore[misc]


def _product(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, W, and x·Wᵀ in float64."""
    x, w = _random(_ROWS, _IN, device=device), _random(_OUT, _IN, device=device)
    wanted = x.double().cpu() @ w.double().cpu().t()
    return x, w, wanted


def _random(*shape: int, device: torch.device) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return made.to(device)


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted).norm() / wanted.norm())


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call: the best of a few tries, so that a busy moment does not count; the first warms up."""
    return min(_once(work, device) for _ in range(_TRIES + 1))


def _once(work: Callable[[], object], device: torch.device, calls: int = 10) -> float:
    """Seconds of one call, from several."""
    began = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / calls


@contextmanager
def _precision_kept() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
