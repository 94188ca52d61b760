"""What few queries read, without keys and values of all tokens: the plain way's numbers and gradients."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertSelfAttention, eager_attention_forward

from fedlora.adapters.attach import attach
from fedlora.tasks import last_layer
from fedlora.tasks.few_queries import few_queries, read_by
from fedlora.training.local import trained_names
from tests.adapters.making import make_manifest, random_tensors
from tests.tasks.stock import apart, make_scene, of_stock

HEADS, SIZE = 4, 8
WIDTH = HEADS * SIZE


def attention(*targets: str) -> Any:
    """BERT's self-attention, frozen, with an adapter on `targets`; float64."""
    torch.manual_seed(0)
    own = BertSelfAttention(BertConfig(hidden_size=WIDTH, num_attention_heads=HEADS))
    adapted = attach(own, make_manifest("lora", dict.fromkeys(targets, (WIDTH, WIDTH)), r=2))
    adapted.load(random_tensors(adapted.manifest))
    adapted.set_trained(list(adapted.manifest.tensors))
    return own.double()


def plain(own: Any, query: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """With keys and values of all tokens, by transformers' own eager attention."""
    q, k, v = (x.view(*x.shape[:2], HEADS, SIZE).transpose(1, 2) for x in (query, own.key(hidden), own.value(hidden)))
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(torch.float64).min)
    return torch.flatten(eager_attention_forward(own, q, k, v, mask, own.scaling)[0], 2)


def outcome(way: Callable[..., Tensor], own: Any, query: Tensor, hidden: Tensor, mask: Tensor | None) -> list[Tensor]:
    query, hidden = query.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    y = way(own, query, hidden, mask)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [query, hidden, *trained])]


def some_mask(kind: str, rows: int, queries: int, tokens: int) -> Tensor | None:
    if kind == "none":
        return None
    seen = torch.rand(rows, 1, 1 if kind == "keys" else queries, tokens) > 0.4
    seen[..., 0] = True
    return (
        seen if kind == "true where seen" else torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, -1e30)
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    queries=st.integers(1, 3),
    tokens=st.integers(1, 9),
    kind=st.sampled_from(["none", "keys", "packed", "true where seen"]),
)
def test_numbers_and_gradients_are_the_plain_ways(rows: int, queries: int, tokens: int, kind: str) -> None:
    own = attention("value")
    torch.manual_seed(rows + 10 * queries + 100 * tokens)
    query, hidden = (torch.randn(rows, n, WIDTH, dtype=torch.float64) for n in (queries, tokens))
    mask = some_mask(kind, rows, queries, tokens)
    for found, wanted in zip(*(outcome(way, own, query, hidden, mask) for way in (read_by, plain)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_a_head_that_reads_anothers_values_does_not_go_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = attention("value")
    query, hidden = (torch.randn(2, n, WIDTH, dtype=torch.float64) for n in (1, 6))
    wanted = plain(own, query, hidden, None)
    assert apart(read_by(own, query, hidden, None), wanted) < 1e-12
    diagonal = Tensor.diagonal
    monkeypatch.setattr(Tensor, "diagonal", lambda x, **kwargs: diagonal(x.roll(1, kwargs["dim1"]), **kwargs))
    assert apart(read_by(own, query, hidden, None), wanted) > 0.1


def test_it_is_taken_where_it_is_worth_it_and_keys_are_plain() -> None:
    hidden, few = torch.zeros(2, 40, WIDTH, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.int64)
    own = attention("query", "value")
    assert few_queries(own, hidden, few)
    assert not few_queries(own, hidden, few.expand(2, 20))
    assert not few_queries(own, hidden.float(), few)
    assert not few_queries(attention("key"), hidden, few)
    own.key.weight.requires_grad_(True)
    assert not few_queries(own, hidden, few)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many queries a row each call had."""
    seen: list[int] = []

    def noted(own: Any, query: Tensor, *rest: Any) -> Tensor:
        seen.append(query.shape[1])
        return read_by(own, query, *rest)

    monkeypatch.setattr(last_layer, "few_queries", lambda own, *_: type(own.key) is nn.Linear)
    monkeypatch.setattr(last_layer, "read_by", noted)
    yield seen
    assert seen


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_losses_and_the_adapters_gradients_are_those_of_stock_transformers(
    asked: list[int], tiny_bert: Path, tmp_path: Path, tiny_text_csv: Path, tiny_qa_jsonl: Path, packed: bool, kind: str
) -> None:
    folders = {"bert": tiny_bert, "llama": tmp_path, "gpt2": tmp_path}
    scene = make_scene("bert", folders, tiny_text_csv, tiny_qa_jsonl, layers=range(4)).to(torch.float64)
    model, padded = scene.adapted.model, scene.padded()
    model.config._attn_implementation = kind
    names = trained_names(scene.adapted.manifest)
    scene.adapted.set_trained(names)
    parameters = scene.adapted.parameters(names)
    wanted = of_stock(scene, padded)
    expected = torch.autograd.grad(wanted.mean(), parameters)
    losses = scene.task.losses(model, scene.packed() if packed else padded)
    assert apart(losses, wanted) < 1e-10
    for name, found, one in zip(names, torch.autograd.grad(losses.mean(), parameters), expected, strict=True):
        assert apart(found, one) < 1e-10, name
