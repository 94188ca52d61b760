"""The last layer at few positions: losses, logits and gradients are the stock model's, and it computes fewer tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from fedlora.errors import ModelError
from fedlora.privacy.layers import recorded
from fedlora.tasks import causal_lm, last_layer, text_classification
from fedlora.tasks.base import Batch
from fedlora.tasks.last_layer import FAMILIES
from fedlora.tasks.packing import SIGHT
from fedlora.tasks.places import Places, pooled
from fedlora.training.local import trained_names
from tests.adapters.making import own_forwards
from tests.tasks.stock import INPUTS, KINDS, RECORDS, TARGETS, Scene, apart, make_scene, of_stock


@pytest.fixture(params=KINDS)
def make(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_bert: Path,
    tiny_llama: Path,
    tiny_text_csv: Path,
    tiny_qa_jsonl: Path,
) -> Callable[..., Scene]:
    folders = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tmp_path}

    def made(**updates: Any) -> Scene:
        return make_scene(request.param, folders, tiny_text_csv, tiny_qa_jsonl, **updates)

    return made


def gradients(model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    losses.mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_like_stock(scene: Scene, batch: Batch, padded: Batch, limit: float) -> None:
    """Losses, metrics and all gradients (base, factors, head) of the task's way and of stock transformers and PEFT."""
    model = scene.adapted.model
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    wanted = of_stock(scene, padded)
    expected = gradients(model, wanted)
    losses = scene.task.losses(model, batch)
    assert apart(losses, wanted) < limit
    found = gradients(model, losses)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        # A key's bias moves no softmax: its gradient is rounding alone, in both.
        if float(gradient.norm()) > 1e-7 * largest:
            assert apart(found[name], gradient) < limit, name
    with torch.no_grad():
        assert apart(scene.task.evaluate(model, batch)["loss"], wanted) < limit
        assert apart(scene.task.logits(model, batch), scene.task.logits(model, padded)) < limit


def exact(scene: Scene) -> float:
    """What may differ in float64: Llama's norms and softmax compute in float32 all the same."""
    return 1e-6 if scene.kind.startswith("llama") else 1e-10


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_and_all_gradients_are_those_of_stock_transformers_and_peft(
    make: Callable[..., Scene], dtype: torch.dtype, packed: bool
) -> None:
    scene = make().to(dtype)
    padded = scene.padded()
    batch = scene.packed() if packed else padded
    assert len(batch["input_ids"]) < len(RECORDS) if packed else len(batch["input_ids"]) == len(RECORDS)
    with seen_tokens(scene) as seen:
        assert_like_stock(scene, batch, padded, exact(scene) if dtype is torch.float64 else 1e-5)
    assert padded["input_ids"].shape[1] in seen  # stock
    assert min(seen) < padded["input_ids"].shape[1] / 2


@contextmanager
def seen_tokens(scene: Scene) -> Iterator[list[int]]:
    """How many tokens a row the last layer's last norm computes, call by call."""
    seen: list[int] = []
    found = last_layer.last_layer(scene.adapted.model)
    assert found is not None
    norms = [part for name, part in found.layers[-1].named_modules() if "norm" in name.lower() or name == "ln_2"]
    hook = norms[-1].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    try:
        yield seen
    finally:
        hook.remove()


def test_fused_attention_agrees_too(make: Callable[..., Scene]) -> None:
    """On CUDA the default is fused attention; without padding its mask is none at all."""
    scene = make().to(torch.float64)
    scene.adapted.model.config._attn_implementation = "sdpa"
    scene.adapted.model.base_model.config._attn_implementation = "sdpa"
    batch = scene.padded()
    assert_like_stock(scene, batch, batch, exact(scene))
    lengths = batch["attention_mask"].sum(1)
    longest = int(lengths.max())
    equal = {name: tensor[lengths == longest] for name, tensor in batch.items()}
    assert len(equal["input_ids"]) > 1
    assert_like_stock(scene, equal, equal, exact(scene))


def other_end(batch: Batch, *, last: bool, padding: int) -> tuple[Places, Tensor]:
    return pooled(batch, last=not last, padding=padding)


def first_rows(mask: Tensor, positions: Tensor) -> Tensor:
    return mask[:, :, : positions.shape[1]].expand(len(positions), -1, -1, -1)


