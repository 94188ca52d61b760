"""Positions: all that are wanted, in their order, and one token a record for stock heads."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.tasks.packing import LENGTHS, OWNERS
from fedlora.tasks.places import Places, pooled

MASKS = st.integers(1, 7).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=6)
)


@given(MASKS)
def test_each_row_has_its_wanted_positions_in_their_order(mask: list[list[bool]]) -> None:
    wanted = torch.tensor(mask)
    places = Places.of(wanted)
    each = [[index for index, one in enumerate(row) if one] for row in mask]
    assert places.positions.shape == (len(mask), max(1, *map(len, each), 1))
    for row, mine in enumerate(each):
        assert places.positions[row][places.real[row]].tolist() == mine
        assert set(places.positions[row].tolist()) <= set(mine or range(len(mask[0])))
    values = torch.arange(wanted.numel()).view(wanted.shape)
    read = places.read(values, -1)
    assert sorted(read[read >= 0].tolist()) == values[wanted].tolist()


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8),
    st.booleans(),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_a_record_has_its_token_padded_or_packed(texts: list[list[int]], last: bool, rows: int, random: object) -> None:
    """Token 0 is padding, wherever it stands: transformers goes by the id."""
    expected = [max([0, *(at for at, token in enumerate(text) if token)]) if last else 0 for text in texts]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    places, owners = pooled({"input_ids": ids}, last=last, padding=0)
    found = places.by_record(places.positions, owners)
    assert found.tolist() == expected
    batch, starts = packed(texts, rows, random)
    places, owners = pooled(batch, last=last, padding=0)
    flat = torch.arange(batch["input_ids"].numel()).view(batch["input_ids"].shape)
    found = places.by_record(places.read(flat, -1), owners)
    assert found.tolist() == [start + at for start, at in zip(starts, expected, strict=True)]


def packed(texts: list[list[int]], rows: int, random: object) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The texts in random order, dealt to rows in turn; and the flat place of each one's first token."""
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    dealt = [order[row::rows] for row in range(min(rows, len(texts)))]
    width = max(sum(len(texts[record]) for record in mine) for mine in dealt)
    shape, starts = (len(dealt), width), [0] * len(texts)
    ids, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    owners = torch.full(shape, len(texts))
    for row, mine in enumerate(dealt):
        at = 0
        for record in mine:
            size = len(texts[record])
            ids[row, at : at + size] = torch.tensor(texts[record])
            positions[row, at : at + size] = torch.arange(size)
            owners[row, at : at + size] = record
            starts[record], at = row * width + at, at + size
    lengths = torch.tensor([len(text) for text in texts])
    return {"input_ids": ids, "position_ids": positions, OWNERS: owners, LENGTHS: lengths}, starts
