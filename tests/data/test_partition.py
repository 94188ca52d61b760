from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.config.schema import PartitionConfig
from fedlora.data import partition
from fedlora.data.base import Partition
from fedlora.data.partition import make_partition
from fedlora.data.table import describe
from fedlora.errors import DataError

KINDS: list[dict[str, Any]] = [
    {"name": "iid"},
    {"name": "dirichlet", "alpha": 0.5, "min_rows": 1},
    {"name": "shards", "shards_per_client": 2},
    {"name": "size_skew", "skew": "linear"},
    {"name": "size_skew", "skew": "square"},
    {"name": "size_skew", "skew": "exponential"},
]


def made_rows(count: int, labels: int = 3) -> Dataset:
    label = [i % labels for i in range(count)]
    return Dataset.from_dict({"text": [str(i) for i in range(count)], "label": label})


def dealt(train: Dataset, clients: int, seed: int = 0, **keys: Any) -> Partition:
    return make_partition(train, PartitionConfig.model_validate(keys), clients, seed)


def held(dealing: Partition) -> list[list[int]]:
    return [dealing.rows(client).tolist() for client in range(len(dealing))]


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 120),
    clients=st.integers(1, 8),
    seed=st.integers(0, 2**63 - 1),
)
def test_clients_share_all_rows_and_none_twice(kind: dict[str, Any], count: int, clients: int, seed: int) -> None:
    rows = made_rows(count)
    try:
        dealing = dealt(rows, clients, seed, **kind)
    except DataError as error:
        assert "federation.clients" in str(error)  # noqa: PT017
        return
    shares = held(dealing)
    assert len(shares) == clients
    assert all(shares)
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert held(dealt(rows, clients, seed, **kind)) == shares


@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: kind["name"])
def test_another_seed_deals_otherwise(kind: dict[str, Any]) -> None:
    rows = made_rows(200)
    assert held(dealt(rows, 5, 0, **kind)) != held(dealt(rows, 5, 1, **kind))


def test_rows_keep_their_type_and_order() -> None:
    rows = dealt(made_rows(50), 4, name="iid").rows(2)
    assert rows.dtype == np.int64
    assert rows.tolist() == sorted(rows.tolist())


def test_sizes_grow_as_asked() -> None:
    sizes = {
        skew: [len(share) for share in held(dealt(made_rows(1000), 4, name="size_skew", skew=skew))]
        for skew in ("linear", "square", "exponential")
    }
    assert sizes == {
        "linear": [100, 200, 300, 400],
        "square": [33, 133, 300, 534],
        "exponential": [32, 87, 236, 645],
    }


def test_shards_hold_few_labels_and_equal_sizes() -> None:
    rows = made_rows(103, labels=10)
    table = describe(dealt(rows, 10, name="shards"), np.array(rows["label"][:]), tuple("abcdefghij"))
    assert table.counts is not None
    assert (table.counts > 0).sum(axis=1).max() <= 4
    assert table.rows.max() - table.rows.min() <= 2


def test_a_small_alpha_is_more_skewed() -> None:
    rows = made_rows(3000)

    def largest_share(alpha: float) -> float:
        dealing = dealt(rows, 10, name="dirichlet", alpha=alpha)
        table = describe(dealing, np.array(rows["label"][:]), tuple("abc"))
        assert table.counts is not None
        return float((table.counts.max(axis=1) / table.rows).mean())

    assert largest_share(0.1) > 0.7 > 0.4 > largest_share(100.0)


def test_dirichlet_draws_again_after_flwr_datasets_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, keys = made_rows(400, labels=6), {"name": "dirichlet", "alpha": 0.1, "min_rows": 18}
    assert min(map(len, held(dealt(rows, 8, 2, **keys)))) >= 18
    monkeypatch.setattr(partition, "_DIRICHLET_ATTEMPTS", 1)
    with pytest.raises(DataError, match=r"alpha=0\.1 does not give"):
        dealt(rows, 8, 2, **keys)