@pytest.mark.parametrize("packed", [False, True])
def test_wrong_positions_do_not_go_unnoticed(
    make: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    scene = make().to(torch.float64)
    monkeypatch.setattr(text_classification, "pooled", other_end)
    monkeypatch.setattr(causal_lm.Places, "of", staticmethod(shifted(Places.of)))
    padded = scene.padded()
    with pytest.raises(AssertionError):
        assert_like_stock(scene, scene.packed() if packed else padded, padded, 1e-5)


def test_a_mask_of_other_rows_does_not_go_unnoticed(
    make: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make().to(torch.float64)
    monkeypatch.setattr(last_layer, "_rows_of", first_rows)
    with pytest.raises(AssertionError):
        assert_like_stock(scene, scene.packed(), scene.padded(), 1e-5)


def shifted(right: Callable[[Tensor], Places]) -> Callable[[Tensor], Places]:
    def of(wanted: Tensor) -> Places:
        found = right(wanted)
        return Places((found.positions + 1) % wanted.shape[1], found.real)

    return of


def test_each_records_gradient_is_that_of_the_stock_model_alone(make: Callable[..., Scene]) -> None:
    scene = make().to(torch.float64)
    adapted, names = scene.adapted, trained_names(scene.adapted.manifest)
    adapted.set_trained(names)
    padded = scene.padded()
    with recorded(adapted, names) as rows:
        rows.begin(len(RECORDS))
        scene.task.losses(adapted.model, padded).sum().backward()
        found = rows.finish().clone()
    for place, loss in enumerate(of_stock(scene, padded)):
        alone = torch.autograd.grad(loss, adapted.parameters(names), retain_graph=True)
        assert apart(found[place], torch.cat([part.flatten() for part in alone])) < exact(scene)


@pytest.mark.parametrize("where", ["adapter", "base"])
def test_with_dropout_the_masks_are_those_of_the_stock_model(make: Callable[..., Scene], where: str) -> None:
    options: dict[str, Any] = {"dropout": 0.3} if where == "adapter" else {"base_dropout": True}
    scene = make(**options).to(torch.float64)
    padded = scene.padded()
    for module in scene.adapted.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3  # Llama's: no module, and 0 by default
    with scene.adapted.training():
        torch.manual_seed(3)
        wanted = of_stock(scene, padded)
        torch.manual_seed(3)
        found = scene.task.losses(scene.adapted.model, padded)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    assert apart(of_stock(scene, padded), wanted) > 1e-3  # dropout was on, above


def test_nothing_is_left_behind_even_by_a_call_that_fails(
    make: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make()
    model = scene.adapted.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = last_layer.last_layer(model)
    assert own is not None
    own.layers[-1].forward = own.layers[-1].forward  # of the instance: someone else's
    kept = own_forwards(model)
    scene.task.losses(model, scene.padded())
    with monkeypatch.context() as patch:
        patch.setattr(type(own.backbone), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scene.task.losses(model, scene.padded())
    assert own_forwards(model) == kept
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


def test_what_is_packed_is_what_is_known() -> None:
    """A packed batch of a stock head needs `LastLayer`; whether a text's tokens see what follows decides its token."""
    assert {kind: family.reads_last for kind, family in FAMILIES.items()} == dict(SIGHT)


@pytest.mark.parametrize("make", [kind for kind in KINDS if "writes" in kind], indirect=True)
def test_a_row_with_many_answers_computes_all_tokens(make: Callable[..., Scene]) -> None:
    scene = make()
    batch = scene.padded()
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], causal_lm.NO_LOSS)
    with seen_tokens(scene) as seen, torch.no_grad():
        found = scene.task.losses(scene.adapted.model, batch)
        assert apart(found, of_stock(scene, batch)) < 1e-5
    assert set(seen) == {batch["input_ids"].shape[1]}


@pytest.mark.parametrize("make", [kind for kind in KINDS if "writes" not in kind], indirect=True)
def test_a_text_that_ends_in_padding_ids_is_read_where_transformers_reads_it(make: Callable[..., Scene]) -> None:
    """GPT-2's padding token is often its end-of-text token; what stock transformers takes for padding, it skips."""
    scene = make()
    ends = {row: scene.encoded.columns["input_ids"].offsets[row + 1] for row in RECORDS}
    ids = scene.encoded.columns["input_ids"].values
    ids[[end - 1 for end in list(ends.values())[:3]]] = 0
    start = scene.encoded.columns["input_ids"].offsets[RECORDS[4]]
    ids[start : ends[RECORDS[4]]] = 0  # padding alone
    with torch.no_grad():
        wanted = of_stock(scene, scene.padded())
        for batch in (scene.padded(), scene.packed()):
            assert apart(scene.task.losses(scene.adapted.model, batch), wanted) < 1e-5


@pytest.mark.parametrize("make", ["bert"], indirect=True)
def test_a_wrapped_model_is_left_alone_and_cannot_read_packed_rows(make: Callable[..., Scene]) -> None:
    scene = make()
    wrapped = torch.nn.ModuleDict({"inside": scene.adapted.model})
    wrapped.forward = scene.adapted.model.forward  # type: ignore[method-assign]
    with torch.no_grad():
        found = scene.task.losses(wrapped, scene.padded())
        assert apart(found, of_stock(scene, scene.padded())) < 1e-5
        with pytest.raises(ModelError, match=r"a ModuleDict .*set train\.packing=false"):
            scene.task.losses(wrapped, scene.packed())


def test_in_bf16_it_is_as_near_as_bf16_goes(make: Callable[..., Scene]) -> None:
    scene = make()
    padded = scene.padded()
    with torch.no_grad():
        exact_losses = of_stock(scene, padded)
        with torch.autocast("cpu", torch.bfloat16):
            found = scene.task.losses(scene.adapted.model, padded)
            wanted = of_stock(scene, padded)
    assert apart(wanted, exact_losses) > 1e-6  # bf16 was on
    assert apart(found.float(), wanted.float()) < 0.02


@pytest.mark.parametrize("make", [kind for kind in KINDS if "writes" not in kind], indirect=True)
def test_peft_wrapped_classifiers_give_what_they_give_themselves(make: Callable[..., Scene]) -> None:
    """PEFT keeps a copy of the head beside the stock one, and answers with the copy."""
    scene = make()
    task, padded, transposed = scene.task, scene.padded(), scene.kind == "gpt2"
    config = LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=TARGETS[scene.kind], init_lora_weights=False, fan_in_fan_out=transposed
    )
    wrapped = get_peft_model(task.load_base(), config).eval()
    for name, parameter in wrapped.named_parameters():
        if "modules_to_save" in name:
            parameter.data.normal_()
    with torch.no_grad():
        wanted = wrapped(**{name: padded[name] for name in INPUTS if name in padded}).logits
        assert apart(task.logits(wrapped, padded), wanted) < 1e-5
