"""A site's own files in the place of the server's data and model.

All rows are training rows, in the order of the file: nothing is shuffled, de-duplicated, or kept for validation. What a
run measures on (`eval.holdout`) is held out of them as of a virtual client's rows.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets
from numpy.typing import NDArray

from fedlora.client.units import RECORD
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.data.base import Partition, Splits
from fedlora.data.columns import arrow_column, encode_labels, map_columns, usable_rows
from fedlora.data.sources import SOURCES, read_rows
from fedlora.errors import DataError
from fedlora.tasks.base import Task
from fedlora.tasks.registry import make_task
from fedlora.wire_work import Work

_COLUMNS = ("text", "text_pair", "label", "image", "prompt", "answer")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "text_classification": ("text", "label"),
    "image_classification": ("image", "label"),
    "causal_lm": ("prompt", "answer"),
}


@dataclass(frozen=True)
class LocalData:
    """Where a run's data are here.

    path: a CSV, TSV, JSONL or Parquet file, a folder of such files (all of their rows, in the order of the names), or a
    saved `datasets` folder with one split. columns: the run's name of a column (`text`, `label`, …, or the one that
    names privacy units) → the file's; what is not named is called alike. labels: the file's label → the run's; what is
    not named is called alike. source, name, revision: as `data.*` in a configuration, where the owner's data are the
    training split of an asset or of a hub's data set; then there is no path.
    """

    path: Path | None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    source: str = "local"
    name: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        return repr(self.name) if self.path is None else str(self.path)

    def files(self) -> list[Path]:
        """The file, or all files in the folder, in order."""
        if self.path is None or not self.path.is_dir():
            return [] if self.path is None else [self.path]
        return sorted(path for path in self.path.rglob("*") if path.is_file())


@dataclass(frozen=True)
class LocalModel:
    """Where a run's base model is here: the fields are those of `model.*` in a configuration, and replace the run's."""

    source: str
    name: str
    path: Path | None = None
    revision: str | None = None
    gguf: str | None = None


class SiteWorker(Worker):
    """A worker on a site's own rows, for the one client that it is in a run.

    config: the run's, with the site's files in it. labels: the run's, index = class id.
    """

    def __init__(self, work: Work, data: LocalData, model: LocalModel) -> None:
        super().__init__(with_own_files(work.config, data, model))
        self.client, self.labels, self._data = work.client, work.labels, data
        self._needed = needed_columns(work.config)

    @cached_property
    def splits(self) -> Splits:
        """The site's rows, all of them for training.

        Raises DataError for a file that cannot be read, a missing column, or a label that the run does not know.
        """
        train = own_rows(self.config, self._data, self._needed, self.labels)
        return Splits(train, train.select([]), train.select([]), self.labels)

    @cached_property
    def task(self) -> Task:
        """The task, bound to the run's labels."""
        return make_task(self.config, self.labels)

    @cached_property
    def partition(self) -> Partition:
        """All rows for this client, none for any other."""
        return OwnRows(self.client, len(self.splits.train), self.config.federation.clients)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows: a ledger notes it, and it does not leave. Raises DataError as `splits` does."""
        return hashlib.sha256("".join(self._contents).encode()).hexdigest()

    def record_names(self, rows: Sequence[int]) -> list[Hashable]:
        """Digests of the rows' contents: a row's number is not its own, it depends on the rows before it."""
        return [self._contents[row] for row in rows]

    @cached_property
    def _contents(self) -> list[str]:
        train = self.splits.train
        columns = [arrow_column(train, name).to_pylist() for name in sorted(train.column_names)]
        return [hashlib.sha256(repr(row).encode()).hexdigest() for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class OwnRows:
    """The partition at a site: `client` of `clients` has all `count` rows, in their order."""

    client: int
    count: int
    clients: int

    def __len__(self) -> int:
        return self.clients

    def rows(self, client: int) -> NDArray[np.int64]:
        """All row numbers. Raises DataError for any other client: its rows are not here."""
        if client != self.client:
            raise DataError(f"this site is client {self.client} of the run; the rows of client {client} are not here")
        return np.arange(self.count, dtype=np.int64)


class SiteWorkers:
    """Keeps the last worker: the model stays loaded from round to round, until run, files or settings change."""

    def __init__(self) -> None:
        self._kept: tuple[str, SiteWorker] | None = None

    def get(self, work: Work, data: LocalData, model: LocalModel) -> SiteWorker:
        """The worker for `work`. Raises DataError if the data's files are not there."""
        key = _key(work, data, model)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before another model is loaded
            self._kept = (key, SiteWorker(work, data, model))
        return self._kept[1]


def _key(work: Work, data: LocalData, model: LocalModel) -> str:
    try:
        states = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in data.files()]
    except OSError as error:
        raise DataError(f"the site's data {data} are not there ({error.strerror}): correct their path") from error
    return repr((work.config.model_dump_json(), work.client, work.labels, data, model, states))


