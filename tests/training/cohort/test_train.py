"""Clients trained together come out as each alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.adapters.manifest import Tensors
from fedlora.errors import RunError
from fedlora.training.cohort.train import Member, train_group
from fedlora.training.local import LocalResult, train_client, trained_names
from fedlora.training.settings import torch_settings
from tests.adapters.making import own_forwards, random_tensors
from tests.training.preparing import Prepared, prepare

ROWS = [
    *(np.arange(0, 20), np.arange(20, 23), np.arange(10, 60), np.arange(60, 67), np.arange(67, 75)),
    *(np.arange(75, 99), np.arange(99, 100), np.arange(100, 116)),
]
"""Rows of clients of unequal sizes: one with fewer than a batch."""


def starts(prepared: Prepared, clients: int, *, apart: bool) -> list[Tensors]:
    """What each client begins with: its own values, or all the same."""
    manifest = prepared[1].manifest
    names = trained_names(manifest)
    drawn = [random_tensors(manifest, size=0.1, seed=client if apart else 0) for client in range(clients)]
    return [{name: tensors[name] for name in names} for tensors in drawn]


def alone(prepared: Prepared, client: int, start: Tensors) -> LocalResult:
    task, adapted, encoded, config = prepared
    adapted.load(start)
    with torch_settings(config.train):
        return train_client(
            adapted, task, encoded, ROWS[client], config.train, round_number=2, rounds=4, seed=3, client=client
        )


def together(prepared: Prepared, begin: list[Tensors]) -> list[LocalResult | RunError]:
    task, adapted, encoded, config = prepared
    members = [Member(client, ROWS[client], start) for client, start in enumerate(begin)]
    with torch_settings(config.train):
        return train_group(adapted, task, encoded, members, config.train, round_number=2, rounds=4, seed=3)


def assert_close(found: LocalResult | RunError, wanted: LocalResult) -> None:
    assert isinstance(found, LocalResult)
    assert set(found.tensors) == set(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        apart = np.linalg.norm(found.tensors[name].astype(np.float64) - tensor) / np.linalg.norm(tensor)
        assert apart < 1e-5, f"{name}: {apart:.1e}"
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert (found.steps, found.samples) == (wanted.steps, wanted.samples)


@pytest.mark.parametrize("clients", [1, 2, 3, 8])
@pytest.mark.parametrize("method", ["lora", "ffa", "sb"])
@pytest.mark.parametrize("packing", [True, False])
def test_each_client_as_alone(clients: int, method: str, packing: bool, tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv, method, train={"packing": packing, "optimizer": "sgd", "lr": 0.1})
    begin = starts(prepared, clients, apart=True)
    wanted = [alone(prepared, client, start) for client, start in enumerate(begin)]
    for found, one in zip(together(prepared, begin), wanted, strict=True):
        assert_close(found, one)


@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "lr": 0.05},
        {"optimizer": "sgd", "lr": 0.1, "clip_norm": 0.01},
        {"optimizer": "adamw", "clip_norm": 0.05, "schedule": "cosine"},
    ],
)
def test_optimizers_schedules_and_clipping(train: dict[str, Any], tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv, train=train)
    begin = starts(prepared, 3, apart=False)
    wanted = [alone(prepared, client, start) for client, start in enumerate(begin)]
    for found, one in zip(together(prepared, begin), wanted, strict=True):
        assert_close(found, one)


def test_clients_differ_by_far_more_than_the_comparison_allows(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv)
    first, second = (alone(prepared, client, starts(prepared, 2, apart=False)[client]) for client in range(2))
    with pytest.raises(AssertionError):
        assert_close(replace(first, samples=second.samples), second)


def test_a_client_that_diverges_costs_the_others_nothing(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv, train={"clip_norm": 0.1})
    begin = starts(prepared, 3, apart=False)
    wanted = [alone(prepared, client, begin[client]) for client in (0, 2)]
    begin[1] = {name: np.full_like(values, np.nan) for name, values in begin[1].items()}
    first, broken, last = together(prepared, begin)
    assert isinstance(broken, RunError)
    assert "client 1, round 2: the loss became nan at step 1" in str(broken)
    assert_close(first, wanted[0])
    assert_close(last, wanted[1])


def test_the_model_is_as_it_was_afterwards(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv)
    adapted = prepared[1]
    before = adapted.read(adapted.manifest.tensors)
    forwards = own_forwards(adapted.model)
    together(prepared, starts(prepared, 3, apart=True))
    after = adapted.read(adapted.manifest.tensors)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert own_forwards(adapted.model) == forwards
