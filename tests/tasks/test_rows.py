"""Ragged rows: what goes in comes out, padded."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.tasks.rows import Ragged, TokenRows

ROWS = st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=9), min_size=1, max_size=8)


@given(rows=ROWS, data=st.data())
def test_a_batch_holds_each_row_then_padding_and_the_mask_tells_which(
    rows: list[list[int]], data: st.DataObject
) -> None:
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    labels = np.arange(len(rows), dtype=np.int64)
    batch = TokenRows({"input_ids": Ragged.of(rows)}, {"input_ids": -7}, {"labels": labels}).batch(picked)
    longest = max(len(rows[row]) for row in picked)
    assert batch["input_ids"].tolist() == [rows[row] + [-7] * (longest - len(rows[row])) for row in picked]
    assert batch["attention_mask"].tolist() == (batch["input_ids"] != -7).long().tolist()
    assert batch["labels"].tolist() == picked
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_rows_are_kept_in_four_bytes_a_token() -> None:
    ragged = Ragged.of([[1, 2, 3], [4]])
    assert ragged.values.nbytes == 16
    assert len(ragged) == 2
    assert ragged.row(1).tolist() == [4]
