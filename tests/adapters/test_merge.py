"""Merging: exact arithmetic, and nothing changed where it cannot be done."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fedlora.adapters.manifest import Form
from fedlora.adapters.merge import merge_adapter, merge_into
from fedlora.adapters.modules import find_modules
from fedlora.adapters.peft_format import LoraFactors, fold
from fedlora.errors import ModelError
from tests.adapters.making import dense, make_manifest, random_tensors, task_of, tiny_gpt2
from tests.tiny import tiny_config


@pytest.mark.parametrize("method", ["lora", "sb"])
def test_merged_weights_are_the_float64_sum_rounded_once(method: str) -> None:
    model = tiny_gpt2()
    modules = find_modules(model, ["c_attn", "mlp.c_proj"])
    manifest = make_manifest(method, modules, scaling=0.7)
    tensors = random_tensors(manifest)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_into(model, fold(manifest, tensors))
    form = Form.LORA_SB if method == "sb" else Form.LORA
    for module in modules:
        old = before[f"{module}.weight"].double().numpy()
        expected = (old + dense(form, 0.7, tensors, module).T).astype(np.float32)
        found = model.get_submodule(module).weight.detach().numpy()
        np.testing.assert_array_max_ulp(found, expected, maxulp=1)
    others = {name for name in before if not any(name == f"{module}.weight" for module in modules)}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)


def test_a_shared_weight_is_refused(tiny_llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    manifest = make_manifest("lora", find_modules(model, ["lm_head"]))
    with pytest.raises(
        ModelError, match=r"'lm_head' shares its weight \(model\.embed_tokens\.weight, lm_head\.weight\)"
    ):
        merge_into(model, fold(manifest, random_tensors(manifest)))


def factors(b: tuple[int, int] = (48, 2), a: tuple[int, int] = (2, 16), value: float = 1.0) -> LoraFactors:
    pair = (np.full(a, value, np.float32), np.ones(b, np.float32))
    return LoraFactors(2, 1.0, {"transformer.h.0.attn.c_attn": pair}, {})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (factors(b=(16, 2), a=(2, 48)), r"has shape \(48, 16\), not \(16, 48\)"),
        (factors(b=(48, 3)), "different ranks"),
        (factors(value=float("inf")), "not finite"),
        (LoraFactors(2, 1.0, {"transformer.ghost": (np.ones((2, 4)), np.ones((4, 2)))}, {}), "has no module"),
        (LoraFactors(2, 1.0, {"transformer.ln_f": (np.ones((2, 4)), np.ones((4, 2)))}, {}), "a LayerNorm"),
        (LoraFactors(2, 1.0, factors().factors, {"ghost.weight": np.ones(2)}), "no parameter 'ghost.weight'"),
        (LoraFactors(2, 1.0, factors().factors, {"score.weight": np.ones(2)}), "parameter 'score.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(adapter: LoraFactors, message: str) -> None:
    model = tiny_gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        merge_into(model, adapter)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_transformers_models_can_be_saved(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    with pytest.raises(ModelError, match="Linear is no transformers model"):
        merge_adapter(
            torch.nn.Linear(2, 2), factors(), tmp_path / "out", task=task_of(config), config=config, summary={}
        )
    assert not (tmp_path / "out").exists()