def with_own_files(config: RunConfig, data: LocalData, model: LocalModel) -> RunConfig:
    """The run's configuration with this site's files, columns and model in the place of the server's."""
    columns = {name: data.columns.get(name) for name in _COLUMNS}
    rows = {
        "source": data.source,
        "name": data.name or config.data.name,
        "path": data.path,
        "subset": None,
        "revision": data.revision,
        **columns,
    }
    base = {
        "source": model.source,
        "name": model.name,
        "path": model.path,
        "revision": model.revision,
        "gguf": model.gguf,
    }
    own = {"data": config.data.model_copy(update=rows), "model": config.model.model_copy(update=base)}
    return config.model_copy(update=own)


def needed_columns(config: RunConfig) -> tuple[str, ...]:
    """The columns that the run of `config` reads, by its own names; a site reads no others."""
    pair = ("text_pair",) if config.task.name == "text_classification" and config.data.text_pair else ()
    unit = () if config.privacy.unit == RECORD else (config.privacy.unit,)
    return tuple(dict.fromkeys((*_NEEDED[config.task.name], *pair, *unit)))


def own_rows(config: RunConfig, data: LocalData, needed: Sequence[str], labels: tuple[str, ...] | None) -> Dataset:
    """The rows of `data` in their order, with the columns `needed` and class ids that index `labels`.

    Rows with an empty text are left out, as in a simulation, and logged. Raises DataError as `SiteWorker.splits` says.
    """
    parts = [_part(rows, name, config, data, needed, labels) for name, rows in _sources(config, data).items()]
    try:
        whole = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(f"the files in {data} do not have the same kinds of columns: {error}") from error
    if not len(whole):
        raise DataError(f"the site's data {data} have no row to train on")
    return whole


def own_labels(config: RunConfig, data: LocalData) -> tuple[str, ...] | None:
    """The names of the labels in the site's files, sorted; None where there are none. config: with the site's files."""
    found: set[str] = set()
    for name, rows in _sources(config, data).items():
        _, own = encode_labels({"train": map_columns(rows, config.data, name)})
        found.update(data.labels.get(label, label) for label in own or ())
    return tuple(sorted(found)) or None


def _sources(config: RunConfig, data: LocalData) -> Mapping[str, Dataset]:
    if data.path is None:
        return {"train": read_rows(config.data)["train"]}
    found = SOURCES["local"](config.data)
    if len(found) > 1 and (data.path / "dataset_dict.json").exists():
        raise DataError(f"the saved data set {data} has the splits {', '.join(sorted(found))}: name one's folder")
    return found


def _part(
    rows: Dataset,
    name: str,
    config: RunConfig,
    data: LocalData,
    needed: Sequence[str],
    labels: tuple[str, ...] | None,
) -> Dataset:
    """One file's rows, made ready."""
    wanted = {column: data.columns.get(column, column) for column in needed}
    missing = [f"{own!r} for {column!r}" for column, own in wanted.items() if own not in rows.column_names]
    if missing:
        raise DataError(
            f"{name!r} has no column {' and none '.join(missing)}, which the run reads; there are:"
            f" {', '.join(rows.column_names)}. Map what the run reads to them"
        )
    if len(set(wanted.values())) < len(wanted):
        raise DataError(f"{name!r}: one column is configured for two purposes: {wanted}")
    named = _with_unit(map_columns(rows, config.data, name), wanted)
    kept = named.select_columns(list(needed))
    if "label" in needed:  # before rows are chosen: `datasets` would write a column of chosen rows to a temporary file
        kept = _with_ids(kept, name, data, labels)
    return kept.select(usable_rows(kept, name).tolist(), keep_in_memory=True)


def _with_unit(rows: Dataset, wanted: Mapping[str, str]) -> Dataset:
    """The column that names the privacy units, under the run's name; a column in the way is left out."""
    renamed = {own: name for name, own in wanted.items() if name not in _COLUMNS and own != name}
    in_the_way = [name for name in renamed.values() if name in rows.column_names]
    return rows.remove_columns(in_the_way).rename_columns(renamed)


def _with_ids(rows: Dataset, name: str, data: LocalData, labels: tuple[str, ...] | None) -> Dataset:
    """The run's class ids in the place of the file's labels."""
    known = {label: number for number, label in enumerate(labels or ())}
    encoded, own = encode_labels({"train": rows})
    numbers = np.asarray(arrow_column(encoded["train"], "label").to_numpy(), dtype=np.int64)
    called = {number: data.labels.get(label, label) for number, label in enumerate(own or ())}
    strange = sorted({called[number] for number in np.unique(numbers).tolist()} - set(known))
    if strange:
        raise DataError(
            f"{name!r} has the labels {', '.join(strange)}, which the run does not know; it knows"
            f" {', '.join(known) or 'none'}: map them to the run's, or leave such rows out"
        )
    ids = [known[called[number]] for number in numbers.tolist()]
    feature = ClassLabel(names=list(known))
    return rows.remove_columns("label").add_column("label", ids, feature=feature)
