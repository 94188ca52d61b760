"""Tensors in one piece are the same tensors: views of it, added up with the same bits, in the same records."""

import copy

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedlora.adapters.flat import Flat, flattened, layout_of, only, weighted_sum
from fedlora.adapters.gathered import Gathered
from fedlora.adapters.manifest import Delivery, Role, TensorSpec
from fedlora.wire_tensors import flat_in, payload_bytes, read_tensors, to_record

SHAPES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1
)


def some(shapes: dict[str, tuple[int, ...]], seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), dtype=dtype) for name, shape in shapes.items()}


def specs(tensors: dict[str, np.ndarray]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(array.shape, Role.B, "m", True, Delivery.ROUND, str(array.dtype))
        for name, array in tensors.items()
    }


@given(shapes=SHAPES)
def test_the_views_are_the_tensors(shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = some(shapes, 0)
    flat = flattened(tensors)
    assert isinstance(flat, Flat)
    assert list(flat) == list(tensors)
    assert all(flat[name].shape == tensors[name].shape for name in shapes)
    assert all(np.array_equal(flat[name], tensors[name]) for name in shapes)
    assert flattened(flat) is flat
    again = copy.deepcopy(flat)  # by what is sent between a simulation's processes, too
    assert again.layout is flat.layout
    assert np.array_equal(again.vector, flat.vector)


def test_tensors_of_different_dtypes_stay_apart() -> None:
    tensors = {**some({"a": (2,)}, 0), **some({"b": (2,)}, 0, "float64")}
    assert flattened(tensors) is tensors
    assert flattened({}) == {}


def test_a_piece_cannot_be_written_to_and_must_have_its_size() -> None:
    flat = Flat(layout_of((("a", (2, 2)),)), np.zeros(4))
    with pytest.raises(ValueError, match="read-only"):
        flat["a"][0, 0] = 1
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Flat(layout_of((("a", (2, 2)),)), np.zeros(3))


@given(shapes=SHAPES, weights=st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=5))
def test_a_sum_has_the_same_bits_in_one_piece_and_apart(
    shapes: dict[str, tuple[int, ...]], weights: list[float]
) -> None:
    apart, joined, mixed = {}, {}, {}
    for number, weight in enumerate(weights):
        tensors = some(shapes, number)
        apart = weighted_sum(apart, tensors, weight)
        joined = weighted_sum(joined, flattened(tensors), weight)
        mixed = weighted_sum(mixed, flattened(tensors) if number % 2 else tensors, weight)
    assert isinstance(joined, Flat)
    for name in shapes:
        wanted = sum(
            (weight * some(shapes, number)[name].astype(np.float64) for number, weight in enumerate(weights)),
            start=np.zeros(shapes[name]),
        )
        assert np.array_equal(apart[name], wanted)
        assert np.array_equal(joined[name], wanted)
        assert np.array_equal(mixed[name], wanted)


def test_only_keeps_the_piece_where_nothing_else_is_in_it() -> None:
    flat = flattened(some({"a": (2,), "b": (3,)}, 0))
    assert only(flat, ["a", "b"]) is flat
    assert list(only(flat, ["b", "a"])) == ["b", "a"]
    assert list(only(flat, ["b"])) == ["b"]


@given(shapes=SHAPES)
def test_a_record_of_a_piece_is_the_one_of_its_tensors(shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = some(shapes, 0)
    record, wanted = to_record(flattened(tensors)), ArrayRecord({n: Array(value) for n, value in tensors.items()})
    assert flat_in(record) is not None
    assert payload_bytes(record, tensors) == sum(len(array.data) for array in wanted.values())
    assert list(record) == list(tensors)
    assert len(record) == len(tensors)
    assert flat_in(record) is not None  # nobody has seen a byte yet
    assert record == wanted
    assert record.object_id == wanted.object_id
    assert flat_in(record) is None  # they may have been changed since
    read = read_tensors(record, specs(tensors))
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


def test_what_is_put_into_a_record_later_counts() -> None:
    record, other = to_record(flattened(some({"a": (2,)}, 0))), some({"a": (2,)}, 1)
    record["a"] = Array(other["a"])
    assert np.array_equal(read_tensors(record, specs(other))["a"], other["a"])
    record["b"] = Array(other["a"])
    assert set(record) == {"a", "b"}
    with pytest.raises(ValueError, match="'b' is not expected"):
        read_tensors(record, specs(other))


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"a": (3,)}, "'a' is"),
        ({"a": (2,), "b": (1,)}, "'b' is missing"),
        ({"c": (2,)}, "'c' is missing"),
    ],
)
def test_a_piece_that_is_not_what_is_expected_is_refused(wanted: dict[str, tuple[int, ...]], problem: str) -> None:
    record = to_record(flattened(some({"a": (2,)}, 0)))
    with pytest.raises(ValueError, match=problem):
        read_tensors(record, specs(some(wanted, 0)))


def test_a_piece_of_another_dtype_is_refused() -> None:
    record = to_record(flattened(some({"a": (2,)}, 0, "float64")))
    with pytest.raises(ValueError, match="float64"):
        read_tensors(record, specs(some({"a": (2,)}, 0)))


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.full((2, size), float(size))) for name, size in (("a", 1), ("b", 2), ("c", 3))}


def test_what_fits_once_does_not_make_others_fit() -> None:
    """An update like the one before is not compared anew; another one is, and so is the same for other specs."""
    shapes = {"a": (2, 3), "b": (4,)}
    wanted = specs(some(shapes, 0))
    for seed in range(2):
        record = to_record(flattened(some(shapes, seed)))
        assert read_tensors(record, wanted) is flat_in(record)
    with pytest.raises(ValueError, match="'a' is"):
        read_tensors(to_record(flattened(some({"a": (3, 2), "b": (4,)}, 0))), wanted)
    with pytest.raises(ValueError, match="float64"):
        read_tensors(to_record(flattened(some(shapes, 0, "float64"))), wanted)
    with pytest.raises(ValueError, match="'b' is"):
        read_tensors(to_record(flattened(some(shapes, 0))), specs(some({"a": (2, 3), "b": (5,)}, 0)))


def test_gathered_parameters_stay_what_they_are_and_share_a_piece() -> None:
    held = parameters()
    objects = list(held.values())
    gathered = Gathered(held)
    assert all(one is other for one, other in zip(held.values(), objects, strict=True))
    assert all(torch.equal(parameter, torch.full((2, size), float(size))) for size, parameter in enumerate(objects, 1))
    piece = gathered.piece(("b", "c"))
    assert piece is not None
    assert piece.numel() == 10
    torch.optim.SGD([held["b"]], lr=1.0).zero_grad()
    held["b"].grad = torch.ones(2, 2)
    torch.optim.SGD([held["b"]], lr=1.0).step()
    assert torch.equal(piece[:4], torch.ones(4))
    piece.fill_(9)
    assert bool((held["c"] == 9).all())
    assert bool((held["a"] == 1).all())


@pytest.mark.parametrize("names", [("a", "c"), ("b", "a"), ("d",), (), ("a", "a")])
def test_what_does_not_lie_together_in_order_has_no_piece(names: tuple[str, ...]) -> None:
    assert Gathered(parameters()).piece(names) is None


def test_a_parameter_that_moved_away_is_noticed() -> None:
    held = parameters()
    gathered = Gathered(held)
    held["b"].data = torch.zeros(2, 2)
    assert gathered.piece(("a", "b")) is None
    assert gathered.piece(("a",)) is not None
