"""Tensors that were loaded before are loaded again without another copy, and are never stale."""

from pathlib import Path

import numpy as np
import pytest

from fedlora.adapters.adapted import AdaptedModel
from fedlora.client.worker import worker_for
from fedlora.config.strategy import make_strategy
from fedlora.errors import ModelError
from fedlora.simulations.simulate import resolve
from fedlora.wire import read_tensors, to_record
from tests.tiny import tiny_config


@pytest.fixture
def adapted(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> AdaptedModel:
    config = resolve(tiny_config(tiny_bert, tiny_text_csv, store=tmp_path))
    worker, method = worker_for(config), make_strategy(config.strategy)
    return worker.adapted(method.manifest(worker.setup(method)))


def received(adapted: AdaptedModel, value: float) -> dict[str, np.ndarray]:
    specs = adapted.manifest.tensors
    return read_tensors(to_record({n: np.full(s.shape, value, s.dtype) for n, s in specs.items()}), specs)


def values(adapted: AdaptedModel) -> set[float]:
    return {float(each) for array in adapted.read(adapted.manifest).values() for each in np.unique(array)}


def test_what_came_off_a_wire_is_loaded_as_often_as_one_likes(adapted: AdaptedModel) -> None:
    ones, twos = received(adapted, 1), received(adapted, 2)
    for tensors, expected in ((ones, 1.0), (ones, 1.0), (twos, 2.0), (ones, 1.0)):
        adapted.load(tensors)
        assert values(adapted) == {expected}


def test_training_does_not_change_what_is_loaded_next(adapted: AdaptedModel) -> None:
    ones = received(adapted, 1)
    adapted.load(ones)
    for parameter in adapted.parameters(adapted.manifest):
        parameter.detach().add_(5)
    adapted.load(ones)
    assert values(adapted) == {1.0}


def test_an_array_that_was_changed_in_place_is_loaded_as_it_is_now(adapted: AdaptedModel) -> None:
    mine = {name: np.full(spec.shape, 1, spec.dtype) for name, spec in adapted.manifest.tensors.items()}
    adapted.load(mine)
    for array in mine.values():
        array[...] = 3
    adapted.load(mine)
    assert values(adapted) == {3.0}


def test_a_part_of_a_received_array_is_not_taken_for_the_whole(adapted: AdaptedModel) -> None:
    received_ones = received(adapted, 1)
    adapted.load(received_ones)
    name = next(iter(received_ones))
    with pytest.raises(ModelError, match="must be"):
        adapted.load({name: received_ones[name][:1]})
    with pytest.raises(ModelError, match="must be"):
        adapted.load({name: received_ones[name].T})
