"""Packed batches compute what padded ones do, with fewer tokens."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.data.splits import load_splits
from fedlora.tasks.packing import ROW_TOKENS, PackedTokenRows, arrange
from fedlora.tasks.registry import make_task
from fedlora.tasks.rows import TokenRows
from tests.tiny import tiny_config


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40))
def test_every_text_has_a_place_of_its_own(lengths: list[int]) -> None:
    places, width = arrange(lengths, ROW_TOKENS)
    assert width <= ROW_TOKENS + max(lengths)
    taken = [(row, start + token) for (row, start), n in zip(places, lengths, strict=True) for token in range(n)]
    assert len(taken) == len(set(taken)) == sum(lengths)
    assert all(position < width for _, position in taken)


def losses_and_gradients(task, model, batch):  # type: ignore[no-untyped-def]
    model.zero_grad()
    losses = task.losses(model, batch)
    losses.mean().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_losses_and_all_gradients_are_those_of_the_padded_batch(tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    splits = load_splits(config.data)
    task = make_task(config, splits.labels)
    model, encoded = task.load_base().double(), task.encode(splits.train)
    assert isinstance(encoded, PackedTokenRows)
    rows = list(range(0, 80, 5))
    packed, padded = encoded.compact(rows), encoded.batch(rows)
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    packed["attention_mask"] = packed["attention_mask"].double()
    # In float64 what is left of a difference is the weights' float32 rounding of 1/length.
    mine, my_gradients = losses_and_gradients(task, model, packed)
    theirs, their_gradients = losses_and_gradients(task, model, padded)
    torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)
    assert my_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        scale = max(float(gradient.abs().max()), 1e-6)
        torch.testing.assert_close(my_gradients[name] / scale, gradient / scale, atol=1e-5, rtol=0)


def test_a_text_does_not_see_its_neighbours_in_a_row(tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    splits = load_splits(config.data)
    task = make_task(config, splits.labels)
    model, encoded = task.load_base(), task.encode(splits.train)
    with torch.no_grad():
        alone = task.logits(model, encoded.compact([3]))
        together = task.logits(model, encoded.compact([7, 3, 11, 20]))
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"train.packing": False}, {"model.head": "stock"}])
def test_packing_is_off_where_it_is_not_wanted_or_not_exact(
    tiny_bert: Path, tiny_text_csv: Path, change: dict[str, object]
) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv, **change)
    splits = load_splits(config.data)
    encoded = make_task(config, splits.labels).encode(splits.train)
    assert type(encoded) is TokenRows
    assert set(encoded.compact([0, 1])) == set(encoded.batch([0, 1]))