def test_natural_clients_are_the_values_in_order() -> None:
    rows = Dataset.from_dict({"site": ["b", "a", "b", "c"], "number": [10, 9, 10, 9]})
    assert held(dealt(rows, 3, name="natural", column="site")) == [[1], [0, 2], [3]]
    assert held(dealt(rows, 2, name="natural", column="number")) == [[0, 2], [1, 3]]


def test_bootstrap_is_lazy_and_each_client_has_its_own_stream() -> None:
    dealing = dealt(made_rows(7), 100_000, 3, name="bootstrap", rows=50)
    assert len(dealing) == 100_000
    far = dealing.rows(99_999)
    assert (far.dtype, far.shape) == (np.int64, (50,))
    assert set(far.tolist()) <= set(range(7))
    assert far.tolist() == dealt(made_rows(7), 100_000, 3, name="bootstrap", rows=50).rows(99_999).tolist()
    assert far.tolist() != dealing.rows(0).tolist()
    with pytest.raises(IndexError):
        dealing.rows(100_000)


@pytest.mark.parametrize(
    ("clients", "keys", "message"),
    [
        (31, {"name": "iid"}, "31 clients cannot share 30 training rows.*bootstrap"),
        (30, {"name": "size_skew", "skew": "exponential"}, "smallest of 30 clients would get none"),
        (2000, {"name": "iid"}, "lower federation.clients to 30"),
        (16, {"name": "shards"}, "need 32 shards, but there are only 30 rows"),
        (10, {"name": "dirichlet", "min_rows": 4}, "alpha=0.5 does not give each of 10 clients at least 4 of the 30"),
        (10, {"name": "dirichlet", "alpha": 1e-3, "min_rows": 3}, r"raise data\.partition\.alpha"),
        (4, {"name": "natural"}, r"needs data\.partition\.column"),
        (4, {"name": "natural", "column": "site"}, "site is no column of train; there are: text, label"),
        (4, {"name": "natural", "column": "label"}, "has 3 values.*set federation.clients=3"),
    ],
)
def test_what_cannot_be_dealt(clients: int, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dealt(made_rows(30), clients, **keys)


@pytest.mark.parametrize("name", ["dirichlet", "shards"])
def test_partitions_by_label_need_labels(name: str) -> None:
    with pytest.raises(DataError, match="deals by label"):
        dealt(Dataset.from_dict({"prompt": ["a"] * 20}), 2, name=name)


def test_natural_needs_a_value_in_each_row() -> None:
    with pytest.raises(DataError, match="1 rows have no 'site'"):
        dealt(Dataset.from_dict({"site": ["a", None, "b"]}), 2, name="natural", column="site")


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    dealt(made_rows(30), 3, name="natural", column="label")
    dealt(made_rows(2000), 10, name="dirichlet", alpha=0.1, min_rows=5)
    assert capfd.readouterr() == ("", "")


def test_the_table_counts_rows_and_labels() -> None:
    rows = made_rows(9)
    table = describe(dealt(rows, 3, name="natural", column="label"), np.array(rows["label"][:]), ("x", "y", "z"))
    assert table.rows.tolist() == [3, 3, 3]
    assert table.counts is not None
    assert table.counts.tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 3]]


def test_the_table_shows_only_the_clients_asked_for() -> None:
    dealing = dealt(made_rows(9), 100_000, name="bootstrap", rows=4)
    table = describe(dealing, None, None, shown=5)
    assert (table.clients, table.rows.tolist(), table.counts) == (100_000, [4] * 5, None)


def test_rows_that_were_selected_keep_their_own_values() -> None:
    """Splits are selections of a larger table: numbers count within the split, values are the split's."""
    part = Dataset.from_dict({"site": ["a", "b", "c", "b"], "label": [0, 1, 2, 1]}).select([3, 1, 0])
    assert held(dealt(part, 2, name="natural", column="site")) == [[2], [0, 1]]
