"""Packed batches compute what padded ones do, with fewer tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.config.schema import RunConfig
from fedlora.data.splits import load_splits
from fedlora.tasks.packing import ROW_TOKENS, PackedTokenRows, arrange, rows_of
from fedlora.tasks.registry import make_task
from fedlora.tasks.rows import Ragged, TokenRows
from tests.adapters.making import tiny_gpt2
from tests.tasks.stock import ragged
from tests.tiny import tiny_config

TEXTS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_every_text_has_a_place_of_its_own(parts: list[list[int]]) -> None:
    arranged, width = arrange(parts, ROW_TOKENS)
    longest = max(map(max, parts))
    padded = sum(map(len, parts)) * longest * (1 + longest / 512)
    assert sum(map(rows_of, arranged)) * width * (1 + width / 512) <= padded  # never more work than without
    assert width <= 3 * max(ROW_TOKENS, longest) + longest
    for lengths, places in zip(parts, arranged, strict=True):
        taken = [(row, start + token) for (row, start), n in zip(places, lengths, strict=True) for token in range(n)]
        assert len(taken) == len(set(taken)) == sum(lengths)
        assert all(position < width for _, position in taken)


@given(st.lists(TEXTS, min_size=2, max_size=4))
def test_parts_agree_on_a_width_instead_of_taking_the_widest(parts: list[list[int]]) -> None:
    def cost(arranged: list[list[tuple[int, int]]], width: int) -> float:
        return sum(map(rows_of, arranged)) * width * (1 + width / 512)

    capacity = max(ROW_TOKENS, *map(max, parts))
    alone = [arrange([lengths], capacity) for lengths in parts]
    widest = cost([places for mine, _ in alone for places in mine], max(width for _, width in alone))
    assert cost(*arrange(parts, capacity)) <= widest


def losses_and_gradients(task, model, batch):  # type: ignore[no-untyped-def]
    model.zero_grad()
    losses = task.losses(model, batch)
    losses.mean().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(
    params=[
        *("bert", "gpt2", "llama", "gpt2 that writes", "llama that writes"),
        *("bert that reads one token", "gpt2 that reads one token", "llama that reads one token"),
    ]
)
def config(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_bert: Path,
    tiny_llama: Path,
    tiny_text_csv: Path,
    tiny_qa_jsonl: Path,
) -> RunConfig:
    """Of a classifier that averages tokens or has a stock head, or of a model that learns answers to prompts; 40 tokens
    at most."""
    kind, *does = request.param.split(" that ")
    data = ragged(tiny_qa_jsonl, tmp_path) if does == ["writes"] else tiny_text_csv
    head = "stock" if does == ["reads one token"] else "mean"
    if kind == "gpt2":
        tiny_gpt2(tmp_path)
    model = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tmp_path}[kind]
    return tiny_config(model, data, task={"max_length": 40}, **{"model.head": head})


def test_losses_and_all_gradients_are_those_of_the_padded_batch(config: RunConfig) -> None:
    splits = load_splits(config.data)
    task = make_task(config, splits.labels)
    model, encoded = task.load_base().double(), task.encode(splits.train)
    assert isinstance(encoded, PackedTokenRows)
    rows = list(range(0, 64, 4))
    packed, padded = encoded.compact(rows), encoded.batch(rows)
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    assert len(packed["input_ids"]) < len(rows)
    # In float64 what is left of a difference is the weights' float32 rounding of 1/length.
    mine, my_gradients = losses_and_gradients(task, model, packed)
    theirs, their_gradients = losses_and_gradients(task, model, padded)
    torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)
    assert my_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        scale = max(float(gradient.abs().max()), 1e-6)
        torch.testing.assert_close(my_gradients[name] / scale, gradient / scale, atol=1e-5, rtol=0)
    with torch.no_grad():
        measured, expected = task.evaluate(model, packed), task.evaluate(model, padded)
    for name, values in expected.items():
        torch.testing.assert_close(measured[name], values, atol=1e-6, rtol=1e-6)


def test_a_text_does_not_see_its_neighbours_in_a_row(config: RunConfig) -> None:
    splits = load_splits(config.data)
    task = make_task(config, splits.labels)
    model, encoded = task.load_base(), task.encode(splits.train)
    together = encoded.compact([7, 3, 11, 20, 22, 26])
    assert len(together["input_ids"]) < 6
    with torch.no_grad():
        alone = task.logits(model, encoded.compact([3]))
        found = task.logits(model, together)
    torch.testing.assert_close(found[1], alone[0], atol=1e-5, rtol=0)


def test_the_first_token_of_an_answer_without_a_prompt_follows_from_nothing(
    tmp_path: Path, tiny_llama: Path, tiny_qa_jsonl: Path
) -> None:
    """Else it would be predicted by the last token of the text before it in its row."""
    config = tiny_config(tiny_llama, ragged(tiny_qa_jsonl, tmp_path), task={"max_length": 40})
    task = make_task(config, None)
    encoded = task.encode(load_splits(config.data).train)
    assert isinstance(encoded, PackedTokenRows)
    columns = {**encoded.columns, "labels": encoded.columns["input_ids"]}  # all tokens are the answer's
    whole, model, rows = replace(encoded, columns=columns), task.load_base(), list(range(12))
    packed = whole.compact(rows)
    assert len(packed["input_ids"]) < 12
    with torch.no_grad():
        mine, theirs = task.losses(model, packed), task.losses(model, whole.batch(rows))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_long_text_makes_rows_long_not_many(tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    splits = load_splits(config.data)
    encoded = make_task(config, splits.labels).encode(splits.train)
    assert isinstance(encoded, PackedTokenRows)
    ids = Ragged.of([[5] * 200, *[[6] * 10] * 20])
    packed = replace(encoded, columns={"input_ids": ids}, scalars={}).compact(list(range(21)))
    assert packed["input_ids"].shape == (2, 200)


def test_packing_is_off_where_it_is_not_wanted(tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv, **{"train.packing": False})
    splits = load_splits(config.data)
    encoded = make_task(config, splits.labels).encode(splits.train)
    assert type(encoded) is TokenRows
    assert set(encoded.compact([0, 1])) == set(encoded.batch([0, 1]))


def test_level_parts_have_rows_of_padding_that_change_nothing(config: RunConfig) -> None:
    splits = load_splits(config.data)
    task = make_task(config, splits.labels)
    model, encoded = task.load_base().double(), task.encode(splits.train)
    order = np.argsort(encoded.lengths)
    parts = [order[-12:].tolist(), order[:3].tolist()]
    plain, counts = encoded.dealt(parts)
    level, same = encoded.dealt(parts, level=True)
    assert counts[0] > counts[1]
    assert list(same) == [counts[0]] * 2
    assert len(level["input_ids"]) == 2 * counts[0]
    mine, my_gradients = losses_and_gradients(task, model, dict(level))
    theirs, their_gradients = losses_and_gradients(task, model, dict(plain))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(my_gradients[name], gradient, rtol=1e-9, atol=1e-12)
