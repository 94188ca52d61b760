"""Learning rate, optimizers and one step, against values worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlora.config.schema import TrainConfig
from fedlora.errors import RunError
from fedlora.training.optim import learning_rate, make_optimizer, plain_step


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]),
    ],
)
def test_the_learning_rate_of_each_round(schedule: Any, expected: list[float]) -> None:
    config = TrainConfig(lr=0.8, schedule=schedule)
    assert [learning_rate(config, number, 4) for number in range(1, 5)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("number", [0, 5])
def test_a_round_outside_the_schedule_is_an_error(number: int) -> None:
    with pytest.raises(RunError, match=f"round {number} has no learning rate: .* 1 to 4"):
        learning_rate(TrainConfig(), number, 4)


class Line(nn.Module):
    """y = w·x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Squares:
    """Loss (y − t)² / 2 of each record: its gradient is (y − t)·x."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch["x"]) - batch["t"]).square() / 2


BATCH = {
    "x": torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64),
    "t": torch.tensor([0.0, 2.0], dtype=torch.float64),
}
# y = (1, −1), y − t = (1, −3): loss (0.5 + 4.5) / 2, gradient ((1·1 − 3·1) / 2, −3·1 / 2).
LOSS, GRADIENT = 2.5, torch.tensor([-1.0, -1.5], dtype=torch.float64)


def step(config: TrainConfig) -> tuple[Tensor, float]:
    """What one step from (1, −2) leads to, and the loss it reports."""
    model = Line()
    optimizer = make_optimizer(config, model.parameters(), config.lr)
    loss = plain_step(config.clip_norm)(model, Squares(), BATCH, optimizer)  # type: ignore[arg-type]
    return model.w.detach(), loss


def test_sgd() -> None:
    weights, loss = step(TrainConfig(optimizer="sgd", lr=0.1))
    assert loss == LOSS
    torch.testing.assert_close(weights, torch.tensor([1.0, -2.0]).double() - 0.1 * GRADIENT, rtol=1e-14, atol=0)


def test_sgd_weight_decay_is_l2() -> None:
    start = torch.tensor([1.0, -2.0]).double()
    weights, _ = step(TrainConfig(optimizer="sgd", lr=0.1, weight_decay=0.5))
    torch.testing.assert_close(weights, start - 0.1 * (GRADIENT + 0.5 * start), rtol=1e-14, atol=0)


def test_sgd_momentum_builds_up_over_steps() -> None:
    config = TrainConfig(optimizer="sgd", lr=0.1, momentum=0.5)
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer(config, [parameter], config.lr)
    for _ in range(2):
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert parameter.item() == pytest.approx(-0.1 - 0.1 * 1.5, rel=1e-14)


def test_the_first_step_of_adamw() -> None:
    """β-corrected moments are g and g², so the step is lr·g/(|g| + ε), after a decay of lr·λ·w."""
    start = torch.tensor([1.0, -2.0]).double()
    weights, loss = step(TrainConfig(optimizer="adamw", lr=0.1, weight_decay=0.5))
    expected = start * (1 - 0.1 * 0.5) - 0.1 * GRADIENT / (GRADIENT.abs() + 1e-8)
    assert loss == LOSS
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clip_norm_bounds_the_gradient_and_leaves_small_ones(bound: float) -> None:
    weights, _ = step(TrainConfig(optimizer="sgd", lr=1.0, clip_norm=bound))
    moved = torch.tensor([1.0, -2.0]).double() - weights
    norm = GRADIENT.norm()
    torch.testing.assert_close(moved, GRADIENT * min(1.0, bound / norm.item()), rtol=1e-5, atol=0)
    assert moved.norm() <= bound + 1e-9


def test_gradients_do_not_pile_up_from_step_to_step() -> None:
    model, take = Line(), plain_step(None)
    optimizer = make_optimizer(TrainConfig(optimizer="sgd", lr=1e-9), model.parameters(), 1e-9)
    for _ in range(3):
        take(model, Squares(), BATCH, optimizer)  # type: ignore[arg-type]
    torch.testing.assert_close(model.w.grad, GRADIENT, rtol=1e-6, atol=0)
