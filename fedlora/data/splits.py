"""Train, validation and test: repeats dropped first, no text in two splits, the same for every seed of a run.

Everything is drawn from `data.split_seed`, never from the run's `seed`, so that repetitions share one test set.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from fedlora.config.schema import DataConfig
from fedlora.data.base import Splits
from fedlora.data.columns import TEXTS, arrow_column, encode_labels, map_columns, usable_rows
from fedlora.data.sources import read_rows
from fedlora.errors import DataError
from fedlora.seeding import stream

log = logging.getLogger(__name__)

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _Pool:
    """Some rows of a source split. Rows of equal `identity` are repeats; rows of equal `group` stay together.

    All arrays have one entry a row.
    """

    rows: Dataset
    index: Indices
    identity: Indices
    group: Indices
    label: Indices

    def where(self, kept: NDArray[np.bool_] | Indices) -> "_Pool":
        return replace(
            self, index=self.index[kept], identity=self.identity[kept], group=self.group[kept], label=self.label[kept]
        )


def load_splits(config: DataConfig) -> Splits:
    """Reads, cleans and splits the configured data.

    Published splits are used whole, repeats and all, so that scores compare. What is missing is held out from train,
    stratified by label: first `test_fraction` of its rows, then `validation_fraction` of what remains. A text that is
    in two published splits stays in test, else in validation. `limit` takes the first rows of a drawn order, so a
    smaller limit is a subset of a larger one; in train those begin with one row of each label.

    Raises DataError (columns, labels, too few rows, a label missing from train) or AssetError.
    """
    pools, labels = _pools(config)
    if config.deduplicate:
        pools["train"] = _without_repeats(pools["train"])
    train, validation, test = _divide(pools, config)
    splits = Splits(
        train=_arranged(train, config, "train"),
        validation=_arranged(validation, config, "validation"),
        test=_arranged(test, config, "test"),
        labels=labels,
    )
    _check_labels(splits, config)
    return splits


def _pools(config: DataConfig) -> tuple[dict[str, _Pool], tuple[str, ...] | None]:
    """The pools of "train" and of the published "test" and "validation", and the label names."""
    source = read_rows(config)
    mapped = {role: map_columns(source[name], config, name) for role, name in _roles(config, list(source)).items()}
    encoded, labels = encode_labels(mapped)
    codes: dict[bytes, int] = {}
    return {role: _pool(rows, role, codes) for role, rows in encoded.items()}, labels


def _roles(config: DataConfig, names: list[str]) -> dict[str, str]:
    """Role → the source split that plays it."""
    wanted = {"train": "train", "test": config.test_split, "validation": config.validation_split}
    roles = {role: name for role, name in wanted.items() if name is not None}
    for role, name in roles.items():
        if name not in names:
            raise DataError(f"data.{role}_split={name}: there is no such split in {config.name!r}, only {names}")
    if len(set(roles.values())) < len(roles):
        raise DataError(f"train, test and validation must be different splits, not {roles}")
    return roles


def _pool(rows: Dataset, role: str, codes: dict[bytes, int]) -> _Pool:
    """All usable rows. A repeat has equal texts (or image); rows with an equal prompt are one group."""
    index = usable_rows(rows, role)
    everything = [name for name in (*TEXTS, "image") if name in rows.column_names]
    asked = [name for name in everything if name != "answer"]
    return _Pool(
        rows=rows,
        index=index,
        identity=_numbered(rows, everything, codes)[index],
        group=_numbered(rows, asked, codes)[index],
        label=_labels(rows)[index],
    )


def _numbered(rows: Dataset, names: list[str], codes: dict[bytes, int]) -> Indices:
    """A number for each row, equal for equal contents of the columns `names`; `codes` is extended."""
    contents = zip(*(_contents(rows, name) for name in names), strict=True)
    digests = (hashlib.blake2b(b"\0".join(parts), digest_size=16).digest() for parts in contents)
    return np.fromiter((codes.setdefault(digest, len(codes)) for digest in digests), dtype=np.int64, count=len(rows))


def _contents(rows: Dataset, name: str) -> Iterator[bytes]:
    """What counts for being a repeat: texts up to white space, images byte for byte."""
    values = (value for chunk in arrow_column(rows, name).chunks for value in chunk.to_pylist())
    if name in TEXTS:
        return (" ".join((text or "").split()).encode() for text in values)
    return (_image_content(value) for value in values)


def _image_content(value: object) -> bytes:
    """The bytes of a stored image; of its path or pixels where that is how it is stored."""
    content = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else repr(content).encode()


def _labels(rows: Dataset) -> Indices:
    if "label" not in rows.column_names:
        return np.zeros(len(rows), dtype=np.int64)
    return np.asarray(arrow_column(rows, "label").to_numpy(), dtype=np.int64)


def _without_repeats(pool: _Pool) -> _Pool:
    """The first of each set of repeats, in the source's order."""
    first = np.sort(np.unique(pool.identity, return_index=True)[1])
    with_label = np.unique(np.stack([pool.identity, pool.label]), axis=1).shape[1]
    log.info(
        "train: %d of %d rows are repeats and left out; %d of them have another label than the first",
        len(pool.index) - len(first),
        len(pool.index),
        with_label - len(first),
    )
    return pool.where(first)


