"""Bytes of strangers become tensors, records and verdicts: what is honest exactly, all else a reason, never a crash."""

import io
import math
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.config.schema import FederationConfig
from fedlora.flower_internals import identify
from fedlora.link import content, limits
from fedlora.link.grid import REPLIES
from fedlora.link.v1.link_pb2 import Arrays, Content, Tensor, Value, Values
from fedlora.link.works import Ended, Ending
from fedlora.server.admission import Expected, Verdict, admit
from fedlora.server.records import Outcome
from fedlora.wire import SAMPLES, Answer, WireError, write_answer
from fedlora.wire_tensors import FRAME_BYTES, read_tensors, to_record

DTYPES = ["float32", "float64", "float16", "int8", "int64", "uint16", "bool", "complex64"]


def spec_of(shape: tuple[int, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, Role.B, "m", True, Delivery.ROUND, dtype)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=True)
    return file.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy header that says `text`."""
    padded = text.encode("latin-1") + b" " * ((-len(text) - 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(padded)) + padded


def said(shape: str = "(2, 5)", kind: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"


def decode(data: bytes, **claims: Any) -> np.ndarray:
    spec = spec_of((2, 5))
    claimed = {"dtype": spec.dtype, "shape": spec.shape, "stype": "numpy.ndarray", **claims}
    return read_tensors(ArrayRecord({"x": Array(**claimed, data=data)}), {"x": spec})["x"]


# Tensors.


@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    )
)
def test_an_honest_tensor_is_what_numpy_reads(array: np.ndarray) -> None:
    """Bit for bit, in the same layout, in the record's own memory, which nobody can write to."""
    record = to_record({"x": array})
    theirs = record["x"].numpy()
    ours = read_tensors(record, {"x": spec_of(theirs.shape, str(array.dtype))})["x"]
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.strides == theirs.strides or not ours.size
    assert ours.tobytes() == theirs.tobytes() == np.ascontiguousarray(array).tobytes()
    assert not ours.flags.writeable
    assert ours.flags.aligned


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", npy(np.zeros((2, 5), np.float32)))
    return file.getvalue()


