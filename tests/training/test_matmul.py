"""What `train.matmul=auto` becomes."""

import json
from pathlib import Path

import pytest
import torch

from fedlora.adapters.prepacked import possible
from fedlora.config.schema import TrainConfig
from fedlora.data.cache import CACHE_VARIABLE
from fedlora.training import matmul
from fedlora.training.matmul import matmul_precision, verdict
from fedlora.training.probe import Speed
from fedlora.training.settings import torch_settings
from fedlora.training.verdicts import FILE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    matmul._measured_once.cache_clear()
    return tmp_path / "cache" / FILE


def measured(monkeypatch: pytest.MonkeyPatch, medium: float, error: float) -> list[int]:
    calls: list[int] = []

    def products(device: torch.device, settings: tuple[str, ...]) -> list[Speed]:
        calls.append(1)
        assert (device, settings) == (CPU, ("highest", "medium"))
        return [Speed("highest", 100, 3e-7), Speed("medium", medium, error)]

    monkeypatch.setattr(matmul, "products", products)
    return calls


@pytest.mark.parametrize(
    ("gflops", "error", "chosen"),
    [(230, 4e-7, "medium"), (110, 4e-7, "highest"), (400, 2e-3, "highest"), (90, 4e-7, "highest")],
)
def test_only_what_is_exact_and_much_faster(gflops: float, error: float, chosen: str) -> None:
    assert verdict(Speed("highest", 100, 3e-7), Speed("medium", gflops, error)) == chosen


def test_it_is_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measured(monkeypatch, 230, 4e-7)
    config = TrainConfig(prepack=False)
    assert [matmul_precision(config, CPU) for _ in range(3)] == ["medium"] * 3
    matmul._measured_once.cache_clear()  # as the next process
    measured(monkeypatch, 100, 4e-7)
    assert matmul_precision(config, CPU) == "medium"
    assert len(calls) == 1
    (kept,) = json.loads(cache.read_text()).items()
    assert torch.__version__ in kept[0]


@pytest.mark.parametrize("text", ["", "[]", '{"other machine": "medium"}', "{", '{"x": 3}'])
def test_what_another_machine_or_nobody_kept_is_not_ours(
    cache: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    calls = measured(monkeypatch, 100, 4e-7)
    assert matmul_precision(TrainConfig(prepack=False), CPU) == "highest"
    assert len(calls) == 1
    kept = json.loads(cache.read_text())
    assert ("other machine" in kept) == ("other machine" in text)
    assert "highest" in kept.values()


def test_without_a_cache_it_is_measured_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    matmul._measured_once.cache_clear()
    measured(monkeypatch, 200, 4e-7)
    assert matmul_precision(TrainConfig(prepack=False), CPU) == "medium"


@pytest.mark.skipif(not possible(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("prepack", [None, True])
def test_where_weights_are_laid_out_nothing_is_gained(
    cache: Path, monkeypatch: pytest.MonkeyPatch, prepack: bool | None
) -> None:
    calls = measured(monkeypatch, 230, 4e-7)
    assert matmul_precision(TrainConfig(prepack=prepack), CPU) == "highest"
    assert not calls


def test_a_given_precision_is_never_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measured(monkeypatch, 230, 4e-7)
    for given in ("highest", "high", "medium"):
        assert matmul_precision(TrainConfig(matmul=given), CPU) == given
    assert matmul_precision(TrainConfig(), CUDA) == "highest"
    assert not calls
    assert not cache.exists()


def test_it_is_what_torch_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 230, 4e-7)
    before = torch.get_float32_matmul_precision()
    with torch_settings(TrainConfig(device="cpu", prepack=False)):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    matmul._measured_once.cache_clear()
