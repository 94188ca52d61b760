"""Evaluation: means of per-record values, whatever the batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedlora.errors import DataError
from fedlora.training.evaluate import evaluate, record_values
from tests.training.preparing import prepare


def test_values_are_in_the_order_of_the_rows_whatever_the_batch(tiny_bert: Path, tiny_text_csv: Path) -> None:
    task, adapted, encoded, _ = prepare(tiny_bert, tiny_text_csv)
    rows = np.random.default_rng(0).permutation(300)[:70]
    found = record_values(adapted, task, encoded, rows, 16)
    alone = {n: [float(v[0]) for v in values] for n, values in _one_by_one(adapted.model, task, encoded, rows).items()}
    assert set(found) == {"loss", "accuracy"}
    for name, values in found.items():
        assert (values.shape, values.dtype) == ((70,), np.float64)
        np.testing.assert_allclose(values, alone[name], atol=1e-6)


def _one_by_one(model, task, encoded, rows):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        each = [task.evaluate(model, encoded.batch([int(row)])) for row in rows]
    return {name: [values[name] for values in each] for name in each[0]}


def test_metrics_weigh_every_record_alike_though_the_last_batch_is_smaller(
    tiny_bert: Path, tiny_text_csv: Path
) -> None:
    task, adapted, encoded, _ = prepare(tiny_bert, tiny_text_csv)
    values = record_values(adapted, task, encoded, range(17), 16)
    metrics = evaluate(adapted, task, encoded, range(17), 16)
    assert metrics == {name: float(np.mean(value)) for name, value in values.items()}
    assert metrics == evaluate(adapted.model, task, encoded, range(17), 16)


def test_rows_of_like_length_share_a_batch_where_lengths_are_known(tiny_bert: Path, tiny_text_csv: Path) -> None:
    task, adapted, encoded, _ = prepare(tiny_bert, tiny_text_csv)

    class WithLengths:
        def __init__(self) -> None:
            self.lengths = [int(encoded.batch([row])["attention_mask"].sum()) for row in range(60)]
            self.seen: list[int] = []

        def __len__(self) -> int:
            return 60

        def batch(self, rows: list[int]) -> dict[str, torch.Tensor]:
            return dict(encoded.batch(rows))

        def compact(self, rows: list[int]) -> dict[str, torch.Tensor]:
            self.seen += [self.lengths[row] for row in rows]
            return self.batch(rows)

        def dealt(self, parts: list[list[int]], *, level: bool = False) -> tuple[dict[str, torch.Tensor], list[int]]:
            return dict(encoded.dealt(parts, level=level)[0]), [len(part) for part in parts]

    sorting = WithLengths()
    plain = record_values(adapted, task, encoded, range(60), 8)
    by_length = record_values(adapted, task, sorting, range(60), 8)
    assert sorting.seen == sorted(sorting.seen, reverse=True)
    np.testing.assert_allclose(by_length["loss"], plain["loss"], atol=1e-6)


def test_evaluation_is_without_dropout_and_gradients(tiny_bert: Path, tiny_text_csv: Path) -> None:
    task, adapted, encoded, _ = prepare(tiny_bert, tiny_text_csv, dropout=0.5)
    adapted.model.train()
    first = evaluate(adapted, task, encoded, range(20), 8)
    assert first == evaluate(adapted, task, encoded, range(20), 8)
    assert not adapted.model.training


def test_no_rows_is_an_error(tiny_bert: Path, tiny_text_csv: Path) -> None:
    task, adapted, encoded, _ = prepare(tiny_bert, tiny_text_csv)
    with pytest.raises(DataError, match="no rows to evaluate"):
        evaluate(adapted, task, encoded, [], 8)
