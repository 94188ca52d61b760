"""Who holds which rows of train. Only row numbers are kept, and only `seed` decides: all strategies see one partition.

The partitioners are those of flwr-datasets, run on a small data set of row numbers and keys instead of the rows.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from fedlora.config.schema import PartitionConfig
from fedlora.data.base import IndexPartition, Partition
from fedlora.data.columns import arrow_column
from fedlora.errors import DataError
from fedlora.seeding import stream, stream_key

Indices = NDArray[np.int64]
Shares = list[Indices]

# flwr-datasets draws 11 times and gives up; each attempt is a fresh partitioner with its own seed.
_DIRICHLET_ATTEMPTS = 20


@dataclass(frozen=True)
class BootstrapPartition:
    """Each client draws `size` of `total` rows with replacement, from its own stream, when it is asked for."""

    total: int
    size: int
    clients: int
    seed: int

    def __len__(self) -> int:
        return self.clients

    def rows(self, client: int) -> Indices:
        """The row numbers of `client`; raises IndexError if there is no such client."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} of {self.clients}")
        draws = stream(self.seed, "bootstrap", client)
        return draws.integers(0, self.total, size=self.size, dtype=np.int64)


def make_partition(train: Dataset, config: PartitionConfig, clients: int, seed: int) -> Partition:
    """Deals the rows of `train` to `clients` clients as `config` says.

    Except for bootstrap the clients' rows are disjoint and cover all of train; each client's are in ascending order.
    Raises DataError if that leaves a client without rows or cannot be done; the message says what to change.
    """
    if config.name == "bootstrap":
        return BootstrapPartition(len(train), config.rows, clients, seed)
    if clients > len(train):
        raise DataError(
            f"{clients} clients cannot share {len(train)} training rows: lower federation.clients to {len(train)} or"
            " less, or use data/partition=bootstrap, which draws with replacement"
        )
    shares = [np.sort(share) for share in _PARTITIONERS[config.name](train, config, clients, seed)]
    empty = [client for client, share in enumerate(shares) if len(share) == 0]
    if empty:
        raise DataError(
            f"partition {config.name}: {len(empty)} of {clients} clients have no rows (the first is client {empty[0]});"
            " lower federation.clients or choose another partition"
        )
    return IndexPartition(shares)


def _iid(train: Dataset, _: PartitionConfig, clients: int, seed: int) -> Shares:
    from flwr_datasets.partitioner import IidPartitioner

    return _dealt(IidPartitioner(clients), _shuffled(len(train), seed), clients)


def _size_skew(train: Dataset, config: PartitionConfig, clients: int, seed: int) -> Shares:
    """Sizes that grow with the client's number n like n, n² or eⁿ."""
    from flwr_datasets import partitioner

    kinds = {
        "linear": partitioner.LinearPartitioner,
        "square": partitioner.SquarePartitioner,
        "exponential": partitioner.ExponentialPartitioner,
    }
    try:
        return _dealt(kinds[config.skew](clients), _shuffled(len(train), seed), clients)
    except ValueError as error:
        raise DataError(
            f"partition size_skew with skew={config.skew}: the smallest of {clients} clients would get none of the"
            f" {len(train)} rows; lower federation.clients, or use a milder data.partition.skew"
            " (linear < square < exponential)"
        ) from error


def _dirichlet(train: Dataset, config: PartitionConfig, clients: int, seed: int) -> Shares:
    """Hsu, Qi and Brown, 2019, arXiv:1909.06335, as flwr-datasets does it: each label's rows ~ Dirichlet(α)."""
    from flwr_datasets.partitioner import DirichletPartitioner

    labels = _labels(train, config)
    rows = np.arange(len(train))
    refused: ValueError | None = None
    for attempt in range(_DIRICHLET_ATTEMPTS if clients * config.min_rows <= len(train) else 0):
        dealer = DirichletPartitioner(
            clients,
            "key",
            config.alpha,
            min_partition_size=config.min_rows,
            shuffle=False,
            seed=stream_key(seed, "dirichlet", attempt),
        )
        try:
            return _dealt(dealer, rows, clients, labels)
        except ValueError as error:
            refused = error
    raise DataError(
        f"partition dirichlet: alpha={config.alpha} does not give each of {clients} clients at least"
        f" {config.min_rows} of the {len(train)} rows; raise data.partition.alpha, lower data.partition.min_rows, or"
        " lower federation.clients"
    ) from refused


