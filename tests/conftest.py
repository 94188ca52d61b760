"""Fixtures for all tests: tiny models and data on disk, built once a session; one thread, no hub."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch and the hub's client are imported: two cores are shared by many tests, and no test may need the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests import tiny

# How long an example takes says nothing on a machine that many tests share.
settings.register_profile("fedlora", deadline=None)
settings.load_profile("fedlora")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One temporary folder for all tiny models and data. Read only, by agreement."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny_bert(tiny_folder: Path) -> Path:
    """Folder of a BERT, 2 layers × 32, with a tokenizer."""
    return tiny.build_bert(tiny_folder / "bert")


@pytest.fixture(scope="session")
def tiny_llama(tiny_folder: Path) -> Path:
    """Folder of a Llama, 2 layers × 32, with a tokenizer that has a chat template."""
    return tiny.build_llama(tiny_folder / "llama")


@pytest.fixture(scope="session")
def tiny_vit(tiny_folder: Path) -> Path:
    """Folder of a ViT, 2 layers × 32, for grey images of 14 × 14."""
    return tiny.build_vit(tiny_folder / "vit")


@pytest.fixture(scope="session")
def tiny_text_csv(tiny_folder: Path) -> Path:
    """CSV of 300 unique texts in three separable classes; columns text, label, source."""
    return tiny.build_text_csv(tiny_folder / "texts.csv")


@pytest.fixture(scope="session")
def tiny_qa_jsonl(tiny_folder: Path) -> Path:
    """JSONL of 100 questions and one-word answers; keys prompt, answer."""
    return tiny.build_qa_jsonl(tiny_folder / "questions.jsonl")


@pytest.fixture(scope="session")
def tiny_images(tiny_folder: Path) -> Path:
    """Saved `datasets` folder of 200 grey images in four separable classes; columns image, label."""
    return tiny.build_images(tiny_folder / "images")
