"""Arrays go to Flower's records byte for byte as Flower writes them, and what is kept of them is never stale."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.flat import flattened
from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.wire import WireError, read_tensors, to_record
from fedlora.wire_known import known_tensors
from fedlora.wire_work import find_record

DTYPES = ("float32", "float64", "float16", "int64", ">f4")


def spec(shape: tuple[int, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, Role.B, "m", True, Delivery.ROUND, dtype)


MANIFEST = Manifest(Form.LORA, 2, 1.0, 0, {"a": spec((2, 3)), "b": spec((4,))})


@given(shape=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple), dtype=st.sampled_from(DTYPES))
def test_a_record_is_the_one_that_flower_makes(shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    (ours,), theirs = to_record({"x": values}).values(), Array(values)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    assert ours.object_id == theirs.object_id
    read = read_tensors(ArrayRecord({"x": ours}), {"x": spec(shape, dtype)})["x"]
    np.testing.assert_array_equal(read, values)


def test_an_array_that_is_not_contiguous_travels_in_c_order() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    read = read_tensors(to_record({"x": values}), {"x": spec((3, 2))})["x"]
    np.testing.assert_array_equal(read, values)


def test_what_is_read_cannot_be_written_to() -> None:
    read = read_tensors(to_record({"x": np.ones(3, np.float32)}), {"x": spec((3,))})["x"]
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 2


def test_a_manifest_that_names_objects_is_refused_even_where_the_header_agrees() -> None:
    header = Array(np.zeros(2, np.int64)).data.replace(b"'<i8'", b"'|O' ")
    array = Array("object", (2,), "numpy.ndarray", header)
    with pytest.raises(WireError, match="cannot be decoded"):
        read_tensors(ArrayRecord({"x": array}), {"x": spec((2,), "object")})


def test_the_arrays_of_a_round_are_read_once_and_never_stale() -> None:
    record = to_record({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    first = known_tensors(record, MANIFEST)
    assert known_tensors(record, MANIFEST) is first
    record["b"] = Array(np.full(4, 7, np.float32))
    np.testing.assert_array_equal(known_tensors(record, MANIFEST)["b"], np.full(4, 7))
    np.testing.assert_array_equal(first["b"], np.zeros(4))
    record["b"].data = Array(np.full(4, 9, np.float32)).data
    np.testing.assert_array_equal(known_tensors(record, MANIFEST)["b"], np.full(4, 9))


def test_what_was_read_by_one_manifest_does_not_pass_another() -> None:
    record = to_record({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    known_tensors(record, MANIFEST)
    other = Manifest(Form.LORA, 2, 1.0, 0, {"a": spec((3, 2)), "b": spec((4,))})
    with pytest.raises(WireError, match="'a'"):
        known_tensors(record, other)


def test_a_record_of_another_kind_is_not_found() -> None:
    content = RecordDict({"x": ConfigRecord({"a": 1})})
    assert find_record(content, "x", ArrayRecord) is None
    assert find_record(content, "y", ConfigRecord) is None
    assert find_record(content, "x", ConfigRecord) is content["x"]


def test_what_was_read_in_one_piece_is_not_taken_for_an_empty_record() -> None:
    flat = flattened({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    assert known_tensors(to_record(flat), MANIFEST) is flat
    assert known_tensors(to_record(flat), MANIFEST) is flat
    assert dict(known_tensors(to_record({}), MANIFEST)) == {}
    other = flattened({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    assert known_tensors(to_record(other), MANIFEST) is other
