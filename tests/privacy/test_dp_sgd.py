"""Private steps are what the algorithm says, whatever the micro-batches; the mechanism and its price are one object."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD

from fedlora.client.worker import worker_for
from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release
from fedlora.privacy.dp_sgd import ROUNDING, DpSgd, Learner, Units, private_steps
from fedlora.privacy.randomness import RandomSource, seeded_source
from fedlora.privacy.rows import split_like
from fedlora.training.local import trained_names
from tests.adapters.making import adapted_task, random_tensors
from tests.tiny import tiny_config

LR = 0.3
MECHANISM = DpSgd(noise_multiplier=0.7, bound=0.5, rate=0.4, expected=8.0, steps=3)
UNITS = Units([np.array(rows) for rows in ([3], [11, 17, 4], [29], [40, 41], [8], [50, 51, 52, 53], [60], [61], [62])])


@pytest.fixture
def learn(tiny_bert: Path, tiny_text_csv: Path) -> Callable[..., Learner]:
    """A fresh learner in float64 with the same first values each time."""

    def make(method: str = "lora", micro_batch: int = 100) -> Learner:
        config = tiny_config(tiny_bert, tiny_text_csv)
        task, adapted = adapted_task(config, method)
        adapted.load(random_tensors(adapted.manifest))
        adapted.model.double()
        adapted.set_trained(trained_names(adapted.manifest))
        return Learner(adapted, task, worker_for(config).encoded("train"), micro_batch)

    return make


def names_of(learner: Learner) -> list[str]:
    return trained_names(learner.adapted.manifest)


def values(learner: Learner) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.adapted.parameters(names_of(learner))])


def take(learner: Learner, source: RandomSource, mechanism: DpSgd = MECHANISM, units: Units = UNITS) -> Tensor:
    names = names_of(learner)
    optimizer = SGD(learner.adapted.parameters(names), lr=LR)
    private_steps(learner, names, units, mechanism, optimizer, source)
    return values(learner)


def by_the_book(learner: Learner, source: RandomSource, mechanism: DpSgd, units: Units) -> Tensor:
    """The algorithm, record by record, with ordinary gradients."""
    parameters = learner.adapted.parameters(names_of(learner))
    for _ in range(mechanism.steps):
        total = torch.zeros_like(values(learner))
        for unit in source.chosen(len(units), mechanism.rate):
            gradient = sum(record_gradient(learner, int(row), parameters) for row in units.rows[unit])
            assert isinstance(gradient, Tensor)
            total += gradient * min(1.0, mechanism.bound / float(gradient.norm()))
        noise = torch.from_numpy(source.normal(total.numel()))
        std = mechanism.noise_multiplier * mechanism.bound * (1 + ROUNDING)
        mean = (total + std * noise) / mechanism.expected
        with torch.no_grad():
            for parameter, part in zip(parameters, split_like(mean, parameters), strict=True):
                parameter -= LR * part
    return values(learner)


def record_gradient(learner: Learner, row: int, parameters: list[torch.nn.Parameter]) -> Tensor:
    loss = learner.task.losses(learner.adapted.model, learner.encoded.batch([row])).sum()
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
def test_private_steps_follow_the_algorithm(learn: Callable[..., Learner], method: str) -> None:
    found = take(learn(method), seeded_source(1, "dp"))
    expected = by_the_book(learn(method), seeded_source(1, "dp"), MECHANISM, UNITS)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, values(learn(method)), atol=1e-3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_micro_batches_change_nothing(learn: Callable[..., Learner], size: int) -> None:
    whole = take(learn(), seeded_source(1, "dp"))
    parts = take(learn(micro_batch=size), seeded_source(1, "dp"))
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-11)


def test_an_empty_sample_is_a_step_of_noise(learn: Callable[..., Learner]) -> None:
    never = DpSgd(noise_multiplier=0.7, bound=0.5, rate=2.0**-60, expected=8.0, steps=2)
    learner = learn()
    before = values(learner)
    moved = (take(learner, seeded_source(1, "dp"), never) - before).numpy()
    expected = LR * 0.7 * 0.5 / 8.0 * np.sqrt(2)
    assert moved.std() == pytest.approx(expected, rel=0.2)
    assert never.release() == Release(0.7, 2.0**-60, 2)


def test_clipping_off_is_caught_by_the_book(learn: Callable[..., Learner]) -> None:
    """The negative control: a bound that is never reached gives other values."""
    loose = DpSgd(noise_multiplier=0.7, bound=50.0, rate=0.4, expected=8.0, steps=3)
    found = take(learn(), seeded_source(1, "dp"), loose)
    expected = by_the_book(learn(), seeded_source(1, "dp"), MECHANISM, UNITS)
    assert not torch.allclose(found, expected, atol=1e-3)


def test_one_unit_moves_a_noiseless_sum_by_no_more_than_the_sensitivity(learn: Callable[..., Learner]) -> None:
    """Everybody is sampled, the same noise on both sides: what differs is one person with four records."""
    all_in = DpSgd(noise_multiplier=0.7, bound=0.01, rate=1.0, expected=1.0, steps=1)
    fewer = Units([unit for index, unit in enumerate(UNITS.rows) if index != 5])
    sources = [no_sampling(seeded_source(1, "dp")) for _ in range(2)]
    with_it = take(learn(), sources[0], all_in)
    without = take(learn(), sources[1], all_in, fewer)
    moved = float((with_it - without).norm()) / LR
    assert 0.005 < moved <= all_in.sensitivity


def no_sampling(source: RandomSource) -> RandomSource:
    """The same noise whatever the number of units: sampling takes everybody without a draw."""

    class Everybody(RandomSource):
        def chosen(self, count: int, rate: float) -> NDArray[np.int64]:
            assert rate == 1.0
            return np.arange(count)

    return Everybody(source.words, source.private)


def test_noise_has_the_size_that_is_paid_for() -> None:
    mechanism = DpSgd(noise_multiplier=2.0, bound=0.25, rate=0.1, expected=10.0, steps=1)
    found = mechanism.noised_mean(torch.zeros(100_000), seeded_source(3, "dp")).numpy()
    size = 2.0 * 0.25 * (1 + ROUNDING) / 10.0
    assert found.std() == pytest.approx(size, rel=0.015)
    assert found.dtype == np.float32


def test_units_group_rows_and_cap_them() -> None:
    rows = np.arange(10, 20)
    keys = ["a", "b", "a", "c", "a", "a", "b", "a", "c", "d"]
    units = Units.by_key(rows, keys, 3, seeded_source(0, "cap"))
    assert [len(unit) for unit in units.rows] == [3, 2, 2, 1]
    assert set(units.rows[0]) <= {10, 12, 14, 15, 17}
    assert [unit.tolist() for unit in units.rows[1:]] == [[11, 16], [13, 18], [19]]
    assert [unit.tolist() for unit in Units.of_records(rows).rows] == [[row] for row in rows]


def test_parts_hold_whole_units() -> None:
    parts = list(UNITS.parts(np.array([0, 1, 2, 5, 6]), 4))
    assert [[len(unit) for unit in part] for part in parts] == [[1, 3], [1], [4], [1]]
    assert list(UNITS.parts(np.array([], np.int64), 4)) == []


def test_a_loss_that_is_not_one_a_record_is_refused(learn: Callable[..., Learner]) -> None:
    learner = learn()
    mean = SimpleNamespace(name="mean", losses=lambda model, batch: learner.task.losses(model, batch).mean())
    wrong: Any = Learner(learner.adapted, mean, learner.encoded, 100)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="needs one loss for each record"):
        take(wrong, seeded_source(1, "dp"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bound": 0.0, "expected": -1.0}, "bound = 0.0 must be above 0; expected = -1.0"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"rate": 1.5}, "rate"),
    ],
)
def test_a_mechanism_without_a_meaning_is_refused(change: dict[str, float], text: str) -> None:
    settings: dict[str, Any] = {"noise_multiplier": 1.0, "bound": 1.0, "rate": 0.1, "expected": 1.0, "steps": 1}
    with pytest.raises(PrivacyError, match=text):
        DpSgd(**(settings | change))
