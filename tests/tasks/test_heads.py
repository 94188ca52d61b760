"""Which parameters are the head, and where its first values come from, on several architectures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from fedlora.errors import ModelError
from fedlora.tasks.heads import head_parameters
from fedlora.tasks.registry import make_task
from tests.tiny import LABELS, build_tokenizer, tiny_config

SMALL = {"vocab_size": 162, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SMALL | {"intermediate_size": 16},
    "roberta": SMALL | {"intermediate_size": 16, "max_position_embeddings": 66},
    "distilbert": {"vocab_size": 162, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "llama": SMALL | {"intermediate_size": 16, "num_key_value_heads": 1},
    "modernbert": SMALL | {"intermediate_size": 16, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
}
CLASSES = {"mean": AutoModelForTokenClassification, "stock": AutoModelForSequenceClassification}
HEADS = [
    ("bert", "mean", {"classifier.weight", "classifier.bias"}),
    ("bert", "stock", {"classifier.weight", "classifier.bias"}),
    ("roberta", "mean", {"classifier.weight", "classifier.bias"}),
    (
        "roberta",
        "stock",
        {"classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"},
    ),
    ("distilbert", "mean", {"classifier.weight", "classifier.bias"}),
    (
        "distilbert",
        "stock",
        {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
    ),
    ("llama", "mean", {"score.weight", "score.bias"}),
    ("llama", "stock", {"score.weight"}),
    ("modernbert", "mean", {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"}),
]


@pytest.fixture
def tiny_folder_of(tmp_path: Path) -> Any:
    def build(model_type: str, auto: Any = AutoModel) -> Path:
        build_tokenizer(tmp_path, chat=model_type == "llama")
        with torch.random.fork_rng(devices=[]):
            auto.from_config(AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])).save_pretrained(tmp_path)
        return tmp_path

    return build


def _load(folder: Path, head: str, seed: int = 0) -> Any:
    config = tiny_config(folder, Path("texts.csv"), seed=seed, model={"head": head})
    return make_task(config, LABELS).load_base()


@pytest.mark.parametrize(("model_type", "head", "expected"), HEADS)
def test_the_head_is_what_the_checkpoint_lacks_and_comes_from_the_seed(
    tiny_folder_of: Any, model_type: str, head: str, expected: set[str]
) -> None:
    folder = tiny_folder_of(model_type)
    first, again, other = _load(folder, head), _load(folder, head), _load(folder, head, seed=1)
    assert set(head_parameters(first)) == expected
    values, same, different = (dict(model.named_parameters()) for model in (first, again, other))
    for name, value in values.items():
        assert torch.equal(value, same[name])
        drawn = name in expected and value.ndim > 1
        assert torch.equal(value, different[name]) != drawn, name
    for name in expected:
        assert (values[name] == 0).all() or name.endswith("weight")


@pytest.mark.parametrize("head", ["mean", "stock"])
def test_the_rest_of_the_checkpoint_is_untouched(tiny_folder_of: Any, head: str) -> None:
    folder = tiny_folder_of("bert")
    stored = AutoModel.from_pretrained(folder).state_dict()
    loaded = _load(folder, head).state_dict()
    shared = [name for name in stored if f"bert.{name}" in loaded]
    assert len(shared) >= len(stored) - 2
    assert all(torch.equal(loaded[f"bert.{name}"], stored[name]) for name in shared)


def test_the_heads_spread_is_the_configurations(tiny_folder_of: Any) -> None:
    weight = _load(tiny_folder_of("roberta"), "stock").classifier.dense.weight
    assert 0.015 < weight.std().item() < 0.025
    assert abs(weight.mean().item()) < 0.005


def test_another_tasks_classifier_in_the_checkpoint_is_replaced(tiny_folder_of: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        folder = tiny_folder_of("bert", AutoModelForTokenClassification)  # two labels: another size
    wider = _load(folder, "mean")
    assert wider.classifier.weight.shape == (3, 16)
    config = tiny_config(folder, Path("texts.csv"), model={"head": "mean"})
    fitting = make_task(config, ("yes", "no")).load_base()
    stored = AutoModelForTokenClassification.from_pretrained(folder)
    assert stored.classifier.weight.shape == fitting.classifier.weight.shape
    assert not torch.equal(stored.classifier.weight, fitting.classifier.weight)
    assert torch.equal(
        stored.bert.encoder.layer[0].output.dense.weight, fitting.bert.encoder.layer[0].output.dense.weight
    )


def test_a_layer_between_backbone_and_output_that_the_checkpoint_has_is_kept(tiny_folder_of: Any) -> None:
    from transformers import AutoModelForMaskedLM

    folder = tiny_folder_of("modernbert", AutoModelForMaskedLM)
    stored = AutoModelForMaskedLM.from_pretrained(folder).head.dense.weight
    assert torch.equal(_load(folder, "mean").head.dense.weight, stored)


def test_a_missing_pooler_is_an_error_that_names_it(tiny_folder_of: Any) -> None:
    folder = tiny_folder_of("bert", AutoModelForTokenClassification)
    with pytest.raises(ModelError, match=r"bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight.*model\.head=mean"):
        _load(folder, "stock")


def test_a_checkpoint_of_another_architecture_is_an_error(tiny_folder_of: Any, tiny_bert: Path) -> None:
    folder = tiny_folder_of("roberta")
    (folder / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"no values of the right size for .* more, which RobertaFor"):
        _load(folder, "mean")


def test_a_model_that_is_not_stock_has_no_head() -> None:
    with pytest.raises(ModelError, match="Linear has no backbone"):
        head_parameters(torch.nn.Linear(2, 2))
