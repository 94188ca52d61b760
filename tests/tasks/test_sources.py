"""Where models come from, and what is said when they do not come."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedlora.config.schema import ModelConfig
from fedlora.data.catalog import models
from fedlora.errors import AssetError, ModelError
from fedlora.tasks.loading import attention, make_loader
from fedlora.tasks.registry import make_task
from fedlora.tasks.sources import base_text, gguf_file, model_folder, pretrained_options
from tests.tiny import LABELS, tiny_config


def _load(folder: Path, **model: Any) -> Any:
    return make_task(tiny_config(folder, Path("texts.csv"), model=model), LABELS).load_base()


@pytest.fixture
def copy_of_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"path": Path("nowhere")}, "no folder 'nowhere'; check model.path"),
        ({"path": None}, "model.source=local needs model.path"),
        ({"gguf": "weights.gguf"}, "has no file 'weights.gguf'"),
        ({"source": "hub", "name": "someone/nothing"}, r"source=hub\) cannot be loaded: .* model.source=asset"),
        ({"source": "config", "path": None}, "needs model.architecture with a model_type"),
        ({"source": "config", "architecture": {"model_type": "nothing"}}, "nothing.*model_type of transformers"),
        ({"source": "config", "path": None, "architecture": {"model_type": "bert"}}, "has no tokenizer"),
    ],
)
def test_what_cannot_be_found_is_named(tiny_bert: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        _load(tiny_bert, **model)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "has no file 'config.json'"),
        ("model.safetensors", "no file named model.safetensors"),
        ("tokenizer.json", "cannot be loaded"),
    ],
)
def test_a_folder_without_a_file_is_named(copy_of_bert: Path, file: str, message: str) -> None:
    (copy_of_bert / file).unlink()
    with pytest.raises(ModelError, match=message):
        _load(copy_of_bert)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_an_error_with_advice(copy_of_bert: Path, file: str) -> None:
    (copy_of_bert / file).write_bytes(b"\x00" * 40)
    with pytest.raises(ModelError, match=r"model 'copy' .*cannot be loaded.*model\.path must hold"):
        _load(copy_of_bert)


def test_weights_in_a_pickle_are_never_read(copy_of_bert: Path) -> None:
    (copy_of_bert / "model.safetensors").rename(copy_of_bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        _load(copy_of_bert)


def test_code_in_the_folder_is_never_run(copy_of_bert: Path, tmp_path: Path) -> None:
    import json

    config = json.loads((copy_of_bert / "config.json").read_text())
    config |= {"model_type": "home_made", "auto_map": {"AutoConfig": "code.HomeMade"}}
    (copy_of_bert / "config.json").write_text(json.dumps(config))
    (copy_of_bert / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="code in the folder is never run"):
        _load(copy_of_bert)
    assert not (tmp_path / "ran").exists()


def test_an_architecture_without_the_tasks_class_is_refused(tiny_vit: Path, tiny_bert: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tiny_bert / file).is_file()
    config = tiny_config(tiny_vit, Path("texts.csv"))
    from transformers import AutoModelForTokenClassification

    with pytest.raises(ModelError, match=r"ViTConfig.*of an architecture that transformers has for this task"):
        make_loader(config, AutoModelForTokenClassification, LABELS).base()


def test_every_model_asset_is_known_and_a_gguf_among_its_files_is_found() -> None:
    assert gguf_file(ModelConfig(source="asset", name="smollm2")) == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert gguf_file(ModelConfig(source="asset", name="minilm")) is None
    for name, asset in models().items():
        assert asset.requirement in base_text(ModelConfig(source="asset", name=name), 0)


def test_an_unknown_asset_is_refused() -> None:
    with pytest.raises(AssetError, match="no model asset 'nothing'"):
        model_folder(ModelConfig(source="asset", name="nothing"))


def test_a_hub_model_keeps_its_name_and_revision() -> None:
    model = ModelConfig(source="hub", name="org/model", revision="abc")
    assert model_folder(model) == "org/model"
    assert pretrained_options(model) == {"trust_remote_code": False, "revision": "abc"}
    assert base_text(model, 0) == "org/model@abc"


def test_a_text_model_of_a_configuration_takes_its_tokenizer_from_a_folder(tiny_bert: Path) -> None:
    architecture = {
        "model_type": "distilbert",
        "vocab_size": 200,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 16,
        "max_position_embeddings": 64,
    }
    model = _load(tiny_bert, source="config", architecture=architecture)
    assert type(model).__name__ == "DistilBertForTokenClassification"
    assert model.classifier.weight.shape == (3, 16)


def test_attention_is_plain_on_the_cpu_and_the_librarys_choice_on_cuda(tiny_bert: Path) -> None:
    config = tiny_config(tiny_bert, Path("texts.csv"))
    assert attention(config.train) == "eager"
    assert attention(config.train.model_copy(update={"device": "cuda"})) is None
    assert _load(tiny_bert).config._attn_implementation == "eager"


def test_loading_prints_nothing_and_leaves_transformers_as_it_was(
    tiny_bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        capfd.readouterr()
        _load(tiny_bert)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
