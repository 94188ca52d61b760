"""What is measured of this machine's arithmetic."""

import pytest
import torch

from fedlora.doctor import _products
from fedlora.training.probe import EXACT, SETTINGS, Speed, attentions, halved, products

CPU = torch.device("cpu")


def test_products_of_each_setting_and_the_setting_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = products(CPU)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert [one.way for one in found] == list(SETTINGS)
    assert found[0].exact
    assert all(one.gflops > 0 and 0 < one.error < 1e-2 for one in found)


def test_bfloat16_is_no_float32() -> None:
    """The bound tells them apart: a product of rounded inputs is a thousand times further off."""
    found = halved(CPU)
    assert not found.exact
    assert 1e-3 < found.error < 1e-2
    x, w = (torch.randn(64, 384, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    wanted = x.double() @ w.double().t()
    rounded = (x.bfloat16().float() @ w.bfloat16().float().t()).double()
    assert float((rounded - wanted).norm() / wanted.norm()) > 100 * EXACT


def test_attention_both_ways() -> None:
    found = attentions(CPU)
    assert set(found) == {"eager", "sdpa"}
    assert all(0 < seconds < 10 for seconds in found.values())


@pytest.mark.parametrize(
    ("error", "said"), [(3e-7, "train.matmul=medium 2.00 × (float32 too)"), (2e-3, "(rounded: error 2e-03)")]
)
def test_what_is_said(error: float, said: str) -> None:
    text = _products([Speed("highest", 100, 2e-7), Speed("medium", 200, error)], Speed("bfloat16", 400, 3e-3))
    assert said in text
    assert text.startswith("float32 100 GFLOPS, ")
    assert text.endswith("train.precision=bfloat16 4.00 × (error 3e-03)")
