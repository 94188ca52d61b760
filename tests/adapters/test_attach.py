"""Attaching, loading and reading adapters, on real tiny models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from fedlora.adapters.adapted import head_tensors
from fedlora.adapters.attach import attach
from fedlora.adapters.manifest import Form, Role
from fedlora.adapters.modules import find_modules
from fedlora.errors import ModelError
from tests.adapters.making import (
    adapted_task,
    dense,
    make_manifest,
    random_tensors,
    task_of,
    tiny_gpt2,
    token_batch,
)
from tests.tiny import tiny_config

METHODS = ["lora", "ffa", "sb"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_is_read_back_bit_for_bit(method: str, tiny_bert: Path, tiny_text_csv: Path) -> None:
    _, adapted = adapted_task(tiny_config(tiny_bert, tiny_text_csv), method)
    tensors = random_tensors(adapted.manifest)
    for array in tensors.values():
        array.flags.writeable = False  # as they come off the wire
    adapted.load(tensors)
    back = adapted.read(adapted.manifest)
    assert list(back) == list(adapted.manifest)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_read_gives_copies_not_views(tiny_bert: Path, tiny_text_csv: Path) -> None:
    _, adapted = adapted_task(tiny_config(tiny_bert, tiny_text_csv))
    name = next(iter(adapted.manifest))
    before = adapted.read([name])[name]
    adapted.load({name: before + 7})
    assert not before.any()
    assert (adapted.read([name])[name] == 7).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_attached_adapter_changes_nothing_until_it_is_loaded(
    method: str, tiny_bert: Path, tiny_text_csv: Path
) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    with torch.no_grad():
        before = task_of(config).load_base()(**token_batch()).logits
        _, adapted = adapted_task(config, method)
        assert torch.equal(adapted.model(**token_batch()).logits, before)


def test_attaching_draws_nothing_from_the_global_random_state(tiny_bert: Path, tiny_text_csv: Path) -> None:
    state = torch.random.get_rng_state()
    adapted_task(tiny_config(tiny_bert, tiny_text_csv), "sb")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scaling", [0.1, 2.0])
def test_the_forward_pass_is_that_of_the_dense_weights(method: str, scaling: float) -> None:
    """On GPT-2, whose Conv1D stores (k, d): a wrong orientation cannot pass, as d = 3k."""
    model = tiny_gpt2()
    modules = find_modules(model, None)
    assert set(modules.values()) == {(48, 16)}
    manifest = make_manifest(method, modules, scaling=scaling)
    adapted = attach(model, manifest)
    tensors = random_tensors(manifest)
    adapted.load(tensors)
    reference = tiny_gpt2()
    with torch.no_grad():
        for module in modules:
            change = torch.from_numpy(dense(manifest.form, scaling, tensors, module)).float()
            reference.get_submodule(module).weight += change.T
        expected, found = reference(**token_batch()).logits, adapted.model(**token_batch()).logits
        plain = tiny_gpt2()(**token_batch()).logits
    assert (expected - plain).abs().max() > 1e-3
    assert (expected - found).abs().max() < 1e-6


def test_the_product_module_is_exact_and_merges_in_peft() -> None:
    model = tiny_gpt2()
    modules = find_modules(model, None)
    manifest = make_manifest("sb", modules)
    adapted = attach(model, manifest)
    tensors = random_tensors(manifest)
    adapted.load(tensors)
    for module, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            expected = dense(Form.LORA_SB, manifest.scaling, tensors, module)
            np.testing.assert_allclose(layer.get_delta_weight("default").detach().numpy().T, expected, atol=1e-6)


@pytest.mark.parametrize(("method", "role"), [("ffa", Role.B), ("sb", Role.R)])
def test_set_trained_gives_gradients_to_exactly_those(
    method: str, role: Role, tiny_bert: Path, tiny_text_csv: Path
) -> None:
    _, adapted = adapted_task(tiny_config(tiny_bert, tiny_text_csv), method)
    names = [name for name, spec in adapted.manifest.tensors.items() if spec.role is role]
    adapted.set_trained(names)
    wanted = {id(parameter) for parameter in adapted.parameters(names)}
    assert {id(p) for p in adapted.model.parameters() if p.requires_grad} == wanted


def test_a_base_weight_is_outputs_by_inputs() -> None:
    model = tiny_gpt2()
    module, shape = next(iter(find_modules(model, None).items()))
    stored = model.get_submodule(module).weight.detach().clone()
    weight = attach(model, make_manifest("lora", {module: shape})).base_weight(module)
    assert (weight.shape, weight.dtype) == ((48, 16), np.float32)
    assert np.array_equal(weight, stored.numpy().T)


@pytest.mark.parametrize("method", ["lora", "sb"])
def test_the_gradient_is_that_of_the_base_whatever_is_loaded(method: str, tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    task, adapted = adapted_task(config, method)
    adapted.load({n: t for n, t in random_tensors(adapted.manifest).items() if not n.startswith("head.")})
    adapted.set_trained(list(adapted.manifest)[:1])
    labels = torch.tensor([0, 1, 2, 0])
    batch = {**token_batch(), "labels": labels}
    halves = [{name: value[at] for name, value in batch.items()} for at in (slice(0, 3), slice(3, 4))]
    found = adapted.gradient(task, halves)

    reference = task_of(config).load_base()
    task.losses(reference, batch).mean().backward()
    assert list(found) == adapted.manifest.modules()
    for module, gradient in found.items():
        expected = reference.get_submodule(module).weight.grad.numpy()
        np.testing.assert_allclose(gradient, expected, atol=1e-7)
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    assert [id(p) for p in trained] == [id(adapted.parameters(list(adapted.manifest)[:1])[0])]
    assert all(parameter.grad is None for parameter in adapted.model.parameters())
    with pytest.raises(ModelError, match="at least one record"):
        adapted.gradient(task, [])


def test_conv1d_gradients_are_outputs_by_inputs() -> None:
    class Pull:
        def losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(
                model(**batch).logits, torch.zeros(len(batch["input_ids"]), dtype=torch.int64), reduction="none"
            )

    model = tiny_gpt2()
    adapted = attach(model, make_manifest("lora", find_modules(model, None)))
    gradient = adapted.gradient(Pull(), [token_batch()])  # type: ignore[arg-type]
    reference = tiny_gpt2()
    Pull().losses(reference, token_batch()).mean().backward()
    for module, found in gradient.items():
        np.testing.assert_allclose(found, reference.get_submodule(module).weight.grad.numpy().T, atol=1e-7)


@pytest.mark.parametrize(("base_dropout", "trains"), [(False, {"default"}), (True, {"default", "dropout"})])
def test_only_the_adapters_dropout_trains_unless_told(
    base_dropout: bool, trains: set[str], tiny_bert: Path, tiny_text_csv: Path
) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    _, adapted = adapted_task(config, dropout=0.5, base_dropout=base_dropout)

    def training() -> set[str]:
        modules = adapted.model.named_modules()
        return {n.rpartition(".")[2] for n, m in modules if isinstance(m, torch.nn.Dropout) and m.training}

    with adapted.training():
        assert training() == trains
        assert adapted.model.training is base_dropout
    assert training() == set()


def test_batch_norm_statistics_of_the_base_never_move(tiny_bert: Path, tiny_text_csv: Path) -> None:
    _, adapted = adapted_task(tiny_config(tiny_bert, tiny_text_csv), base_dropout=True)
    norm = torch.nn.BatchNorm1d(4)
    adapted.model.add_module("norm", norm)
    with adapted.training():
        norm(torch.randn(8, 4))
    assert not norm.running_mean.any()


@given(delta=st.sampled_from([(1, 0), (0, 1)]), dtype=st.sampled_from(["float16", "float64"]))
@settings(max_examples=4, deadline=None)
def test_load_refuses_wrong_tensors_and_changes_nothing(delta: tuple[int, int], dtype: str) -> None:
    model = tiny_gpt2()
    manifest = make_manifest("lora", find_modules(model, None))
    adapted = attach(model, manifest)
    tensors = random_tensors(manifest)
    *_, last = tensors
    wrong = np.zeros(np.add(tensors[last].shape, delta), np.float32)
    with pytest.raises(ModelError, match=f"{last!r} must be float32 of shape"):
        adapted.load({**tensors, last: wrong})
    with pytest.raises(ModelError, match=dtype):
        adapted.load({**tensors, last: tensors[last].astype(dtype)})
    with pytest.raises(ModelError, match="'ghost' is not a tensor of this adapter"):
        adapted.load({**tensors, "ghost": wrong})
    assert not any(array.any() for array in adapted.read(manifest).values())


def test_attach_refuses_what_does_not_fit(tiny_bert: Path, tiny_text_csv: Path) -> None:
    model = tiny_gpt2()
    modules = find_modules(model, None)
    manifest = make_manifest("lora", modules)
    with pytest.raises(ModelError, match="made for another model"):
        attach(task_of(tiny_config(tiny_bert, tiny_text_csv)).load_base(), manifest)
    with pytest.raises(ModelError, match="adapts no module"):
        attach(model, make_manifest("lora", {}))
    with pytest.raises(ModelError, match="Linear and Conv1D layers together"):
        attach(tiny_gpt2(), make_manifest("lora", {**modules, "score": (3, 16)}))
    with pytest.raises(ModelError, match="has shape"):
        attach(tiny_gpt2(), make_manifest("lora", dict.fromkeys(modules, (16, 48))))
    with pytest.raises(ModelError, match="disagree on these tensors"):
        attach(tiny_gpt2(), make_manifest("lora", modules, head={"head.ghost.weight": np.zeros(3, np.float32)}))
    attach(model, manifest)
    with pytest.raises(ModelError, match="already has an adapter"):
        attach(model, manifest)


def test_a_half_precision_base_keeps_full_precision_factors() -> None:
    model = tiny_gpt2().to(torch.bfloat16)
    manifest = make_manifest("lora", find_modules(model, None))
    adapted = attach(model, manifest)
    adapted.load(random_tensors(manifest))
    assert {array.dtype for array in adapted.read(manifest).values()} == {np.dtype("float32")}
    assert adapted.model(**token_batch()).logits.isfinite().all()


def test_head_tensors_are_named_copies(tiny_bert: Path, tiny_text_csv: Path) -> None:
    task = task_of(tiny_config(tiny_bert, tiny_text_csv))
    model = task.load_base()
    head = head_tensors(model, task.head_parameters(model))
    assert list(head) == ["head.classifier.weight", "head.classifier.bias"]
    assert np.array_equal(head["head.classifier.weight"], model.classifier.weight.detach().numpy())
