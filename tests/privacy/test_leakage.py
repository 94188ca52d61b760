"""The attacks work on what plain training sends, and on what DP-SGD sends they do not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.leakage import Reading, World, candidates, read_all
from fedlora.errors import PrivacyError
from fedlora.privacy.attacks import membership, read_tokens
from fedlora.privacy.dp_sgd import DpSgd
from fedlora.privacy.randomness import seeded_source
from tests.tiny import tiny_config

ROWS = list(range(12))
PLAIN = {"optimizer": "sgd", "lr": 0.1, "batch": 1, "steps": 1}


@pytest.fixture
def world(tiny_bert: Path, tiny_text_csv: Path) -> World:
    return World.of(tiny_config(tiny_bert, tiny_text_csv, train=PLAIN, adapter={"r": 16}))


def attack(world: World, noise: float | None) -> list[Reading]:
    step = None if noise is None else DpSgd(noise_multiplier=noise, bound=1.0, rate=1.0, expected=1.0, steps=1)
    return read_all(world, ROWS, step, seeded_source(1, "leakage"))


def part_right(readings: list[Reading]) -> float:
    return sum(reading.right for reading in readings) / sum(reading.tokens for reading in readings)


def test_one_plain_step_gives_the_text_away(world: World) -> None:
    readings = attack(world, None)
    assert part_right(readings) == 1.0
    assert all(reading.read == reading.text for reading in readings)
    assert len({reading.text for reading in readings}) == len(ROWS)


def test_one_private_step_does_not(world: World) -> None:
    assert part_right(attack(world, 1.0)) < 0.1  # chance: one in 138 tokens


def test_it_is_the_noise_that_hides_the_text(world: World) -> None:
    """The control: clipped, but with next to no noise."""
    assert part_right(attack(world, 1e-9)) == 1.0


def test_a_text_as_long_as_the_rank_cannot_be_read(world: World) -> None:
    with pytest.raises(PrivacyError, match="16 tokens cannot be told apart in 16 dimensions"):
        read_tokens(torch.zeros(32, 16), candidates(world, 16))


def test_membership_of_what_is_known_by_hand() -> None:
    others = np.arange(100.0)
    found = membership(np.array([98.5, 99.5, 50.0, -1.0]), others)
    assert found.auc == pytest.approx((99 + 100 + 50.5 + 0) / 400)
    assert found.tpr == 0.25  # above 99, which one of the others reaches and none exceeds


def test_membership_by_chance() -> None:
    draw = np.random.default_rng(0)
    found = membership(draw.normal(size=4000), draw.normal(size=4000))
    assert found.auc == pytest.approx(0.5, abs=0.03)
    assert found.tpr == pytest.approx(0.01, abs=0.01)
