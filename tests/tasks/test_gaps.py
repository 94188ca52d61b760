"""Layers that leave out the gaps in packed rows give what they give of padded rows, and see no gap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlora.adapters.encoder_layer import shorten_layers
from fedlora.adapters.prepacked import prepack
from fedlora.adapters.unpadded import Tokens, on_tokens
from fedlora.tasks.gaps import without_gaps
from fedlora.tasks.last_layer import last_layer
from fedlora.tasks.packing import LENGTHS, OWNERS, PackedTokenRows
from fedlora.tasks.prefix import with_states
from fedlora.training.cohort.grouped import Deal
from fedlora.training.cohort.stack import Stack
from fedlora.training.cohort.train import group_losses
from fedlora.training.local import trained_names
from tests.adapters.making import own_forwards, random_tensors
from tests.tasks.stock import RECORDS, Scene, apart, make_scene, of_stock

PARTS = [RECORDS[:3], RECORDS[3:9], RECORDS[9:]]


@pytest.fixture(params=["stock", "mean"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_bert: Path, tiny_text_csv: Path, tiny_qa_jsonl: Path
) -> Callable[..., Scene]:
    """A BERT whose layers are short, of the asked layers with an adapter, with attention in plain products."""
    folders = {"bert": tiny_bert, "llama": tmp_path, "gpt2": tmp_path}

    def made(layers: Sequence[int] = (), *, laid_out: bool = True) -> Scene:
        scene = make_scene("bert", folders, tiny_text_csv, tiny_qa_jsonl, layers, head=request.param)
        scene.adapted.model.config._attn_implementation = "eager"
        names = trained_names(scene.adapted.manifest)
        scene.adapted.set_trained(names)
        if laid_out:
            prepack(scene.adapted.model, scene.adapted.parameters(names))
        shorten_layers(scene.adapted.model)
        return replace(scene, encoded=scene.encoded.with_free_gaps())

    return made


def trained(scene: Scene) -> list[nn.Parameter]:
    return scene.adapted.parameters(trained_names(scene.adapted.manifest))


def outcome(scene: Scene, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The losses of the records, and the gradients of what is trained."""
    losses = scene.task.losses(scene.adapted.model, batch)
    weights = torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype)
    return [losses, *torch.autograd.grad((losses * weights).sum(), trained(scene))]


def given(scene: Scene, path: str) -> tuple[list[tuple[int, ...]], Any]:
    """Notes the shapes of what the modules whose path ends so are given."""
    shapes: list[tuple[int, ...]] = []
    model = scene.adapted.model
    found = [one for name, one in model.named_modules() if name.endswith(path)]
    handles = [one.register_forward_pre_hook(lambda _, x: shapes.append(tuple(x[0].shape))) for one in found]
    return shapes, handles


def test_losses_and_gradients_are_those_of_padded_rows(make: Callable[..., Scene]) -> None:
    scene = make(laid_out=False).to(torch.float64)
    padded, packed = scene.padded(), scene.packed()
    assert int(packed[LENGTHS].sum()) < packed[OWNERS].numel()
    for found, wanted in zip(outcome(scene, packed), outcome(scene, padded), strict=True):
        assert apart(found, wanted) < 1e-6  # a mean's 1/length is of the lengths as float32


def test_with_weights_laid_out_beforehand_too(make: Callable[..., Scene]) -> None:
    scene = make()
    for found, wanted in zip(outcome(scene, scene.packed()), outcome(scene, scene.padded()), strict=True):
        assert apart(found, wanted) < 1e-5


def test_products_are_of_tokens_alone(make: Callable[..., Scene]) -> None:
    scene = make()
    batch = scene.packed()
    tokens = int(batch[LENGTHS].sum())
    shapes, _ = given(scene, "layer.0.intermediate.dense")
    scene.task.losses(scene.adapted.model, batch)
    assert shapes == [(tokens, 1, scene.adapted.model.config.hidden_size)]


def test_nothing_of_a_gap_is_computed_from(make: Callable[..., Scene]) -> None:
    """What the embeddings give there may be anything."""
    scene = make()
    batch = scene.packed()
    gaps = batch[OWNERS] == len(batch[LENGTHS])
    wanted = outcome(scene, batch)
    embeddings = last_layer(scene.adapted.model).backbone.embeddings  # type: ignore[union-attr]
    embeddings.register_forward_hook(lambda *given: given[-1].masked_fill(gaps.unsqueeze(-1), float("nan")))
    for found, before in zip(outcome(scene, batch), wanted, strict=True):
        assert torch.equal(found, before)


def test_a_layer_that_something_hooks_into_gets_rows(make: Callable[..., Scene]) -> None:
    scene = make([0, 1, 2, 3])
    batch = scene.packed()
    wanted = outcome(scene, batch)
    layers = last_layer(scene.adapted.model).layers  # type: ignore[union-attr]
    seen: list[tuple[int, ...]] = []
    layers[1].register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    layers[2].attention.self.register_forward_hook(lambda *_: None)
    for found, before in zip(outcome(scene, batch), wanted, strict=True):
        assert apart(found, before) < 1e-5
    assert seen == [(*batch[OWNERS].shape, scene.adapted.model.config.hidden_size)]