VALUES = bytes(40)
CRAFTED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cannot be decoded"),
    "the magic alone": (b"\x93NUMPY", "cannot be decoded"),
    "a length without a header": (b"\x93NUMPY\x01\x00\xff\xff", "cannot be decoded"),
    "a zip": (zipped(), "cannot be decoded"),
    "what begins as a zip": (b"PK\x03\x04garbage", "cannot be decoded"),
    "4 TB": (header(said("(1099511627776,)")) + VALUES, r"is \(1099511627776,\) float32"),
    "2^62 values": (header(said(f"({2**62},)")) + VALUES, "the manifest says"),
    "more than a machine word": (header(said(f"({10**40},)")) + VALUES, "the manifest says"),
    "a negative size": (header(said("(-2, -5)")) + VALUES, "cannot be decoded"),
    "another shape of the same size": (header(said("(5, 2)")) + VALUES, r"is \(5, 2\) float32"),
    "a scalar": (header(said("()")) + VALUES, r"is \(\) float32"),
    "one that broadcasts": (header(said("(1, 5)")) + VALUES[:20], r"is \(1, 5\) float32"),
    "a shape that is no tuple": (header(said("(10)")) + VALUES, "cannot be decoded"),
    "a shape of truths": (header(said("(True, 10)")) + VALUES, "cannot be decoded"),
    "a shape of long integers": (header(said("(2L, 5L)")) + VALUES, "cannot be decoded"),
    "a shape of fractions": (header(said("(2.0, 5)")) + VALUES, "cannot be decoded"),
    "Fortran order": (header(said(order="True")) + VALUES, "in Fortran order"),
    "objects": (npy(np.array([[{}]], dtype=object)), "cannot be decoded"),
    "an object header": (header(said(kind="'|O'")) + VALUES, "cannot be decoded"),
    "a structure": (header(said(kind="[('a', '<f4')]")) + VALUES, "cannot be decoded"),
    "a sub-array": (header(said("(2,)", kind="('<f4', (5,))")) + VALUES, "cannot be decoded"),
    "text": (header(said(kind="'<U1'")) + VALUES, "cannot be decoded"),
    "void": (header(said(kind="'|V4'")) + VALUES, "cannot be decoded"),
    "times": (header(said(kind="'<M8[ns]'")) + VALUES * 2, "cannot be decoded"),
    "the other byte order": (header(said(kind="'>f4'")) + VALUES, "is .* >f4; the manifest"),
    "no such dtype": (header(said(kind="'<f3'")) + VALUES, "is .* '<f3'; the manifest"),
    "integers of the same size": (header(said(kind="'<i4'")) + VALUES, "int32; the manifest"),
    "twice as wide": (header(said(kind="'<f8'")) + VALUES * 2, "float64; the manifest"),
    "version 2": (npy(np.zeros((2, 5), np.float32), (2, 0)), "cannot be decoded"),
    "version 3": (npy(np.zeros((2, 5), np.float32), (3, 0)), "cannot be decoded"),
    "version 9": (header(said(), (9, 0)) + VALUES, "cannot be decoded"),
    "a byte too many": (header(said()) + VALUES + b"\0", "41 bytes of values"),
    "a value too few": (header(said()) + VALUES[:-4], "36 bytes of values"),
    "another key": (header(said()[:-1] + "'x': 1, }") + VALUES, "cannot be decoded"),
    "a key twice": (header(said()[:-1] + "'shape': (2, 5), }") + VALUES, "cannot be decoded"),
    "code": (header("__import__('os').abort()") + VALUES, "cannot be decoded"),
    "parentheses": (header("(" * 200) + VALUES, "cannot be decoded"),
    "an open text": (header("{'descr': '''") + VALUES, "cannot be decoded"),
    "a null": (header("{'descr': \0") + VALUES, "cannot be decoded"),
    "a header without its end": (
        b"\x93NUMPY\x01\x00\x76\x00" + said().encode().ljust(118) + VALUES,
        "cannot be decoded",
    ),
    "a long header": (header(said() + " " * 400) + VALUES, "needs at most"),
    "far too much": (header(said()) + bytes(10_000), "needs at most 296"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_tensor_is_refused_and_costs_no_memory(what: str) -> None:
    data, reason = CRAFTED[what]
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=reason):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "claims",
    [{"dtype": "float64"}, {"dtype": ""}, {"shape": (5, 2)}, {"shape": (10,)}, {"stype": "pickle"}, {"stype": ""}],
)
def test_a_record_that_says_something_else_than_its_bytes_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="disagree"):
        decode(header(said()) + VALUES, **claims)


