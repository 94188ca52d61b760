"""One client's local training, on a real tiny model and data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.manifest import Role
from fedlora.errors import DataError, RunError
from fedlora.training.local import LocalResult, LocalRound, batches, train_client
from fedlora.training.settings import torch_settings
from tests.adapters.making import random_tensors
from tests.training.preparing import Prepared, prepare


def train(
    prepared: Prepared, rows: Any = range(40), *, client: int = 1, round_number: int = 1, **options: Any
) -> LocalResult:
    """Local training from the values that the adapter has."""
    task, adapted, encoded, config = prepared
    with torch_settings(config.train):
        return train_client(
            adapted,
            task,
            encoded,
            rows,
            config.train,
            client=client,
            round_number=round_number,
            rounds=4,
            seed=3,
            **options,
        )


def restart(prepared: Prepared) -> None:
    adapted = prepared[1]
    adapted.load(random_tensors(adapted.manifest, size=0.1))


def same(left: LocalResult, right: LocalResult) -> bool:
    return all(np.array_equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


def test_same_seed_gives_the_same_bits_whatever_else_is_drawn(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv, dropout=0.3)
    first = train(prepared)
    torch.rand(5)
    restart(prepared)
    assert same(first, train(prepared))
    fresh = prepare(tiny_bert, tiny_text_csv, dropout=0.3)
    assert same(first, train(fresh))


@pytest.mark.parametrize("other", [{"client": 2}, {"round_number": 2}])
def test_other_clients_and_rounds_draw_otherwise(other: dict[str, int], tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv, train={"schedule": "constant"})
    first = train(prepared)
    restart(prepared)
    assert not same(first, train(prepared, **other))


def test_the_global_random_state_is_left_alone(tiny_bert: Path, tiny_text_csv: Path) -> None:
    state = torch.random.get_rng_state()
    train(prepare(tiny_bert, tiny_text_csv, dropout=0.3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_is_on_in_training_and_off_afterwards(tiny_bert: Path, tiny_text_csv: Path) -> None:
    without, with_dropout = (prepare(tiny_bert, tiny_text_csv, dropout=rate) for rate in (0.0, 0.5))
    assert not same(train(without), train(with_dropout))
    assert not any(module.training for module in with_dropout[1].model.modules())


@pytest.mark.parametrize(("method", "trained"), [("lora", {"A", "B"}), ("ffa", {"B"}), ("sb", {"R"})])
def test_only_the_trained_tensors_move_and_all_of_them_do(
    method: str, trained: set[str], tiny_bert: Path, tiny_text_csv: Path
) -> None:
    """Guards against adapters that train for hours and never move, and against a frozen A that does."""
    prepared = prepare(tiny_bert, tiny_text_csv, method, train={"steps": 1})
    adapted = prepared[1]
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    start = adapted.read(adapted.manifest)
    result = train(prepared)
    end = adapted.read(adapted.manifest)
    moved = {name for name in start if np.abs(end[name] - start[name]).max() > 0}
    expected = {n for n, s in adapted.manifest.tensors.items() if s.role in trained or s.role is Role.HEAD}
    assert moved == expected == set(result.tensors)
    changed = {name for name, value in adapted.model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == len(expected)


def test_training_learns(tiny_bert: Path, tiny_text_csv: Path) -> None:
    adapter = {"r": 4, "targets": ["query", "value", "dense"]}
    prepared = prepare(tiny_bert, tiny_text_csv, adapter=adapter, train={"lr": 0.01, "steps": 80, "batch": 16})
    result = train(prepared, range(200))
    assert (result.steps, result.samples) == (80, 200)
    assert result.last_loss < 0.5 * result.first_loss
    assert result.last_loss < result.loss < result.first_loss
    assert result.seconds > 0


def test_a_client_with_three_rows_uses_all_of_them_in_every_step(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv)
    sizes: list[int] = []

    def step(model: Any, task: Any, batch: Any, optimizer: Any) -> float:
        sizes.append(len(batch["labels"]))
        return 1.0

    result = train(prepared, [5, 9, 11], step=step)
    assert (sizes, result.samples) == ([3, 3], 3)


def test_no_rows_is_an_error(tiny_bert: Path, tiny_text_csv: Path) -> None:
    with pytest.raises(DataError, match="client 1 has no training rows"):
        train(prepare(tiny_bert, tiny_text_csv), [])


def test_a_diverging_client_is_named_with_round_rate_and_remedy(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv, train={"lr": 1e30, "optimizer": "sgd", "steps": 9})
    with pytest.raises(RunError, match=r"client 1, round 1: the loss became \S+ at step \d.*1e\+30.*Lower train\.lr"):
        train(prepared)


def test_a_tensor_that_is_not_finite_after_the_last_step_is_found(tiny_bert: Path, tiny_text_csv: Path) -> None:
    prepared = prepare(tiny_bert, tiny_text_csv)

    def step(model: Any, task: Any, batch: Any, optimizer: torch.optim.Optimizer) -> float:
        optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))
        return 1.0

    with pytest.raises(RunError, match=r"the trained tensor 'bert\..*lora_A' is no longer finite"):
        train(prepared, step=step)


@given(
    rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True),
    size=st.integers(1, 50),
    count=st.integers(1, 12),
)
def test_batches_use_every_row_equally_often(rows: list[int], size: int, count: int) -> None:
    where = LocalRound(seed=0, client=4, round=2, lr=1.0)
    stream = batches(rows, size, where)
    drawn = [next(stream) for _ in range(count)]
    assert {len(part) for part in drawn} == {min(size, len(rows))}
    flat = [row for part in drawn for row in part]
    uses = [flat.count(row) for row in rows]
    assert sum(uses) == len(flat)
    assert max(uses) - min(uses) <= 1
    again = batches(rows, size, where)
    assert drawn == [next(again) for _ in range(count)]
