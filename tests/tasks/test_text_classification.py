"""Text classification: pooling, encoding, bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy, linear

from fedlora.errors import DataError, ModelError
from fedlora.tasks.registry import make_task
from fedlora.tasks.text_classification import mean_of_tokens
from tests.tiny import LABELS, build_tokenizer, tiny_config

Cases = dict[str, tuple[Any, Dataset]]


def test_the_mean_of_token_logits_is_mean_pooling_then_the_head(cases: Cases) -> None:
    task, rows = cases["mean"]
    model, batch = task.load_base(), task.encode(rows).batch(range(8))
    mask = batch["attention_mask"]
    assert mask.min() == 0  # some records are padded
    hidden = model.bert(batch["input_ids"], attention_mask=mask).last_hidden_state
    pooled = torch.stack([hidden[row, : mask[row].sum()].mean(dim=0) for row in range(8)])
    expected = linear(pooled, model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(task.logits(model, batch), expected, atol=1e-6, rtol=0)


def test_padding_does_not_count_in_the_mean() -> None:
    logits = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [99.0, 99.0]]])
    assert mean_of_tokens(logits, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 2.0]]


def test_the_stock_head_gives_the_stock_classes_logits_and_loss(cases: Cases) -> None:
    task, rows = cases["stock"]
    model, batch = task.load_base(), task.encode(rows).batch(range(5))
    stock = model(**batch)
    torch.testing.assert_close(task.logits(model, batch), stock.logits)
    torch.testing.assert_close(task.losses(model, batch).mean(), stock.loss)


def test_loss_and_accuracy_are_those_of_the_logits(cases: Cases) -> None:
    task, rows = cases["mean"]
    model, batch = task.load_base(), task.encode(rows).batch(range(30))
    logits = task.logits(model, batch)
    values = task.evaluate(model, batch)
    for row in range(30):
        expected = cross_entropy(logits[row : row + 1], batch["labels"][row : row + 1])
        torch.testing.assert_close(values["loss"][row], expected)
        assert values["accuracy"][row].item() == float(logits[row].argmax() == batch["labels"][row])
    assert 0 < values["accuracy"].sum() < 30


def test_a_long_text_is_cut_and_a_batch_is_as_wide_as_its_longest_row(cases: Cases) -> None:
    task, _ = cases["mean"]
    rows = Dataset.from_dict({"text": ["baba", "baba " * 50, "baba bade"], "label": [0, 1, 2]})
    encoded = task.encode(rows)
    assert encoded.batch([0, 2])["input_ids"].shape == (2, 4)
    assert encoded.batch([0, 1])["input_ids"].shape == (2, 16)
    assert encoded.batch([2, 0])["labels"].tolist() == [2, 0]
    assert encoded.batch([0, 2])["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_second_text_is_marked_and_changes_the_answer(cases: Cases) -> None:
    task, _ = cases["mean"]
    rows = Dataset.from_dict({"text": ["baba", "baba"], "text_pair": ["bade", "tool1"], "label": [0, 1]})
    batch = task.encode(rows).batch([0, 1])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2
    logits = task.logits(task.load_base(), batch)
    assert not torch.allclose(logits[0], logits[1])


def test_rows_can_be_asked_for_in_any_order_and_more_than_a_chunk(cases: Cases) -> None:
    task, rows = cases["mean"]
    many = Dataset.from_dict({name: list(rows[name]) * 5 for name in ("text", "label")})
    assert len(many) > 1024
    encoded = task.encode(many)
    first, last = encoded.batch([3, 299]), encoded.batch([1203, 1499])
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "kind": [0]}, r"no column 'label' \(it has text, kind\)"),
        ({"text": ["a", None], "label": [0, 1]}, r"row 1 has None in column 'text'"),
        ({"text": ["a", "b"], "label": [0, 3]}, r"row 1 has label 3, .* from 0 to 2"),
        ({"text": ["a"], "label": [-1]}, r"row 0 has label -1"),
        ({"text": ["a"], "label": ["tool"]}, r"row 0 has label 'tool'"),
        ({"text": [], "label": []}, r"no row"),
    ],
)
def test_bad_rows_are_named(cases: Cases, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cases["mean"][0].encode(Dataset.from_dict(columns))


def test_a_text_without_tokens_is_named(tiny_llama: Path) -> None:
    task = make_task(tiny_config(tiny_llama, Path("texts.csv")), LABELS)
    with pytest.raises(DataError, match="row 1 has no token"):
        task.encode(Dataset.from_dict({"text": ["red", " "], "label": [0, 1]}))


@pytest.mark.parametrize("head", ["mean", "stock"])
def test_a_decoder_classifies_padded_texts(tiny_llama: Path, head: str) -> None:
    task = make_task(tiny_config(tiny_llama, Path("texts.csv"), model={"head": head}), LABELS)
    model = task.load_base()
    encoded = task.encode(Dataset.from_dict({"text": ["red green", "red green blue white"], "label": [0, 1]}))
    together = task.logits(model, encoded.batch([0, 1]))
    torch.testing.assert_close(together[:1], task.logits(model, encoded.batch([0])), atol=1e-5, rtol=0)


@pytest.mark.parametrize("labels", [None, (), ("only",)])
def test_a_classifier_needs_labels(tiny_bert: Path, labels: tuple[str, ...] | None) -> None:
    with pytest.raises(ModelError, match="at least two labels"):
        make_task(tiny_config(tiny_bert, Path("texts.csv")), labels)


def test_the_labels_are_in_the_models_configuration(cases: Cases) -> None:
    model = cases["mean"][0].load_base()
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}


def test_more_tokens_than_the_model_reads_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match=r"task\.max_length=65, but model 'bert' reads at most 64"):
        make_task(tiny_config(tiny_bert, Path("texts.csv"), task={"max_length": 65}), LABELS)


def test_a_tokenizer_without_padding_borrows_a_token_and_one_without_any_is_refused(
    tiny_bert: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((tiny_bert / file).read_bytes())
    tokenizer = build_tokenizer(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    task = make_task(tiny_config(folder, Path("texts.csv")), LABELS)
    assert task.tokenizer.pad_token_id == tokenizer.unk_token_id
    tokenizer.unk_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="no padding, end-of-text or unknown token"):
        make_task(tiny_config(folder, Path("texts.csv")), LABELS)