def mangled(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with bytes changed, cut out or put in."""
    edits = st.tuples(st.integers(0, len(data)), st.integers(0, 4), st.binary(max_size=4))

    def apply(found: list[tuple[int, int, bytes]]) -> bytes:
        changed = data
        for at, drop, put in found:
            changed = changed[:at] + put + changed[at + drop :]
        return changed

    return st.lists(edits, min_size=1, max_size=4).map(apply)


HONEST_BYTES = npy(np.arange(10, dtype=np.float32).reshape(2, 5))


@given(
    data=st.one_of(mangled(HONEST_BYTES), mangled(HONEST_BYTES[:FRAME_BYTES]).map(lambda d: d + VALUES), st.binary())
)
@settings(max_examples=400)
def test_whatever_is_taken_for_a_tensor_is_one(data: bytes) -> None:
    try:
        found = decode(data)
    except WireError:
        return
    assert (found.shape, str(found.dtype)) == ((2, 5), "float32")
    assert data.endswith(found.tobytes())
    np.testing.assert_array_equal(found, np.load(io.BytesIO(data), allow_pickle=False))


@given(text=st.text(max_size=90).filter(lambda t: t.isascii()))
@example(said("(2, 5)").replace(" ", ""))
@example(said("(02, 5)"))
def test_no_other_header_is_taken(text: str) -> None:
    if text != said():
        with pytest.raises(WireError):
            decode(header(text) + VALUES)


def test_what_is_refused_is_named_in_few_words() -> None:
    with pytest.raises(WireError) as refused:
        read_tensors(ArrayRecord({"x" * 10**6: Array("f", (1,), "n", b"")}), {})
    assert len(str(refused.value)) < 200
    assert len(str(WireError("x" * 10**6))) == 1000


# Contents.


def field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message that says its length."""
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


BOMBS = {
    "tensors": field(1, b"\x12\x00" * 600_000),
    "records of arrays": b"\x0a\x00" * 600_000,
    "values": field(2, b"\x12\x00" * 600_000),
    "metrics": b"\x1a\x00" * 600_000,
    "dimensions": field(1, field(2, field(3, b"\x01" * 600_000))),
    "names": field(1, b"\x0a\x00" * 600_000),
    "unknown fields": b"\x20\x01" * 600_000,
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_few_bytes_do_not_become_many(what: str) -> None:
    """Two bytes of each of these took fifty to a hundred of memory when they were parsed."""
    with pytest.raises(WireError, match="more than 500000 fields"):
        content.parse(BOMBS[what])


@given(data=st.one_of(st.binary(max_size=300), st.just(b"")))
@example(b"\x0b\x0c")  # a group
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x0a\x05abc")
@example(b"\x80")
def test_what_can_be_parsed_is_what_protobuf_parses(data: bytes) -> None:
    try:
        found = content.parse(data)
    except WireError:
        return
    assert found == Content.FromString(data)


TEXT = st.text(max_size=20)
PRINTABLE = TEXT.filter(str.isprintable)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXT, st.binary(max_size=20)
)


@given(
    configs=st.dictionaries(PRINTABLE, st.dictionaries(PRINTABLE, scalars, max_size=4), max_size=3),
    arrays=st.dictionaries(PRINTABLE, npst.arrays("float32", npst.array_shapes(max_side=3)), max_size=3),
)
def test_a_content_comes_back_as_it_was(configs: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    from flwr.app import ConfigRecord

    sent = RecordDict({f"c{name}": ConfigRecord(values) for name, values in configs.items()})
    sent["arrays"] = to_record(arrays)
    again = content.records(content.parse(content.serialised(content.whole(sent))))
    assert again == sent
    assert content.serialised(content.whole(again)) == content.serialised(content.whole(sent))


def values(*pairs: tuple[str, Any]) -> Values:
    kinds = {bool: "flag", int: "integer", float: "real", str: "text", bytes: "raw"}
    return Values(name="x", values=[Value(**{"name": n, kinds[type(v)]: v}) for n, v in pairs])


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Content(arrays=[Arrays(name="x"), Arrays(name="x")]), "there twice"),
        (Content(arrays=[Arrays(name="x")], metrics=[Values(name="x")]), "there twice"),
        (Content(arrays=[Arrays(name="x", tensors=[Tensor(name="t")] * 2)]), "there twice"),
        (Content(configs=[values(("a", 1), ("a", 2))]), "there twice"),
        (Content(configs=[Values(name="x", values=[Value(name="a")])]), "has no value"),
        (Content(metrics=[values(("a", "text"))]), "not a number"),
        (Content(metrics=[values(("a", True))]), "not a number"),
        (Content(metrics=[values(*((str(i), i) for i in range(limits.METRICS + 1)))]), "201 metrics"),
        (Content(arrays=[Arrays(name="x" * 501)]), "501 characters"),
        (Content(configs=[values(("a" * 10**6, 1))]), "1000000 characters"),
        (Content(arrays=[Arrays(name="x", tensors=[Tensor(name="t" * 501)])]), "501 characters"),
        (Content(metrics=[values(("\x1b[2J", 1))]), "all printable"),
    ],
)
def test_a_content_that_contradicts_itself_is_refused_in_few_words(part: Content, reason: str) -> None:
    with pytest.raises(WireError, match=reason) as refused:
        content.records(part)
    assert len(str(refused.value)) < 300


def test_metrics_that_no_store_takes_are_left_out() -> None:
    """A time that is not a number broke the server's database, and with it the run."""
    found = content.records(Content(metrics=[values(("a", math.nan), ("b", math.inf), ("c", 1.5), ("d", 2))]))
    assert dict(found.metric_records["x"]) == {"c": 1.5, "d": 2}