def _divide(pools: dict[str, _Pool], config: DataConfig) -> tuple[_Pool, _Pool, _Pool]:
    """Train, validation, test: disjoint in texts."""
    train = pools["train"]
    published = [pools[role] for role in ("test", "validation") if role in pools]
    for pool in published:
        train = _without(train, pool)
    train, test = (train, pools["test"]) if "test" in pools else _hold_out(train, config.test_fraction, config, "test")
    if "validation" in pools:
        return train, _without(pools["validation"], test), test
    train, validation = _hold_out(train, config.validation_fraction, config, "validation")
    return train, validation, test


def _without(pool: _Pool, other: _Pool) -> _Pool:
    """`pool` without the texts of `other`."""
    kept = ~np.isin(pool.group, other.group)
    if not kept.all():
        log.info("%d rows are left out because a published split has the same text", int((~kept).sum()))
    return pool.where(kept)


def _hold_out(pool: _Pool, fraction: float, config: DataConfig, role: str) -> tuple[_Pool, _Pool]:
    """(rest, held out): `fraction` of the groups, in each label's proportion; one group of every label stays."""
    groups, first = np.unique(pool.group, return_index=True)
    count = max(1, round(fraction * len(groups)))
    if count >= len(groups):
        raise DataError(
            f"data set {config.name!r} has {len(groups)} different rows, too few to hold out {count} for {role}:"
            f" add rows, lower data.{role}_fraction, or name a published split in data.{role}_split"
        )
    order = _stratified(pool.label[first], stream(config.split_seed, "split", role))
    held = np.isin(pool.group, groups[order[:count]])
    return pool.where(~held), pool.where(held)


def _stratified(labels: Indices, draws: np.random.Generator) -> Indices:
    """A random order of the entries in which each prefix holds every label in its proportion (to within one).

    The last entry of each label is at the very end, so no prefix takes all of a label while another has more left.
    """
    shuffled = draws.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        position[members] = (np.arange(len(members)) + draws.random()) / len(members)
        position[members[-1]] = 1.0
    return np.asarray(shuffled[np.argsort(position, kind="stable")], dtype=np.int64)


def _arranged(pool: _Pool, config: DataConfig, role: str) -> Dataset:
    """The pool's rows in a drawn order, no more than `limit`."""
    if len(pool.index) == 0:
        raise DataError(f"data set {config.name!r}: no rows are left for {role}; check its splits and texts")
    order = _stratified(pool.label, stream(config.split_seed, "order", role))
    if role == "train":
        # Backwards the order begins with one row of each label: a small limit still trains on all of them.
        order = order[::-1]
    return pool.rows.select(pool.index[order[: config.limit]].tolist(), keep_in_memory=True)


def _check_labels(splits: Splits, config: DataConfig) -> None:
    """Raises DataError if validation or test asks for a label that train does not teach."""
    if splits.labels is None:
        return
    known = set(_labels(splits.train).tolist())
    for role, rows in (("validation", splits.validation), ("test", splits.test)):
        strange = [splits.labels[i] for i in sorted(set(_labels(rows).tolist()) - known)]
        if strange:
            raise DataError(
                f"data set {config.name!r}: a label missing from train: {role} has {', '.join(strange)}. Raise"
                " data.limit, add such rows to train, or remove them from the other split."
            )
