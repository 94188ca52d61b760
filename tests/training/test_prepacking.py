"""Whether frozen weights are laid out beforehand, where that is left open."""

from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from fedlora.adapters.prepacked import possible
from fedlora.config.schema import TrainConfig
from fedlora.data.cache import CACHE_VARIABLE
from fedlora.errors import RunError
from fedlora.training import prepacking
from fedlora.training.prepacking import prepacks, verdict
from fedlora.training.probe import Speed, prepacked_products


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    prepacking._measured_once.cache_clear()
    return nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("gflops", "error", "said"), [(112, 3e-7, "yes"), (95, 3e-7, "yes"), (80, 3e-7, "no"), (200, 2e-3, "no")]
)
def test_what_is_as_exact_and_not_slower(gflops: float, error: float, said: str) -> None:
    assert verdict(Speed("plain", 100, 2e-7), Speed("prepacked", gflops, error)) == said


def test_bfloat16_is_as_exact_as_bfloat16() -> None:
    assert verdict(Speed("plain", 100, 2.0e-3), Speed("prepacked", 110, 2.1e-3)) == "yes"
    assert verdict(Speed("plain", 100, 2.0e-3), Speed("prepacked", 110, 2.9e-3)) == "no"


def test_an_open_setting_is_measured_once_for_each_precision(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def products(dtype: torch.dtype) -> tuple[Speed, Speed]:
        asked.append(dtype)
        return Speed("plain", 100, 2e-7), Speed("prepacked", 110 if dtype is torch.float32 else 50, 2e-7)

    monkeypatch.setattr(prepacking, "prepacked_products", products)
    monkeypatch.setattr(prepacking, "possible", lambda: True)
    half = TrainConfig(precision="bfloat16")
    assert [prepacks(each, model, ()) for each in (TrainConfig(), TrainConfig(), half, half)] == [
        True,
        True,
        False,
        False,
    ]
    assert asked == [torch.float32, torch.bfloat16]
    assert prepacks(TrainConfig(prepack=True, precision="bfloat16"), model, ())
    assert not prepacks(TrainConfig(prepack=False), model, ())
    assert len(asked) == 2
    prepacking._measured_once.cache_clear()  # as the next process
    assert prepacks(TrainConfig(), model, ())
    assert len(asked) == 2


def test_what_oneDNN_cannot_do_is_not_done(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    def refused(dtype: torch.dtype) -> tuple[Speed, Speed]:
        raise RuntimeError(f"could not create a primitive for {dtype}")

    monkeypatch.setattr(prepacking, "prepacked_products", refused)
    assert not prepacks(TrainConfig(), model, ())


def test_a_large_model_keeps_its_memory(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "_measured_once", lambda known, precision: "yes")
    assert prepacks(TrainConfig(), model, ()) is possible()
    few = psutil.virtual_memory()._replace(total=8 * 2 * 8 * 8 * 4 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: few)
    assert not prepacks(TrainConfig(), model, ())


def test_a_torch_without_it_says_so(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "possible", lambda: False)
    assert not prepacks(TrainConfig(), model, ())
    with pytest.raises(RunError, match=r"train\.prepack=true, but torch .* has no oneDNN"):
        prepacks(TrainConfig(prepack=True), model, ())


@pytest.mark.skipif(not possible(), reason="this torch has no oneDNN")
def test_both_ways_are_float32() -> None:
    plain, prepacked = prepacked_products(torch.float32)
    assert plain.exact
    assert prepacked.exact
    assert prepacked.gflops > 0