# The gate, from the bytes in a file to the verdict.

MANIFEST = Manifest(
    Form.LORA,
    r=2,
    scaling=2.0,
    seed=0,
    tensors={
        "m.lora_A": TensorSpec((2, 5), Role.A, "m", True, Delivery.ROUND),
        "m.lora_B": TensorSpec((3, 2), Role.B, "m", True, Delivery.ROUND),
    },
)
BEFORE = {name: np.ones(spec.shape, np.float32) for name, spec in MANIFEST.tensors.items()}
HONEST = Answer("run", 3, 1, {n: a + np.float32(0.5) for n, a in BEFORE.items()}, 17, {"loss": 0.5, "seconds": 1.5})
RULES = [
    Expected("run", 3, MANIFEST, BEFORE, FederationConfig(max_update_norm=bound), private=private)
    for bound in (None, 100.0)
    for private in (False, True)
]


def judge(folder: Path, data: bytes, expected: Expected = RULES[1]) -> Verdict:
    """As the link does it."""
    identify(1)
    path = folder / "answer"
    path.write_bytes(data)
    asked = Message(RecordDict(), 3, MessageType.TRAIN)
    return admit(REPLIES[Ending.ANSWERED](asked, Ended(Ending.ANSWERED, file=path)), 1, expected)


def check_verdict(verdict: Verdict) -> None:
    """Whatever it is, it can be stored and shown, and an answer that was admitted is sound."""
    row = verdict.row
    assert row.client == 1
    assert len(row.reason) <= 1000
    assert math.isfinite(row.seconds)
    assert all(math.isfinite(value) for value in row.metrics.values())
    assert (verdict.answer is not None) == (row.outcome is Outcome.REPORTED)
    assert verdict.answer is None or row.reason == ""
    if verdict.answer is not None:
        assert (verdict.answer.run, verdict.answer.round, verdict.answer.client) == ("run", 3, 1)
        for name, spec in MANIFEST.tensors.items():
            found = verdict.answer.tensors[name]
            assert (found.shape, str(found.dtype), bool(np.isfinite(found).all())) == (spec.shape, spec.dtype, True)


honest_content = content.whole(write_answer(HONEST))
HONEST_ANSWER = content.serialised(honest_content)


def test_an_honest_answer_is_admitted(tmp_path: Path) -> None:
    for expected in RULES:
        verdict = judge(tmp_path, HONEST_ANSWER, expected)
        check_verdict(verdict)
        assert verdict.answer is not None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@given(data=st.one_of(mangled(HONEST_ANSWER), st.binary(max_size=200)), expected=st.sampled_from(RULES))
@settings(max_examples=300)
def test_mangled_answers_get_a_verdict(place: Path, data: bytes, expected: Expected) -> None:
    check_verdict(judge(place, data, expected))


