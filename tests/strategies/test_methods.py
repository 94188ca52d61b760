"""What holds for every built-in method: layout, bytes, exactness, streaming."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapters.manifest import Delivery, Manifest, Role
from fedlora.errors import StrategyError
from fedlora.strategies.base import Strategy, Update, global_tensors, keeps_client_state
from fedlora.strategies.fed_sb import FedSb
from fedlora.strategies.fedavg import FedAvg
from fedlora.strategies.ffa_lora import FfaLora
from fedlora.strategies.lora_fair import LoraFair
from fedlora.strategies.registry import strategies
from tests.strategies import worlds

R = 3
EVERY = [FedAvg(), FfaLora(), LoraFair(), LoraFair(solver="ridge"), FedSb(), FedSb(init="random")]
EXACT = [strategy for strategy in EVERY if strategy.exact]


@pytest.mark.parametrize("strategy", EXACT, ids=repr)
@given(seed=st.integers(0, 2**32 - 1), clients=st.integers(1, 8))
@settings(max_examples=20)
def test_averaging_factors_equals_averaging_products(strategy: Strategy, seed: int, clients: int) -> None:
    state = worlds.start(strategy, worlds.setup(seed=seed))
    answers = worlds.updates(state, clients, seed=seed)
    new, _ = worlds.aggregate(strategy, state, answers)
    for module in worlds.MODULES:
        target = worlds.dense_mean(state, answers, module)
        made = worlds.dense(new.manifest, global_tensors(new), module)
        assert np.linalg.norm(made - target) <= 1e-12 * np.linalg.norm(target)


@pytest.mark.parametrize("strategy", [FedAvg(), LoraFair()], ids=repr)
def test_methods_that_are_not_exact_do_not_pass_for_it(strategy: Strategy) -> None:
    state = worlds.start(strategy, worlds.setup())
    answers = worlds.updates(state, 5)
    new, _ = worlds.aggregate(strategy, state, answers)
    assert worlds.dense_error(state, answers, new) > 1e-3
    assert not strategy.exact


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_the_trained_tensors_become_their_weighted_means(strategy: Strategy) -> None:
    state = worlds.start(strategy, worlds.setup())
    answers = worlds.updates(state, 4)
    new, _ = worlds.aggregate(strategy, state, answers)
    total = sum(each.weight for each in answers)
    corrected = isinstance(strategy, LoraFair)
    for name in state.manifest.uploaded():
        if not (corrected and name.endswith("lora_B")):
            mean = sum(each.weight / total * each.tensors[name] for each in answers)
            np.testing.assert_allclose(new.shared[name], mean, rtol=1e-12)
    assert new.fixed is state.fixed
    assert list(new.shared) == list(state.shared)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 9), order=st.permutations(range(9)))
@settings(max_examples=15)
def test_parts_merge_in_any_order_to_what_one_fold_gives(
    strategy: Strategy, seed: int, cut: int, order: list[int]
) -> None:
    state = worlds.start(strategy, worlds.setup(seed=seed))
    answers = worlds.updates(state, 9, seed=seed)
    whole, metrics = worlds.aggregate(strategy, state, answers)
    shuffled = [answers[client] for client in order]
    parts = worlds.fold(strategy, state, shuffled[:cut]), worlds.fold(strategy, state, shuffled[cut:])
    merged, merged_metrics = strategy.finish(state, strategy.merge(*parts))
    for name, array in whole.shared.items():
        np.testing.assert_allclose(merged.shared[name], array, rtol=1e-6, atol=1e-7)
    assert dict(merged_metrics) == pytest.approx(metrics, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_folding_changes_nothing_that_it_was_given(strategy: Strategy) -> None:
    state = worlds.start(strategy, worlds.setup())
    answers = worlds.updates(state, 3)
    before = {name: array.copy() for name, array in {**state.shared, **answers[0].tensors}.items()}
    kept = {name: array.copy() for name, array in state.shared.items()}
    once = worlds.fold(strategy, state, answers[:1])
    weight, sums = once.weight, {name: array.copy() for name, array in once.sums.items()}
    strategy.finish(state, strategy.fold(state, once, answers[1]))
    assert once.weight == weight
    assert all(np.array_equal(once.sums[name], sums[name]) for name in sums)
    assert all(np.array_equal(state.shared[name], kept[name]) for name in kept)
    assert all(np.array_equal(answers[0].tensors[name], before[name]) for name in answers[0].tensors)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_an_empty_round_is_an_error(strategy: Strategy) -> None:
    state = worlds.start(strategy, worlds.setup())
    with pytest.raises(StrategyError, match="no client's update was folded in"):
        strategy.finish(state, strategy.begin(state))


def adapter_bytes(manifest: Manifest, *deliveries: Delivery) -> int:
    return manifest.nbytes(manifest.names(*deliveries), head=False)


def test_each_method_sends_the_bytes_that_its_mathematics_needs() -> None:
    up = {}
    for strategy in EVERY:
        manifest = strategy.manifest(worlds.setup(R))
        up[strategy.name] = manifest.nbytes(manifest.uploaded(), head=False)
        assert adapter_bytes(manifest, Delivery.ROUND) == up[strategy.name]
    sides = worlds.MODULES.values()
    both = 4 * R * sum(d + k for d, k in sides)
    assert up == {
        "fedavg": both,
        "lora_fair": both,
        "ffa_lora": 4 * R * sum(d for d, _ in sides),
        "fed_sb": 4 * R * R * len(sides),
    }
    assert adapter_bytes(FedSb().manifest(worlds.setup(R)), Delivery.ONCE) == both
    assert adapter_bytes(FfaLora().manifest(worlds.setup(R)), Delivery.ONCE) == 0


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
@pytest.mark.parametrize("train_head", [True, False])
def test_the_layout_is_in_setup_order_with_the_head_last(strategy: Strategy, train_head: bool) -> None:
    state = strategy.start(worlds.setup(R, train_head=train_head))
    roles = "BRA" if isinstance(strategy, FedSb) else "AB"
    names = [f"{module}.lora_{role}" for module in worlds.MODULES for role in roles]
    assert list(state.manifest) == [*names, "head.score.weight"]
    assert state.manifest.modules() == list(worlds.MODULES)
    assert ("head.score.weight" in state.shared) == train_head
    assert ("head.score.weight" in state.fixed) != train_head
    assert list(state.shared) == state.manifest.names(Delivery.ROUND)
    assert list(state.fixed) == state.manifest.names(Delivery.ONCE)
    assert not keeps_client_state(state.manifest)
    for name, array in global_tensors(state).items():
        spec = state.manifest.tensors[name]
        assert (array.shape, str(array.dtype)) == (spec.shape, spec.dtype)
    assert Manifest.from_json(state.manifest.to_json()) == state.manifest


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_training_starts_at_the_base_model(strategy: Strategy) -> None:
    state = strategy.start(worlds.setup(R))
    for module in worlds.MODULES:
        assert not worlds.dense(state.manifest, global_tensors(state), module).any()


@pytest.mark.parametrize("strategy", [FedAvg(), FfaLora(), FedSb(init="random")], ids=repr)
def test_a_depends_on_the_seed_and_the_module_alone(strategy: Strategy) -> None:
    first, again, other = (global_tensors(strategy.start(worlds.setup(seed=seed))) for seed in (1, 1, 2))
    query, value = "layer.0.query.lora_A", "layer.0.value.lora_A"
    assert np.array_equal(first[query], again[query])
    assert not np.array_equal(first[query], other[query])
    assert first[query].shape == first[value].shape
    assert not np.array_equal(first[query], first[value])


def test_ffa_lora_and_fedavg_share_their_a() -> None:
    ffa, fedavg = (global_tensors(strategy.start(worlds.setup())) for strategy in (FfaLora(), FedAvg()))
    assert np.array_equal(ffa["layer.1.out.lora_A"], fedavg["layer.1.out.lora_A"])


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_a_rank_above_the_smaller_side_is_refused(strategy: Strategy) -> None:
    strategy.manifest(worlds.setup(7))
    with pytest.raises(StrategyError, match=r"adapter\.r=8 is above 7.*'layer\.1\.out' \(7 × 15\).*at most 7"):
        strategy.manifest(worlds.setup(8))


def test_no_module_is_refused() -> None:
    setup = worlds.setup()
    empty = type(setup)({}, 3, 2.0, 0, {}, True, setup.weight, setup.gradient)
    with pytest.raises(StrategyError, match=r"adapter\.targets"):
        FedAvg().start(empty)


def test_a_float32_update_is_averaged_in_float64() -> None:
    state = FedAvg().start(worlds.setup())
    name = "head.score.weight"
    values = [1.0, 1e-8, -1.0]  # float32 arithmetic would lose the middle one
    answers = [Update(c, {**state.shared, name: np.full((2, 4), v, np.float32)}, 1.0) for c, v in enumerate(values)]
    new, _ = worlds.aggregate(FedAvg(), state, answers)
    np.testing.assert_allclose(new.shared[name], 1e-8 / 3, rtol=1e-6)
    assert new.shared[name].dtype == np.float32


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_defaults_are_dotted_keys_of_the_schema_and_fit_a_factor_role(strategy: Strategy) -> None:
    assert set(strategy.defaults) == {"adapter.r", "adapter.scaling", "train.lr"}
    assert {spec.role for spec in strategy.manifest(worlds.setup()).tensors.values()} >= {Role.A, Role.B, Role.HEAD}


def test_strategies_load_nothing_heavy() -> None:
    code = (
        "import sys, fedlora.strategies.registry, fedlora.server.aggregation_error;"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'flwr'} & set(sys.modules); sys.exit(str(heavy or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_the_registered_methods_are_the_tested_ones() -> None:
    assert {type(strategy) for strategy in EVERY} <= set(strategies().values())
