"""Groups of clients whose last layer computes few positions: each client's gradients are stock transformers' alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora.errors import RunError
from fedlora.privacy.rows import GradientRows
from fedlora.training.cohort.grouped import Deal
from fedlora.training.cohort.stack import Stack
from fedlora.training.cohort.train import group_losses
from fedlora.training.local import trained_names
from tests.adapters.making import random_tensors
from tests.tasks.stock import KINDS, RECORDS, Scene, apart, make_scene, of_stock

CUTS = {1: [16], 2: [11, 5], 3: [3, 9, 4]}
"""How many records each client of a group has."""


@pytest.fixture(params=KINDS)
def scene(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_bert: Path,
    tiny_llama: Path,
    tiny_text_csv: Path,
    tiny_qa_jsonl: Path,
) -> Scene:
    folders = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tmp_path}
    return make_scene(request.param, folders, tiny_text_csv, tiny_qa_jsonl)


def starts(scene: Scene, clients: int) -> list[dict[str, Any]]:
    names = trained_names(scene.adapted.manifest)
    drawn = [random_tensors(scene.adapted.manifest, size=0.2, seed=client) for client in range(clients)]
    return [{name: tensors[name] for name in names} for tensors in drawn]


def divided(clients: int) -> list[list[int]]:
    cuts = iter(RECORDS)
    return [[next(cuts) for _ in range(size)] for size in CUTS[clients]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_each_clients_gradients_are_those_of_stock_transformers_alone(
    scene: Scene, clients: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, names, begin, parts = (
        scene.adapted,
        trained_names(scene.adapted.manifest),
        starts(scene, clients),
        divided(clients),
    )
    if not packed:
        monkeypatch.setattr(type(scene.encoded), "dealt", unpacked)
    adapted.set_trained([])
    stack = Stack(adapted, begin, names)
    with stack.in_place():
        losses = group_losses(stack, scene.task, scene.encoded, parts)
        torch.stack([mine.mean() for mine in losses]).sum().backward()
    adapted.set_trained(names)
    for client, part in enumerate(parts):
        adapted.load(begin[client])
        wanted = of_stock(scene, scene.encoded.batch(part))
        assert apart(losses[client], wanted) < 1e-5
        expected = torch.autograd.grad(wanted.mean(), adapted.parameters(names))
        for name, gradient in zip(names, expected, strict=True):
            grad = stack.stacked[name].grad
            assert grad is not None
            assert apart(grad[client], gradient) < 1e-5, name


def unpacked(encoded: Any, parts: list[list[int]], *, level: bool) -> tuple[Any, list[int]]:
    assert not level
    return encoded.batch([row for part in parts for row in part]), [len(part) for part in parts]


def test_each_records_gradient_in_a_group_is_that_of_stock_transformers(scene: Scene) -> None:
    adapted, names, begin, parts = scene.adapted, trained_names(scene.adapted.manifest), starts(scene, 3), divided(3)
    adapted.set_trained([])
    rows = GradientRows(adapted.parameters(names))
    stack = Stack(adapted, begin, names, rows)
    with stack.in_place():
        stack.deal.begin([len(part) for part in parts])
        rows.begin(len(RECORDS))
        scene.task.losses(adapted.model, scene.padded()).sum().backward()
        found = torch.split(rows.finish().clone(), [len(part) for part in parts])
    adapted.set_trained(names)
    for client, part in enumerate(parts):
        adapted.load(begin[client])
        for place, loss in enumerate(of_stock(scene, scene.encoded.batch(part))):
            alone = torch.autograd.grad(loss, adapted.parameters(names), retain_graph=True)
            assert apart(found[client][place], torch.cat([each.flatten() for each in alone])) < 1e-5


def test_rows_and_records_are_told_apart_by_their_number() -> None:
    deal = Deal()
    deal.begin([2, 1], [5, 4])
    assert deal.parts(3, "query") == (2, 1)
    assert deal.parts(9, "classifier") == (5, 4)
    with pytest.raises(RunError, match=r"'query' was given 4 rows for a batch of 3 rows with 9 records"):
        deal.parts(4, "query")
    deal.begin([2, 2])
    assert deal.parts(4, "classifier") == (2, 2)
    with pytest.raises(RunError, match=r"\(2, 2\).*\(1, 3\).*train\.packing=false"):
        deal.begin([2, 2], [1, 3])
