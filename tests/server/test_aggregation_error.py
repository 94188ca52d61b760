from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters.manifest import Delivery
from fedlora.errors import StrategyError
from fedlora.server.aggregation_error import SKETCH_COLUMNS, AggregationError, MeasuredError
from fedlora.strategies.base import State, Strategy, Update
from fedlora.strategies.fed_sb import FedSb
from fedlora.strategies.fedavg import FedAvg
from fedlora.strategies.ffa_lora import FfaLora
from fedlora.strategies.lora_fair import LoraFair
from tests.strategies import worlds


def measure(state: State, answers: list[Update], new: State, max_exact: int = 32) -> MeasuredError:
    error = AggregationError.begin(state, max_exact)
    for answer in answers:
        error = error.fold(answer)
    found = error.finish(new)
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([FedAvg(), LoraFair(), FfaLora(), FedSb()]))
@settings(max_examples=40)
def test_the_exact_error_equals_brute_force(seed: int, clients: int, strategy: Strategy) -> None:
    state = worlds.start(strategy, worlds.setup(seed=seed))
    answers = worlds.updates(state, clients, seed=seed)
    new, _ = worlds.aggregate(strategy, state, answers)
    found = measure(state, answers, new)
    assert found.value == pytest.approx(worlds.dense_error(state, answers, new), rel=1e-9, abs=1e-14)
    assert not found.estimated


@pytest.mark.parametrize("strategy", [FfaLora(), FedSb(init="random")])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-15), ("float32", 1e-7)])
def test_exact_methods_are_exact_up_to_the_rounding_of_the_result(strategy: Strategy, dtype: str, bound: float) -> None:
    state = worlds.start(strategy, worlds.setup(), dtype=dtype)
    answers = worlds.updates(state, 7)
    new, _ = worlds.aggregate(strategy, state, answers)
    assert measure(state, answers, new).value < bound
    assert measure(state, answers, new, max_exact=0).value < bound


def test_an_aggregate_that_was_changed_is_noticed() -> None:
    state = worlds.start(FfaLora(), worlds.setup())
    answers = worlds.updates(state, 4)
    new, _ = worlds.aggregate(FfaLora(), state, answers)
    wrong = replace(new, shared={name: array * 1.01 for name, array in new.shared.items()})
    assert measure(state, answers, wrong).value == pytest.approx(0.01, rel=1e-9)


def test_the_new_state_may_be_anything() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    answers = worlds.updates(state, 4)
    new = replace(state, shared=worlds.updates(state, 1, seed=9)[0].tensors)
    assert measure(state, answers, new).value == pytest.approx(worlds.dense_error(state, answers, new), rel=1e-12)


def test_one_client_alone_is_aggregated_exactly() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    answers = worlds.updates(state, 1)
    new, _ = worlds.aggregate(FedAvg(), state, answers)
    assert measure(state, answers, new).value < 1e-15


def test_no_change_at_all_counts_as_no_error() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    answers = [Update(client, state.shared, 1.0) for client in range(3)]  # B = 0, so every product is 0
    assert measure(state, answers, state) == MeasuredError(0.0, estimated=False)


def test_the_sketch_is_labelled_and_within_its_standard_error() -> None:
    estimates, truths = [], []
    for seed in range(60):
        state = worlds.start(FedAvg(), worlds.setup(seed=seed))  # the seed also draws the sketch
        answers = worlds.updates(state, 5, seed=seed)
        new, _ = worlds.aggregate(FedAvg(), state, answers)
        found = measure(state, answers, new, max_exact=4)
        assert found.estimated
        estimates.append(found.value)
        truths.append(worlds.dense_error(state, answers, new))
    ratios = np.array(estimates) / np.array(truths)
    # Numerator and denominator each have at most this relative standard error.
    worst = np.sqrt(2) / np.sqrt(2 * SKETCH_COLUMNS)
    assert np.std(ratios) < worst
    assert abs(np.mean(ratios) - 1) < 4 * worst / np.sqrt(len(ratios)) + worst**2
    # Negative control: the same bounds do not let through an estimate that is a fifth too large.
    assert abs(np.mean(1.2 * ratios) - 1) > 4 * worst / np.sqrt(len(ratios)) + worst**2


def test_a_sketch_does_not_grow_with_the_cohort() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    error = AggregationError.begin(state, max_exact=3)
    for answer in worlds.updates(state, 20):
        error = error.fold(answer)
        assert len(error.held) <= 3
    assert error.sketch is not None
    assert {module: array.shape for module, array in error.sketch.sums.items()} == {
        module: (d, SKETCH_COLUMNS) for module, (d, _) in worlds.MODULES.items()
    }


@pytest.mark.parametrize("max_exact", [0, 2, 4, 32])
@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_merged_parts_give_what_one_fold_gives(max_exact: int, cut: int) -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    answers = worlds.updates(state, 7)
    new, _ = worlds.aggregate(FedAvg(), state, answers)
    parts = []
    for some in (answers[cut:], answers[:cut]):
        part = AggregationError.begin(state, max_exact)
        for answer in some:
            part = part.fold(answer)
        parts.append(part)
    merged = parts[0].merge(parts[1]).finish(new)
    whole = measure(state, answers, new, max_exact)
    assert merged is not None
    assert merged.value == pytest.approx(whole.value, rel=1e-10)
    assert merged.estimated == whole.estimated == (max_exact < 7)


def test_nothing_folded_is_an_error() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    with pytest.raises(StrategyError, match="no client's update was counted in"):
        AggregationError.begin(state).finish(state)


def test_there_is_no_error_to_tell_where_clients_keep_a_factor() -> None:
    state = worlds.start(FedAvg(), worlds.setup())
    specs = {
        name: replace(spec, delivery=Delivery.LOCAL) if name.endswith("lora_B") else spec
        for name, spec in state.manifest.tensors.items()
    }
    hidden = replace(state, manifest=replace(state.manifest, tensors=specs))
    error = AggregationError.begin(hidden).fold(worlds.updates(hidden, 1)[0])
    assert not error.defined
    assert error.held == ()
    assert error.finish(hidden) is None
