"""One reader for each data asset: its unpacked files → named splits with fedlora's column names."""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray

Splits = dict[str, Dataset]

# From the data set's own README.
_CLOTHES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
_CLEAR_RATING = 0.5


def read_asset(reader: str, folder: Path) -> Splits:
    """The splits of the data asset in `folder`: always "train", "test" where one was published."""
    return _READERS[reader](folder)


def _columns(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Dataset:
    return Dataset.from_dict(dict(zip(names, (list(c) for c in zip(*rows, strict=True)), strict=True)))


def _trec(folder: Path) -> Splits:
    """Lines such as `DESC:manner How did serfdom develop ?`. The file nests five training sets: rows repeat."""
    lines = (folder / "question_labels.txt").read_text(encoding="latin-1").splitlines()
    pairs = (line.split(" ", 1) for line in lines if line)
    rows = ((text, fine.split(":")[0], fine) for fine, text in pairs)
    return {"train": _columns(("text", "label", "fine_label"), rows)}


def _sentiment(folder: Path) -> Splits:
    """Tab-separated `id sentiment text`, a file for each domain; ratings near 0 have no sign to predict."""
    rows = [
        (row["text"], "positive" if float(row["sentiment"]) > 0 else "negative", _domain(path))
        for path in sorted(folder.glob("*_GroundTruth.txt"))
        for row in _tab_separated(path)
        if abs(float(row["sentiment"])) > _CLEAR_RATING
    ]
    return {"train": _columns(("text", "label", "domain"), rows)}


def _tab_separated(path: Path) -> Iterable[dict[str, str]]:
    text = io.StringIO(path.read_text(encoding="utf-8"), newline="")
    return csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)


def _domain(path: Path) -> str:
    """`amazonReviewSnippets_GroundTruth.txt` → `amazon`."""
    stem = path.name.removesuffix("_GroundTruth.txt")
    return stem.removesuffix("Snippets").removesuffix("Review").removesuffix("Editorial")


def _sms_spam(folder: Path) -> Splits:
    with (folder / "sms-spam.csv").open(encoding="utf-8", newline="") as stream:
        rows = [(row["text"], "spam" if row["spam"] == "1" else "ham") for row in csv.DictReader(stream)]
    return {"train": _columns(("text", "label"), rows)}


def _newsgroups(folder: Path) -> Splits:
    """Orange's tab format: three header lines, then `newsgroup<TAB>words`, one line a posting, never quoted."""
    return {split: _newsgroup_file(folder / f"20newsgroups-{split}.tab") for split in ("train", "test")}


def _newsgroup_file(path: Path) -> Dataset:
    lines = path.read_text(encoding="utf-8").split("\n")[3:]
    pairs = (line.split("\t") for line in lines if line)
    return _columns(("text", "label"), ((text, group) for group, text in pairs))


def _rotten_tomatoes(folder: Path) -> Splits:
    """Critics' sentences; the rows of category `plot` are no reviews and are left out."""
    with bz2.open(folder / "rotten_tomatoes_corpus_full.csv.bz2", "rt", encoding="utf-8", newline="") as stream:
        rows = [
            (row["text"], row["category"], row["movie_name"])
            for row in csv.DictReader(stream)
            if row["category"] != "plot"
        ]
    return {"train": _columns(("text", "label", "movie_name"), rows)}


def _chatterbot(folder: Path) -> Splits:
    """The first two utterances of each conversation.

    What follows them is sometimes a dialogue and sometimes a list of other replies to the first; nothing in
    the files tells which.
    """
    rows = [
        (talk[0], talk[1], path.stem)
        for path in sorted(folder.glob("*.yml"))
        for talk in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    ]
    return {"train": _columns(("prompt", "answer", "topic"), rows)}


def _boolq(folder: Path) -> Splits:
    """Question and passage; the rows of the unlabelled test set, which are in the same file, are left out."""
    lines = (folder / "combined.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines if line.strip())
    kept = ((r["question"], r["passage"], str(r["label"]).lower()) for r in rows if r.get("label") is not None)
    return {"train": _columns(("text", "text_pair", "label"), kept)}


def _fashion_mnist(folder: Path) -> Splits:
    return {
        split: _image_split(folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz")
        for split, stem in (("train", "train"), ("test", "t10k"))
    }


def _image_split(images: Path, labels: Path) -> Dataset:
    """Images as PGM (the pixels behind a short header): what `datasets.Image` decodes, at no cost to encode."""
    pixels = _idx(images)
    header = f"P5 {pixels.shape[2]} {pixels.shape[1]} 255\n".encode()
    columns = {"image": [{"bytes": header + image.tobytes(), "path": None} for image in pixels], "label": _idx(labels)}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=_CLOTHES)}))


def _idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes: magic 0, 0, 8, number of dimensions; their sizes; the values."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(tuple(int(n) for n in shape))


_READERS: Mapping[str, Callable[[Path], Splits]] = {
    "trec": _trec,
    "sentiment": _sentiment,
    "sms_spam": _sms_spam,
    "newsgroups": _newsgroups,
    "rotten_tomatoes": _rotten_tomatoes,
    "chatterbot": _chatterbot,
    "boolq": _boolq,
    "fashion_mnist": _fashion_mnist,
}