def test_layers_get_tokens_after_hidden_states_that_were_kept(make: Callable[..., Scene]) -> None:
    scene = make([2, 3])
    entered = with_states(scene.adapted.model, scene.encoded, 2, batch=7, most=1e9)
    shapes, _ = given(scene, "layer.2.attention.output.dense")
    batch = entered.compact(RECORDS)
    for found, wanted in zip(outcome(scene, batch), outcome(scene, scene.padded()), strict=True):
        assert apart(found, wanted) < 1e-5
    assert shapes[0][:2] == (int(batch[LENGTHS].sum()), 1)


def test_clients_together_as_stock_transformers_alone(make: Callable[..., Scene]) -> None:
    scene = make()
    adapted, names = scene.adapted, trained_names(scene.adapted.manifest)
    drawn = [random_tensors(adapted.manifest, size=0.2, seed=client) for client in range(len(PARTS))]
    adapted.set_trained([])
    stack = Stack(adapted, [{name: one[name] for name in names} for one in drawn], names)
    shapes, handles = given(scene, "layer.0.intermediate.dense")
    with stack.in_place():
        losses = group_losses(stack, scene.task, scene.encoded, PARTS)
        torch.stack([mine.mean() for mine in losses]).sum().backward()
    assert shapes[0][:2] == (int(scene.encoded.lengths[RECORDS].sum()), 1)
    for handle in handles:
        handle.remove()
    adapted.set_trained(names)
    for client, part in enumerate(PARTS):
        adapted.load({name: drawn[client][name] for name in names})
        wanted = scene.task.losses(adapted.model, scene.encoded.batch(part))
        assert apart(losses[client], wanted) < 1e-5
        for name, gradient in zip(names, torch.autograd.grad(wanted.mean(), trained(scene)), strict=True):
            grad = stack.stacked[name].grad
            assert grad is not None
            assert apart(grad[client], gradient) < 1e-5, name


def test_a_stock_model_itself_says_the_same(
    tmp_path: Path, tiny_bert: Path, tiny_text_csv: Path, tiny_qa_jsonl: Path, make: Callable[..., Scene]
) -> None:
    scene = make()
    if scene.task.peft_task_type != "SEQ_CLS":
        pytest.skip("the mean of tokens is no stock head")
    packed = scene.task.losses(scene.adapted.model, scene.packed())
    for module in scene.adapted.model.modules():
        vars(module).pop("forward", None)  # transformers' and PEFT's own
    assert apart(packed, of_stock(scene, scene.padded())) < 1e-5


def test_full_rows_and_dropout_and_plain_layers_are_left_as_they_are(make: Callable[..., Scene]) -> None:
    scene = make()
    model = scene.adapted.model
    before, batch = own_forwards(model), scene.packed()
    with without_gaps(model, batch):
        assert own_forwards(model) != before
    assert own_forwards(model) == before
    full = {**batch, OWNERS: torch.zeros_like(batch[OWNERS])}
    layers = last_layer(model).layers  # type: ignore[union-attr]
    tokens = Tokens.of(batch[OWNERS] < len(batch[LENGTHS]))
    with without_gaps(model, full), without_gaps(model, scene.padded()):
        assert own_forwards(model) == before
    layers[0].attention.self.dropout.p = 0.5
    layers[0].attention.self.dropout.train()
    del layers[1].forward
    assert on_tokens(layers, tokens) == {}


def test_rows_without_any_token_are_computed_as_rows(make: Callable[..., Scene]) -> None:
    """There a gap has no token to repeat; a GPU's batches have such rows."""
    scene = make()
    batch, _ = scene.encoded.dealt([RECORDS[:1], RECORDS[1:]], level=True)
    assert bool((batch[OWNERS][:, 0] == len(RECORDS)).any())
    wanted = scene.task.losses(scene.adapted.model, scene.padded())
    assert apart(scene.task.losses(scene.adapted.model, batch), wanted) < 1e-5


def test_tokens_go_to_rows_and_back() -> None:
    real = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    tokens, x = Tokens.of(real), torch.randn(6, 1, 4)
    rows = tokens.spread(x)
    assert rows.shape == (3, 3, 4)
    assert torch.equal(tokens.taken(rows), x)
    assert not rows[~real].any()
    assert tokens.slots.tolist() == [0, 1, 0, 2, 2, 2, 3, 4, 5]
    assert tokens.spread(rows) is rows
    assert tokens.taken(x) is x


def test_rows_are_narrower_where_gaps_are_free(make: Callable[..., Scene]) -> None:
    free = make().encoded
    assert isinstance(free, PackedTokenRows)
    usual = replace(free, gap=1.0)
    longest = int(free.lengths[RECORDS].max())
    mine, theirs = (rows.compact(RECORDS)["input_ids"].shape for rows in (free, usual))
    assert longest <= mine[1] < theirs[1]
    assert mine[0] * mine[1] ** 2 < theirs[0] * theirs[1] ** 2  # what attention computes


def test_a_modules_rows_may_be_tokens() -> None:
    deal = Deal()
    deal.begin([2, 1], [3, 2], [30, 11])
    assert deal.parts(41, "query") == (30, 11)