def _shards(train: Dataset, config: PartitionConfig, clients: int, seed: int) -> Shares:
    """McMahan et al., 2017, arXiv:1602.05629, section 3: rows sorted by label, cut into shards, dealt at random.

    What is given to flwr-datasets is one row for each shard: given the rows themselves it makes all shards equally long
    and drops the rows that are left.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    labels = _labels(train, config)
    count = clients * config.shards_per_client
    if count > len(train):
        raise DataError(
            f"partition shards: {clients} clients with {config.shards_per_client} shards each need {count} shards, but"
            f" there are only {len(train)} rows; lower federation.clients or data.partition.shards_per_client"
        )
    shuffled = _shuffled(len(train), seed)
    cut = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], count)
    dealer = ShardPartitioner(
        clients,
        "key",
        num_shards_per_partition=config.shards_per_client,
        shard_size=1,
        shuffle=False,
        seed=stream_key(seed, "shards"),
    )
    shares = _dealt(dealer, np.arange(count), clients, np.arange(count))
    return [np.concatenate([cut[shard] for shard in share]) for share in shares]


def _natural(train: Dataset, config: PartitionConfig, clients: int, _: int) -> Shares:
    """One client for each value of a column, in sorted order of the values."""
    from flwr_datasets.partitioner import NaturalIdPartitioner

    values, keys = np.unique(_natural_keys(train, config), return_inverse=True)
    if len(values) != clients:
        raise DataError(
            f"partition natural: column {config.column!r} has {len(values)} values in train, but federation.clients="
            f"{clients}; set federation.clients={len(values)}"
        )
    return _dealt(NaturalIdPartitioner("key"), np.arange(len(train)), clients, keys)


def _natural_keys(train: Dataset, config: PartitionConfig) -> NDArray[Any]:
    if config.column is None:
        raise DataError("partition natural needs data.partition.column: one client is made for each of its values")
    if config.column not in train.column_names:
        raise DataError(
            f"data.partition.column={config.column} is no column of train; there are: {', '.join(train.column_names)}"
        )
    values = arrow_column(train, config.column).to_pylist()
    nulls = sum(value is None for value in values)
    if nulls:
        raise DataError(f"partition natural: {nulls} rows have no {config.column!r}, so they belong to no client")
    return np.asarray([str(value) for value in values])


def _labels(train: Dataset, config: PartitionConfig) -> Indices:
    if "label" not in train.column_names:
        raise DataError(
            f"partition {config.name} deals by label, and this data has none; use iid, size_skew, natural or bootstrap"
        )
    return np.asarray(arrow_column(train, "label").to_numpy(), dtype=np.int64)


def _shuffled(count: int, seed: int) -> Indices:
    """All row numbers in a drawn order, for partitioners that cut the rows where they stand."""
    return stream(seed, "partition").permutation(count).astype(np.int64)


def _dealt(dealer: Any, rows: Indices, clients: int, keys: Indices | None = None) -> Shares:
    """What `dealer`, a flwr-datasets partitioner by column "key", gives each client out of `rows`."""
    light = Dataset.from_dict({"row": rows, "key": rows if keys is None else keys})
    with _quiet():
        dealer.dataset = light.with_format("pandas")
        return [dealer.load_partition(client)["row"].to_numpy().astype(np.int64) for client in range(clients)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides flwr-datasets' progress bar and its advice about its own parameters."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


_PARTITIONERS: Mapping[str, Callable[[Dataset, PartitionConfig, int, int], Shares]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "size_skew": _size_skew,
    "natural": _natural,
}
