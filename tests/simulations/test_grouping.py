"""What `engine.group` becomes where it is left open."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlora.client.worker import Worker
from fedlora.config.compose import compose
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.server.checkpoint import load
from fedlora.server.store import RunStore
from fedlora.simulations.engines import engine_words, settle
from fedlora.simulations.grouping import cheapest, even, fitting, tokens_of_a_pass, tokens_that_fit, with_group
from fedlora.simulations.simulate import Watch, resume, run
from tests.tiny import tiny_config


def made(bert: Path, csv: Path, store: Path, **updates: Any) -> RunConfig:
    settings = {
        "federation": {"clients": 6, "cohort": 5, "rounds": 2},
        "train": {"optimizer": "sgd", "lr": 0.05, "batch": 2},
        "engine": EngineConfig(name="sequential", group=None),
        "store": store,
        **updates,
    }
    return tiny_config(bert, csv, strategy={"name": "fedavg"}, **settings)


@pytest.mark.parametrize(("tokens", "group"), [(8, 16), (32, 8), (129, 1), (128, 2), (5000, 1)])
def test_clients_are_put_together_until_the_memory_is_full(tokens: float, group: int) -> None:
    assert fitting(tokens, 256, 16) == group


@pytest.mark.parametrize(("tokens", "group"), [(8, 15), (32, 13), (512, 4), (1000, 2), (4096, 1)])
def test_clients_are_put_together_as_long_as_it_is_worth_it(tokens: float, group: int) -> None:
    assert cheapest([clients * tokens for clients in range(1, 17)], 40) == group


@pytest.mark.parametrize(("gaps", "group"), [(0.0, 7), (0.05, 2), (0.3, 1)])
def test_gaps_in_rows_of_unequal_texts_speak_against_it(gaps: float, group: int) -> None:
    """gaps: of two clients' tokens; they grow with the logarithm of the clients."""
    tokens = [clients * 200 * (1 + gaps * math.log2(clients)) for clients in range(1, 17)]
    assert cheapest(tokens, 40) == group


@pytest.mark.parametrize(
    ("chosen", "clients", "group"),
    [(8, 10, 10), (8, 20, 10), (8, 13, 7), (8, 7, 7), (1, 10, 1), (16, 100, 15), (3, 1, 1), (3, 10, 2), (4, 10, 5)],
)
def test_a_workers_clients_make_equal_groups(chosen: int, clients: int, group: int) -> None:
    assert even(chosen, clients, 16) == group


def test_on_a_gpu_the_memory_decides(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tiny_bert, tiny_text_csv, tmp_path)
    worker = Worker(config)
    monkeypatch.setattr(Worker, "device", torch.device("cuda"))
    rooms = []
    for size in (2**20, 2**30):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, size=size: (2**10, size))
        rooms.append(tokens_that_fit(config, worker))
    assert rooms[1] == 1024 * rooms[0]
    shape = worker.skeleton.config
    assert 4 * rooms[0] * 34 * 2 * shape.hidden_size * shape.num_hidden_layers < 2**20


def test_the_tokens_of_a_pass_are_those_that_are_computed(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    config = made(tiny_bert, tiny_text_csv, tmp_path)
    worker = Worker(config)
    encoded = worker.encoded("train")
    sizes = [encoded.compact([row, row + 1])["input_ids"].numel() for row in range(len(encoded) - 1)]
    assert min(sizes) <= tokens_of_a_pass(config, worker, 1) <= max(sizes)
    assert 3 * min(sizes) <= tokens_of_a_pass(config, worker, 3) <= 3 * max(sizes)


def test_gaps_count_only_where_they_are_computed(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    def tokens(**settings: Any) -> float:
        config = made(tiny_bert, tiny_text_csv, tmp_path, **settings)
        return tokens_of_a_pass(config, Worker(config), 2)

    free, computed = tokens(**{"train.prepack": True}), tokens(**{"train.prepack": False})
    padded = tokens(privacy={"name": "dp", "noise_multiplier": 0.8, "rate": 0.3})
    assert free < computed < padded


def test_which_models_leave_gaps_out(tiny_bert: Path, tiny_llama: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    def leaves(folder: Path, **settings: Any) -> bool:
        return Worker(made(folder, tiny_text_csv, tmp_path, **settings)).leaves_gaps

    assert leaves(tiny_bert, train={"prepack": True})
    assert leaves(tiny_bert, train={"prepack": True, "precision": "bfloat16"})
    assert not leaves(tiny_bert, train={"prepack": False})
    assert not leaves(tiny_bert, train={"prepack": True}, **{"model.dropout": True})
    assert not leaves(tiny_llama, train={"prepack": True})


def test_an_open_group_is_chosen_and_a_given_one_kept(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    config = made(tiny_bert, tiny_text_csv, tmp_path)
    worker = Worker(config)
    assert with_group(config, worker).engine.group == 5  # no more than the cohort
    two = config.model_copy(update={"engine": EngineConfig(name="processes", workers=2, group=None)})
    assert with_group(two, worker).engine.group == 3
    assert "3 clients in a pass" in engine_words(with_group(two, worker))
    given = config.model_copy(update={"engine": EngineConfig(name="sequential", group=2)})
    assert with_group(given, worker) is given


def test_with_dropout_each_client_is_alone(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    config = made(tiny_bert, tiny_text_csv, tmp_path, adapter={"dropout": 0.1})
    assert settle(config).engine.group == 1
    assert settle(made(tiny_bert, tiny_text_csv, tmp_path)).engine.group is None


def test_a_named_engine_groups_nobody_by_itself() -> None:
    """What they are documented for: the bits of one client after another."""
    for name in ("sequential", "processes"):
        assert compose([f"engine={name}"]).engine.group == 1
    assert compose([]).engine.group is None


def test_a_run_with_an_open_group_can_be_resumed_and_run_again(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path
) -> None:
    config = made(tiny_bert, tiny_text_csv, tmp_path / "open")
    whole = run(config, Watch())
    rounds = iter([False, True])
    stopped = run(config, Watch(stop=lambda: next(rounds, True)))
    store = RunStore.open(config.store)
    resumed = resume(store, store.get(stopped.run.id), Watch())
    again = run(RunConfig.model_validate_json(whole.run.config), Watch())
    assert stopped.run.id != whole.run.id
    mine = [load(history.run.folder, 2).state.shared for history in (whole, resumed, again)]
    for name, values in mine[0].items():
        assert all(np.array_equal(values, other[name]) for other in mine[1:]), name
    alone = run(made(tiny_bert, tiny_text_csv, tmp_path / "one", engine=EngineConfig(name="sequential")), Watch())
    one = load(alone.run.folder, 2).state.shared
    apart = max(np.linalg.norm(mine[0][name] - one[name]) / np.linalg.norm(one[name]) for name in one)
    assert 0 < apart < 1e-5  # in groups, other shapes round otherwise: it was not one after another
