"""Torch's process-wide settings are set for a block and put back."""

import pytest
import torch

from fedlora.config.schema import TrainConfig
from fedlora.errors import RunError
from fedlora.training.settings import resolve_device, seeded_torch, torch_settings


def state() -> tuple[int, str, bool, bool]:
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def test_settings_hold_inside_and_are_restored_after_an_error() -> None:
    before = state()

    def fail() -> None:
        with torch_settings(TrainConfig(threads=2, matmul="high", device="cpu")) as device:
            assert state() == (2, "high", True, False)
            assert device == torch.device("cpu")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert state() == before


def test_null_threads_leave_torchs_choice() -> None:
    before = torch.get_num_threads()
    with torch_settings(TrainConfig(device="cpu")):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("asked", "there", "given"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_the_device_is_what_is_asked_and_there(
    asked: str, there: bool, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device(TrainConfig(device=asked)).type == given  # type: ignore[arg-type]


def test_cuda_without_cuda_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"train\.device=cuda.*use train\.device=auto or cpu"):
        resolve_device(TrainConfig(device="cuda"))


def test_seeded_draws_are_the_same_and_leave_no_trace() -> None:
    before = torch.random.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded_torch(17, torch.device("cpu")):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.random.get_rng_state(), before)
