"""What travels is exactly what the manifest says, and nothing else is believed."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.wire import (
    SAMPLES,
    Answer,
    WireError,
    declined_reason,
    payload_bytes,
    predicted_bytes,
    read_answer,
    read_tensors,
    to_record,
    write_answer,
    write_declined,
)

MANIFEST = Manifest(
    Form.LORA,
    r=2,
    scaling=1.0,
    seed=0,
    tensors={
        "m.lora_A": TensorSpec((2, 5), Role.A, "m", False, Delivery.SEED),
        "m.lora_B": TensorSpec((3, 2), Role.B, "m", True, Delivery.ROUND),
        "head.w": TensorSpec((4,), Role.HEAD, "", True, Delivery.ROUND),
    },
)
UPDATE = {"m.lora_B": np.ones((3, 2), np.float32), "head.w": np.zeros(4, np.float32)}
ANSWER = Answer("run", 3, 1, UPDATE, 17, {"loss": 0.5})


def test_an_answer_survives_the_wire() -> None:
    read = read_answer(write_answer(ANSWER), MANIFEST)
    assert (read.run, read.round, read.client, read.samples, read.metrics) == ("run", 3, 1, 17, {"loss": 0.5})
    for name, array in UPDATE.items():
        np.testing.assert_array_equal(read.tensors[name], array)


@given(
    shape=st.lists(st.integers(1, 70), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
)
def test_serialised_bytes_are_those_that_the_manifest_predicts(shape: tuple[int, ...], dtype: str) -> None:
    spec = TensorSpec(shape, Role.B, "m", True, Delivery.ROUND, dtype)
    record = to_record({"x": np.zeros(shape, dtype)})
    assert payload_bytes(record, ["x"]) == predicted_bytes([spec])


@given(st.text(max_size=3000))
def test_reasons_and_complaints_are_one_printable_line(text: str) -> None:
    """Whatever a stranger sends: escapes for terminals, lines, letters that turn the writing around."""
    for found in (declined_reason(write_declined(text)), str(WireError(text))):
        assert found is not None
        assert found.isprintable()
        assert len(found) <= 1000
    assert declined_reason(write_answer(ANSWER)) is None


def test_what_is_plain_stays_as_it_is() -> None:
    text = "Größe 5 µm – não, не сейчас, 今はだめ 🙂"
    assert declined_reason(write_declined(text)) == str(WireError(text)) == text


def broken(**changes: object) -> dict[str, object]:
    return {**UPDATE, **changes}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"m.lora_B": UPDATE["m.lora_B"]}, "'head.w' is missing"),
        (broken(extra=np.zeros(1, np.float32)), "'extra' is not expected"),
        (broken(**{"m.lora_B": np.ones((2, 3), np.float32)}), "the manifest says"),
        (broken(**{"m.lora_B": np.ones((3, 2), np.float64)}), "float64"),
        (broken(**{"m.lora_B": np.ones((1, 2), np.float32)}), "the manifest says"),
        (broken(**{"head.w": np.zeros(4000, np.float32)}), "needs at most"),
    ],
)
def test_tensors_that_the_manifest_does_not_expect_are_refused(tensors: dict[str, object], reason: str) -> None:
    answer = Answer("run", 3, 1, tensors, 17, {})  # type: ignore[arg-type]
    with pytest.raises(WireError, match=reason):
        read_answer(write_answer(answer), MANIFEST)


def test_bytes_that_are_no_array_are_refused() -> None:
    spec = TensorSpec((2,), Role.B, "m", True, Delivery.ROUND)
    record = ArrayRecord({"x": Array("float32", (2,), "numpy.ndarray", b"garbage")})
    with pytest.raises(WireError, match="cannot be decoded"):
        read_tensors(record, {"x": spec})


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "object.npy"
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    record = ArrayRecord({"x": Array("object", (1,), "numpy.ndarray", path.read_bytes())})
    with pytest.raises(WireError, match="cannot be decoded"):
        read_tensors(record, {"x": TensorSpec((64,), Role.B, "m", True, Delivery.ROUND)})


@pytest.mark.parametrize("record", ["arrays", "metrics", "answer"])
def test_an_incomplete_answer_is_refused(record: str) -> None:
    content = write_answer(ANSWER)
    del content[record]
    with pytest.raises(WireError):
        read_answer(content, MANIFEST)


def test_a_sample_count_must_be_a_whole_number() -> None:
    content = write_answer(ANSWER)
    content["metrics"] = MetricRecord({SAMPLES: 1.5})
    with pytest.raises(WireError, match="whole number"):
        read_answer(content, MANIFEST)


def test_a_round_must_be_a_whole_number() -> None:
    content = write_answer(ANSWER)
    content["answer"] = ConfigRecord({"run": "run", "round": "3", "client": 1})
    with pytest.raises(WireError, match="'round'"):
        read_answer(content, MANIFEST)
