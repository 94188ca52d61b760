"""`FlowerStrategy` is an ordinary Flower strategy: Flower's own loop drives it as ours does."""

from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import Strategy as FlowerBase

from fedlora.client.app import app
from fedlora.client.worker import worker_for
from fedlora.config.strategy import make_strategy
from fedlora.errors import RunError
from fedlora.server.checkpoint import load
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.simulations.simulate import Watch, resolve, run
from fedlora.simulations.virtual import InProcess, VirtualGrid
from fedlora.wire import to_record
from tests.tiny import tiny_config


@pytest.mark.parametrize("name", ["fedavg", "fed_sb"])
def test_flowers_own_loop_gives_the_bits_of_ours(
    name: str, tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv, strategy={"name": name}, store=tmp_path)
    history = run(config, Watch())
    expected = load(history.run.folder, config.federation.rounds).state

    config = resolve(config)
    method = make_strategy(config.strategy)
    state = method.start(worker_for(config).setup(method))
    strategy = FlowerStrategy(method, state, config, "flower")
    assert isinstance(strategy, FlowerBase)
    grid = VirtualGrid(InProcess(app), config.federation.clients)
    rounds = config.federation.rounds
    result = strategy.start(grid, to_record(state.shared), num_rounds=rounds, timeout=60)

    assert set(result.arrays) == set(expected.shared)
    for tensor, values in expected.shared.items():
        np.testing.assert_array_equal(result.arrays[tensor].numpy(), values)
        np.testing.assert_array_equal(strategy.state.shared[tensor], values)
    assert sorted(result.train_metrics_clientapp) == list(range(1, rounds + 1))
    losses = [record.metrics["train_loss"] for record in history.rounds[1:]]
    assert [metrics["train_loss"] for metrics in result.train_metrics_clientapp.values()] == losses


def test_a_grid_with_too_few_nodes_is_named(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    config = resolve(tiny_config(tiny_bert, tiny_text_csv, store=tmp_path))
    method = make_strategy(config.strategy)
    state = method.start(worker_for(config).setup(method))
    strategy = FlowerStrategy(method, state, config, "flower")
    with pytest.raises(RunError, match=r"3 nodes, but federation\.clients=4"):
        strategy.start(VirtualGrid(InProcess(app), 3), to_record(state.shared), num_rounds=1)
