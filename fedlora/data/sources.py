"""Reading rows from where they are: an asset, the hub, or local files. Columns still have the source's names."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from fedlora.config.schema import DataConfig
from fedlora.data.assets import fetch, find
from fedlora.data.readers import read_asset
from fedlora.errors import DataError

Rows = Mapping[str, Dataset]

# pyarrow cannot read a JSON object that is longer than a block (default: 1 MB).
_JSON_BLOCK = 1 << 26
_TEXTS = ("text", "text_pair", "prompt", "answer")


def read_rows(config: DataConfig) -> Rows:
    """The splits of the configured source by name; there is always one called "train".

    Raises DataError (source cannot be read, no train split) or AssetError (an asset cannot be fetched).
    """
    splits = SOURCES[config.source](config)
    if "train" not in splits:
        raise DataError(
            f"data set {config.name!r} has no split called train, only {_listed(splits)}; rename one of them"
        )
    return splits


def _read_asset(config: DataConfig) -> Rows:
    asset = find("data", config.name)
    if asset.reader is None:
        raise DataError(f"the asset {asset.name!r} has no reader; use another data set")
    return read_asset(asset.reader, fetch(asset))


def _read_hub(config: DataConfig) -> Rows:
    """From the Hugging Face hub or its local cache. A data set that would run its own code is refused by `datasets`."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    whole = config.name if config.subset is None else f"{config.name} ({config.subset})"
    try:
        loaded = load_dataset(config.name, config.subset, revision=config.revision)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"cannot load {whole} from the hub: {_first_line(error)}. Check the name, data.subset and the connection;"
            " without a hub use source=local with data.path, or an asset (`fedlora ls data`)."
        ) from error
    return dict(loaded)


def _read_local(config: DataConfig) -> Rows:
    """A file is the train split; a folder is a saved `datasets` folder, or holds one file a split (`train.csv`)."""
    path = config.path
    if path is None:
        raise DataError("source=local needs data.path: a CSV, JSONL or Parquet file, or a saved `datasets` folder")
    if not path.exists():
        raise DataError(f"data.path={path} does not exist")
    return _read_folder(path, config) if path.is_dir() else {"train": _read_file(path, config)}


def _read_folder(folder: Path, config: DataConfig) -> Rows:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _read_saved(folder)
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _FORMATS}
    if not files:
        raise DataError(
            f"data.path={folder} is neither a saved `datasets` folder nor does it hold {_listed(_FORMATS)} files"
        )
    return {split: _read_file(path, config) for split, path in files.items()}


def _read_saved(folder: Path) -> Rows:
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read the saved data set {folder}: {_first_line(error)}") from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def _read_file(path: Path, config: DataConfig) -> Dataset:
    read = _FORMATS.get(path.suffix)
    if read is None:
        raise DataError(f"{path} has the ending {path.suffix!r}; {_listed(_FORMATS)} can be read")
    try:
        return Dataset(read(path, config))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {_first_line(error)}") from error


def _read_csv(path: Path, config: DataConfig) -> pyarrow.Table:
    """Columns with texts stay strings, whatever they look like; an empty cell of a text column is an empty text."""
    texts = {getattr(config, name) or name: pyarrow.string() for name in _TEXTS}
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=texts),
    )


def _read_jsonl(path: Path, _: DataConfig) -> pyarrow.Table:
    return pyarrow.json.read_json(path, read_options=pyarrow.json.ReadOptions(block_size=_JSON_BLOCK))


def _read_parquet(path: Path, _: DataConfig) -> pyarrow.Table:
    return pyarrow.parquet.read_table(path)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_FORMATS: Mapping[str, Callable[[Path, DataConfig], pyarrow.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}

SOURCES: Mapping[str, Callable[[DataConfig], Rows]] = {
    "asset": _read_asset,
    "hub": _read_hub,
    "local": _read_local,
}
