"""Choosing the modules to adapt."""

from pathlib import Path

import pytest
import torch
import transformers

from fedlora.adapters.modules import find_modules
from fedlora.errors import ModelError
from tests.adapters.making import task_of, tiny_gpt2
from tests.tiny import tiny_config


def test_pefts_default_is_used_and_meta_models_do(tiny_bert: Path, tiny_text_csv: Path) -> None:
    task = task_of(tiny_config(tiny_bert, tiny_text_csv))
    found = find_modules(task.load_skeleton(), None)
    assert found == find_modules(task.load_base(), None)
    layers = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")]
    assert found == dict.fromkeys(layers, (32, 32))
    assert list(found) == layers


def test_targets_are_last_parts_of_names_and_shapes_are_outputs_by_inputs(tiny_llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    found = find_modules(model, ["self_attn.k_proj", "up_proj"])
    assert set(found.values()) == {(16, 32), (64, 32)}
    assert {path.rpartition(".")[2] for path in found} == {"k_proj", "up_proj"}
    assert find_modules(tiny_gpt2(), ["mlp.c_fc"])["transformer.h.0.mlp.c_fc"] == (64, 16)


def test_the_head_is_never_adapted() -> None:
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(vocab_size=50, num_labels=3, **settings)
    model = transformers.RobertaForSequenceClassification(config)
    head = [name for name, _ in model.named_parameters() if name.startswith("classifier.")]
    assert "classifier.dense" in find_modules(model, ["dense"])
    found = find_modules(model, ["dense"], head=head)
    assert found
    assert not any(path.startswith("classifier") for path in found)


def test_a_target_without_a_layer_is_named_with_the_candidates(tiny_vit: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(tiny_vit)
    with pytest.raises(ModelError, match=r"no linear layer of ViTFor.*'ghost'.*adapter\.targets.*'q_proj'"):
        find_modules(model, ["q_proj", "ghost"])


def test_an_architecture_without_a_default_is_named_with_the_candidates(tiny_vit: Path) -> None:
    model = transformers.AutoModelForImageClassification.from_pretrained(tiny_vit)
    with pytest.raises(ModelError, match=r"no default target modules for the architecture 'vit'.*'v_proj'"):
        find_modules(model, None)
    with pytest.raises(ModelError, match="architecture None"):
        find_modules(torch.nn.Linear(2, 2), None)
