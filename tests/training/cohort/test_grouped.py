"""Linear maps of several clients at once: each client's rows through its own weights, and their gradients."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedlora.training.cohort.grouped import GroupedUpdate, Parts, grouped

WIDTH, RANK, OUT, TOKENS, SCALING = 6, 2, 5, 3, 0.7


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def factors_of(clients: int, middle: bool = False) -> list[Tensor]:
    shapes = [(RANK, WIDTH), *([(RANK, RANK)] if middle else []), (OUT, RANK)]
    return [draw(clients, *shape).requires_grad_(True) for shape in shapes]


def client_by_client(x: Tensor, y: Tensor, parts: Parts, factors: Sequence[Tensor]) -> Tensor:
    pieces = []
    for client, (mine, base) in enumerate(zip(torch.split(x, list(parts)), torch.split(y, list(parts)), strict=True)):
        update = mine
        for factor in factors:
            update = update @ factor[client].t()
        pieces.append(base + SCALING * update)
    return torch.cat(pieces)


PARTS = [(2, 2), (1, 3), (4,), (1, 1, 2)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("middle", [False, True])
def test_an_update_is_that_of_each_client_alone(parts: Parts, middle: bool) -> None:
    x, y = draw(sum(parts), TOKENS, WIDTH).requires_grad_(True), draw(sum(parts), TOKENS, OUT).requires_grad_(True)
    factors = factors_of(len(parts), middle)
    keeps = [None] * len(factors)
    found = GroupedUpdate.apply(x, y, SCALING, parts, keeps, *factors)  # type: ignore[no-untyped-call]
    wanted = client_by_client(x, y, parts, factors)
    torch.testing.assert_close(found, wanted)
    g = draw(*found.shape)
    ways = [torch.autograd.grad(each, [x, y, *factors], g) for each in (found, wanted)]
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("parts", PARTS)
def test_what_is_kept_are_the_gradients_factors(parts: Parts) -> None:
    """Of each record g and x with gᵀ·x, summed over a client's records, its gradient; nothing goes to the weights."""
    x, y = draw(sum(parts), TOKENS, WIDTH), draw(sum(parts), TOKENS, OUT)
    factors = factors_of(len(parts))
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    keeps = [lambda g, x, place=place: kept.update({place: (g, x)}) for place in range(2)]
    found = GroupedUpdate.apply(x, y, SCALING, parts, keeps, *factors)  # type: ignore[no-untyped-call]
    g = draw(*found.shape)
    found.backward(g)
    wanted = torch.autograd.grad(client_by_client(x, y, parts, factors), factors, g)
    for place, gradient in enumerate(wanted):
        left, right = (torch.split(each, list(parts)) for each in kept[place])
        sums = [torch.einsum("nto,nti->oi", one, other) for one, other in zip(left, right, strict=True)]
        torch.testing.assert_close(torch.stack(sums), gradient)
        assert factors[place].grad is None


def test_factors_that_all_share_and_nobody_trains() -> None:
    """FFA-LoRA's A: one for all, without a gradient."""
    parts, x, y = (2, 2), draw(4, TOKENS, WIDTH), draw(4, TOKENS, OUT)
    a, b = draw(RANK, WIDTH), factors_of(2)[1]
    found = GroupedUpdate.apply(x, y, SCALING, parts, [None, None], a.expand(2, RANK, WIDTH), b)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, y + SCALING * (x @ a.t() @ b.repeat_interleave(2, 0).mT))
    found.sum().backward()
    assert b.grad is not None


@pytest.mark.parametrize("parts", [(2, 2), (1, 3)])
def test_a_bfloat16_base_keeps_its_type_and_factors_theirs(parts: Parts) -> None:
    x = draw(4, TOKENS, WIDTH, dtype=torch.bfloat16).requires_grad_(True)
    y = draw(4, TOKENS, OUT, dtype=torch.bfloat16)
    factors = [each.detach().float().requires_grad_(True) for each in factors_of(2)]
    found = GroupedUpdate.apply(x, y, SCALING, parts, [None, None], *factors)  # type: ignore[no-untyped-call]
    assert found.dtype is torch.bfloat16
    wanted = client_by_client(x.float(), y.float(), parts, factors)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.bfloat16
    assert all(each.grad is not None and each.grad.dtype is torch.float32 for each in factors)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("out", [2, 9])
def test_a_map_of_few_and_of_many_columns(parts: Parts, out: int) -> None:
    x = draw(sum(parts), TOKENS, WIDTH).requires_grad_(True)
    weight, bias = draw(len(parts), out, WIDTH).requires_grad_(True), draw(len(parts), out).requires_grad_(True)
    found = grouped(x, weight, bias, parts)
    rows = [client for client, count in enumerate(parts) for _ in range(count)]
    wanted = x @ weight[rows].mT + bias[rows].unsqueeze(1)
    torch.testing.assert_close(found, wanted)
    g = draw(*found.shape)
    for one, other in zip(*(torch.autograd.grad(each, [x, weight, bias], g) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)