def message_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any message of a protobuf type. Of a choice one part is there, or none."""
    choices = [list(choice.fields) for choice in kind.oneofs]
    chosen = {f.name for fields in choices for f in fields}
    always = {f.name: value_of(f) for f in kind.fields if f.name not in chosen}
    picks = [st.one_of(st.just({}), *(value_of(f).map(lambda v, n=f.name: {n: v}) for f in c)) for c in choices]
    whole = st.tuples(st.fixed_dictionaries({}, optional=always), *picks)
    return whole.map(lambda parts: kind._concrete_class(**{k: v for part in parts for k, v in part.items()}))


NAMES = [
    "",
    "arrays",
    "metrics",
    "answer",
    "declined",
    SAMPLES,
    "run",
    "round",
    "client",
    "seconds",
    "m.lora_A",
    "float32",
]
names = st.one_of(st.sampled_from([*NAMES, "m.lora_B", "numpy.ndarray", "samples-withheld", "ledger"]), TEXT)
floats = npst.arrays(np.float32, st.sampled_from([(2, 5), (3, 2)])).map(npy)
arrays_of = st.one_of(st.binary(max_size=50), st.sampled_from([found[0] for found in CRAFTED.values()]), floats)
whole_numbers = {
    "uint64": st.one_of(st.integers(0, 10), st.integers(0, 2**64 - 1)),
    "uint32": st.integers(0, 2**32 - 1),
    "sint64": st.one_of(st.integers(-10, 20), st.integers(-(2**63), 2**63 - 1)),
    "double": st.floats(),
    "bool": st.booleans(),
    "string": names,
    "bytes": arrays_of,
}


def value_of(part: Any) -> st.SearchStrategy[Any]:
    kinds = {part.TYPE_UINT64: "uint64", part.TYPE_UINT32: "uint32", part.TYPE_SINT64: "sint64"}
    kinds |= {part.TYPE_DOUBLE: "double", part.TYPE_BOOL: "bool", part.TYPE_STRING: "string", part.TYPE_BYTES: "bytes"}
    one = message_of(part.message_type) if part.message_type else whole_numbers[kinds[part.type]]
    return st.lists(one, max_size=4) if part.is_repeated else one


@given(found=message_of(Content.DESCRIPTOR), expected=st.sampled_from(RULES))
@settings(max_examples=300)
def test_arbitrary_contents_get_a_verdict(place: Path, found: Content, expected: Expected) -> None:
    check_verdict(judge(place, content.serialised(found), expected))


@st.composite
def almost_honest(draw: st.DrawFn) -> Content:
    """The honest answer with one field of it, wherever, replaced."""
    found = Content()
    found.CopyFrom(honest_content)
    place: Any = found
    while True:
        part = draw(
            st.sampled_from(
                [f for f in place.DESCRIPTOR.fields if f.containing_oneof is None or place.HasField(f.name)]
            )
        )
        there = getattr(place, part.name)
        if part.message_type and len(there) and draw(st.booleans()):
            place = draw(st.sampled_from(list(there)))
            continue
        place.ClearField(part.name)
        place.MergeFrom(type(place)(**{part.name: draw(value_of(part))}))
        return found


@given(found=almost_honest(), expected=st.sampled_from(RULES))
@settings(max_examples=400)
def test_answers_with_one_field_changed_get_a_verdict(place: Path, found: Content, expected: Expected) -> None:
    check_verdict(judge(place, content.serialised(found), expected))


@given(
    a=npst.arrays(np.float32, (2, 5)),
    b=npst.arrays(np.float32, (3, 2)),
    samples=st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)),
    expected=st.sampled_from(RULES),
)
@settings(max_examples=200)
def test_arbitrary_values_get_a_verdict(
    place: Path, a: np.ndarray, b: np.ndarray, samples: int, expected: Expected
) -> None:
    answer = Answer("run", 3, 1, {"m.lora_A": a, "m.lora_B": b}, samples, {})
    verdict = judge(place, content.serialised(content.whole(write_answer(answer))), expected)
    check_verdict(verdict)
    if not expected.private and not 0 < samples <= expected.rules.max_samples:
        assert verdict.row.outcome is Outcome.REJECTED


def with_tensor(data: bytes) -> bytes:
    found = Content()
    found.CopyFrom(honest_content)
    found.arrays[0].tensors[0].data = data
    return content.serialised(found)


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_tensor_costs_its_sender_not_the_run(tmp_path: Path, what: str) -> None:
    verdict = judge(tmp_path, with_tensor(CRAFTED[what][0]))
    check_verdict(verdict)
    assert verdict.row.outcome is Outcome.REJECTED
    assert "m.lora_A" in verdict.row.reason


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_no_number_can_be_stored(tmp_path: Path, seconds: float) -> None:
    answer = Answer("run", 3, 1, HONEST.tensors, 17, {"seconds": seconds, "loss": math.nan})
    verdict = judge(tmp_path, content.serialised(content.whole(write_answer(answer))))
    check_verdict(verdict)
    assert verdict.answer is not None


def test_a_name_of_a_megabyte_does_not_get_into_the_roster(tmp_path: Path) -> None:
    answer = Answer("r" * 10**6, 3, 1, HONEST.tensors, 17, {})
    verdict = judge(tmp_path, content.serialised(content.whole(write_answer(answer))))
    check_verdict(verdict)
    assert verdict.row.reason.startswith("the answer is for run 'rrrr")
