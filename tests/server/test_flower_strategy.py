"""`FlowerStrategy` is an ordinary Flower strategy: Flower's own loop drives it as ours does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import Strategy as FlowerBase

from fedlora.client.app import app
from fedlora.client.worker import worker_for
from fedlora.config.strategy import make_strategy
from fedlora.errors import RunError
from fedlora.server.checkpoint import load
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import RunStatus
from fedlora.simulations.simulate import Watch, resolve, run
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid
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
    grid = VirtualGrid(InProcess(Clients(app)), config.federation.clients)
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
        strategy.start(VirtualGrid(InProcess(Clients(app)), 3), to_record(state.shared), num_rounds=1)


def test_a_client_with_another_base_model_is_refused(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fed-SB's factors were made of the server's weights: training on others would be silently wrong."""
    config = tiny_config(tiny_bert, tiny_text_csv, strategy={"name": "fed_sb"}, store=tmp_path)
    assert run(config, Watch()).run.status is RunStatus.FINISHED
    real = FlowerStrategy.__init__

    def another(self: FlowerStrategy, *args: Any, base_digest: str, **more: Any) -> None:
        assert len(base_digest) == 64
        real(self, *args, base_digest="0" * 64, **more)

    monkeypatch.setattr(FlowerStrategy, "__init__", another)
    with pytest.raises(RunError, match="base model has the SHA-256"):
        run(config.model_copy(update={"seed": 1}), Watch())
