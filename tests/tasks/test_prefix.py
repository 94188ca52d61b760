"""Batches with hidden states begin at the first adapted layer, and give what the whole model gives."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora.errors import ModelError
from fedlora.privacy.layers import recorded
from fedlora.tasks.last_layer import last_layer
from fedlora.tasks.prefix import EnteredRows, frozen_layers, with_states
from fedlora.training.cohort.stack import Stack
from fedlora.training.cohort.train import group_losses
from fedlora.training.local import trained_names
from tests.adapters.making import own_forwards, random_tensors
from tests.tasks.stock import KINDS, RECORDS, Scene, apart, make_scene, of_stock

GIGABYTE = 1e9


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

    def made(layers: tuple[int, ...]) -> Scene:
        return make_scene(request.param, folders, tiny_text_csv, tiny_qa_jsonl, layers)

    return made


def entered(scene: Scene) -> EnteredRows:
    model = scene.adapted.model
    return with_states(model, scene.encoded, frozen_layers(model, scene.adapted.layers), batch=7, most=GIGABYTE)


def trained(scene: Scene) -> list[torch.nn.Parameter]:
    names = trained_names(scene.adapted.manifest)
    scene.adapted.set_trained(names)
    return scene.adapted.parameters(names)


@pytest.mark.parametrize(("layers", "first"), [((0, 1, 2, 3), 0), ((1,), 1), ((2, 3), 2), ((3,), 3)])
def test_the_frozen_layers_are_those_below_the_first_adapted_one(
    make: Callable[..., Scene], layers: tuple[int, ...], first: int
) -> None:
    scene = make(layers)
    model, adapted = scene.adapted.model, list(scene.adapted.layers)
    assert frozen_layers(model, adapted) == first
    elsewhere = next(path for path, part in model.named_modules() if isinstance(part, torch.nn.Embedding))
    assert frozen_layers(model, [*adapted, elsewhere]) == 0
    assert frozen_layers(torch.nn.Linear(2, 2), ["weight"]) == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layers", [(1,), (2, 3), (3,)])
def test_losses_and_gradients_are_those_of_stock_transformers_and_the_layers_below_rest(
    make: Callable[..., Scene], layers: tuple[int, ...], packed: bool
) -> None:
    scene = make(layers)
    rows, parameters, model = entered(scene), trained(scene), scene.adapted.model
    forwards = own_forwards(model)
    wanted = of_stock(scene, scene.padded())
    expected = torch.autograd.grad(wanted.mean(), parameters)
    known, called = last_layer(model), list[str]()
    assert known is not None
    for index, layer in enumerate(known.layers):
        inside = next(
            part for part in layer.modules() if isinstance(part, torch.nn.LayerNorm) or "RMS" in str(part)[:20]
        )
        inside.register_forward_hook(lambda *_, index=index: called.append(index))
    losses = scene.task.losses(model, rows.compact(RECORDS) if packed else rows.batch(RECORDS))
    assert set(called) == set(range(layers[0], 4))
    assert apart(losses, wanted) < 1e-5
    for found, gradient in zip(torch.autograd.grad(losses.mean(), parameters), expected, strict=True):
        assert apart(found, gradient) < 1e-5
    with torch.no_grad():
        assert apart(scene.task.evaluate(model, rows.compact(RECORDS))["loss"], wanted) < 1e-5
    assert own_forwards(model) == forwards


def test_states_of_another_layer_do_not_go_unnoticed(make: Callable[..., Scene]) -> None:
    scene = make((2,))
    wrong = replace(entered(scene), layer=1)
    with torch.no_grad():
        found = scene.task.losses(scene.adapted.model, wrong.compact(RECORDS))
        assert apart(found, of_stock(scene, scene.padded())) > 1e-3


def test_groups_and_single_records_have_their_gradients(make: Callable[..., Scene]) -> None:
    scene = make((2,))
    rows, parts, names = entered(scene), [RECORDS[:5], RECORDS[5:]], trained_names(scene.adapted.manifest)
    drawn = [random_tensors(scene.adapted.manifest, size=0.2, seed=client) for client in range(2)]
    starts: list[dict[str, Any]] = [{name: tensors[name] for name in names} for tensors in drawn]
    scene.adapted.set_trained([])
    stack = Stack(scene.adapted, starts, names)
    with stack.in_place():
        losses = group_losses(stack, scene.task, rows, parts)
        torch.stack([mine.sum() for mine in losses]).sum().backward()
    parameters = trained(scene)
    for client, part in enumerate(parts):
        scene.adapted.load(starts[client])
        found = of_stock(scene, scene.encoded.batch(part)).sum()
        for name, gradient in zip(names, torch.autograd.grad(found, parameters), strict=True):
            grad = stack.stacked[name].grad
            assert grad is not None
            assert apart(grad[client], gradient) < 1e-5, name
    with recorded(scene.adapted, names) as recording:
        recording.begin(len(parts[1]))
        scene.task.losses(scene.adapted.model, rows.batch(parts[1])).sum().backward()
        summed = recording.finish().sum(0)
    expected = torch.autograd.grad(of_stock(scene, scene.encoded.batch(parts[1])).sum(), parameters)
    assert apart(summed, torch.cat([gradient.flatten() for gradient in expected])) < 1e-5


@pytest.mark.parametrize("make", ["bert"], indirect=True)
def test_layers_with_dropout_cannot_be_left_out(make: Callable[..., Scene]) -> None:
    scene = make((2,))
    rows = entered(scene)
    scene.adapted.model.train()
    with pytest.raises(ModelError, match=r"layers 0 to 1 are in train mode.*model\.dropout=false"):
        scene.task.losses(scene.adapted.model, rows.batch([0, 1]))


@pytest.mark.parametrize("make", ["bert"], indirect=True)
def test_what_is_kept_has_no_name_and_a_limit(
    make: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make((2,))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    found = entered(scene)
    assert len(found) == len(scene.encoded)
    assert (found.lengths == scene.encoded.lengths).all()
    assert not list((tmp_path / "kept").iterdir())
    assert found.states.shape == (found.lengths.sum(), 32)
    with pytest.raises(ModelError, match=r"hidden states of \d+ rows are .* more than the 0\.0 GB"):
        with_states(scene.adapted.model, scene.encoded, 2, batch=4, most=1e3)
    with pytest.raises(ModelError, match=r"Linear is no architecture.*'bert', 'gpt2', 'llama'"):
        with_states(torch.nn.Linear(2, 2), scene.encoded, 2, batch=4, most=1e3)
