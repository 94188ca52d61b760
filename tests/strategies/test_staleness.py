"""A stale update moved to the present state: FedBuff's arithmetic, against brute force in float64."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.manifest import Tensors
from fedlora.strategies.base import Strategy, Update
from fedlora.strategies.fed_sb import FedSb
from fedlora.strategies.fedavg import FedAvg
from fedlora.strategies.ffa_lora import FfaLora
from fedlora.strategies.lora_fair import LoraFair
from fedlora.strategies.staleness import damping, moved
from tests.strategies.worlds import setup, start, updates

METHODS = [FedAvg(), FfaLora(), FedSb(init="random")]
BUFFER = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**31)), min_size=1, max_size=5)


def changes(like: Tensors, names: list[str], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(like[name].shape) for name in names}


def test_the_damping_is_one_over_the_root_and_one_for_what_is_not_stale() -> None:
    assert damping(0, 0.5) == damping(0, 3.0) == damping(7, 0.0) == 1.0
    assert damping(3, 0.5) == 0.5
    assert damping(1, 1.0) == 0.5
    assert [damping(age, 0.5) for age in range(5)] == sorted((damping(age, 0.5) for age in range(5)), reverse=True)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(buffer=BUFFER, exponent=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_the_mean_of_moved_updates_is_fedbuffs_step(
    method: Strategy, buffer: list[tuple[int, int]], exponent: float
) -> None:
    now = start(method, setup())
    names = now.manifest.uploaded()
    partial, step = method.begin(now), {name: np.zeros_like(now.shared[name]) for name in names}
    for client, (age, seed) in enumerate(buffer):
        begun = {name: now.shared[name] + change for name, change in changes(now.shared, names, seed).items()}
        delta = changes(now.shared, names, seed + 1)
        sent = {name: begun[name] + delta[name] for name in names}
        tensors = moved(sent, begun, now.shared, damping(age, exponent))
        partial = method.fold(now, partial, Update(client, tensors, 1.0))
        for name in names:
            step[name] += (1 + age) ** -exponent * delta[name] / len(buffer)
    found, _ = method.finish(now, partial)
    for name in names:
        np.testing.assert_allclose(found.shared[name], now.shared[name] + step[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_weights_are_those_of_every_round(method: Strategy) -> None:
    now = start(method, setup())
    first, second = updates(now, 2)
    earlier = {name: array - 1.0 for name, array in now.shared.items()}
    partial = method.fold(now, method.begin(now), replace(first, weight=1.0))
    stale = moved(second.tensors, earlier, now.shared, 0.5)
    found, _ = method.finish(now, method.fold(now, partial, Update(1, stale, 3.0)))
    for name, array in first.tensors.items():
        expected = (array + 3 * (now.shared[name] + 0.5 * (second.tensors[name] - earlier[name]))) / 4
        np.testing.assert_allclose(found.shared[name], expected, atol=1e-12)


def test_nothing_is_rounded_on_the_way() -> None:
    one = np.float32(1.0)
    found = moved({"x": one + np.float32(1e-7)}, {"x": one}, {"x": np.float32(1e8)}, 1.0)["x"]
    assert found.dtype == np.float64
    assert found > 1e8


def test_what_is_frozen_is_left_alone() -> None:
    now = start(FedAvg(), setup())
    sent = {"head.score.weight": now.shared["head.score.weight"] + 1}
    assert set(moved(sent, now.shared, now.shared, 1.0)) == {"head.score.weight"}


def test_methods_say_whether_they_can_be_buffered() -> None:
    assert all(method.buffered for method in METHODS)
    assert not LoraFair().buffered
    assert not Strategy.buffered
