"""Flower records as `fedlora.v1` content and back, and the id of a work. Nothing read here is trusted."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, repeat
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from fedlora.link import limits
from fedlora.link.v1.link_pb2 import Arrays, Content, Tensor, Value, Values
from fedlora.wire import WireError

Scalar = int | float | bool | str | bytes
_NOT_OF_THE_WORK = ("deadline", "receipt")
"""Fields of a task that an answer does not depend on: they differ when a server asks for the same work again."""

_LONGEST_INTEGER = 2**63


def serialised(message: Message) -> bytes:
    """The bytes of a protobuf message, the same for equal messages within one build."""
    return message.SerializeToString(deterministic=True)


def facts(content: RecordDict) -> Content:
    """All of a message's content but its arrays."""
    return Content(
        configs=[_values(name, record) for name, record in content.config_records.items()],
        metrics=[_values(name, record) for name, record in content.metric_records.items()],
    )


def arrays(content: RecordDict) -> Content:
    """The arrays of a message's content."""
    return Content(arrays=[_arrays(name, record) for name, record in content.array_records.items()])


def whole(content: RecordDict) -> Content:
    """All of a message's content."""
    found = facts(content)
    found.MergeFrom(arrays(content))
    return found


def _arrays(name: str, record: ArrayRecord) -> Arrays:
    tensors = [
        Tensor(name=key, dtype=array.dtype, shape=array.shape, encoding=array.stype, data=array.data)
        for key, array in record.items()
    ]
    return Arrays(name=name, tensors=tensors)


def _values(name: str, record: Mapping[str, Any]) -> Values:
    return Values(name=name, values=[_value(key, value) for key, value in record.items()])


def _value(name: str, value: Any) -> Value:
    if type(value) not in _FIELDS:
        raise WireError(f"{name!r} is a {type(value).__name__}: only {', '.join(t.__name__ for t in _FIELDS)} travel")
    if type(value) is int and not -_LONGEST_INTEGER <= value < _LONGEST_INTEGER:
        raise WireError(f"{name!r} = {value} does not fit into 64 bits")
    return Value(**{"name": name, _FIELDS[type(value)]: value})


_FIELDS: Mapping[type, str] = {bool: "flag", int: "integer", float: "real", str: "text", bytes: "raw"}


def parse(data: bytes) -> Content:
    """The content in `data`.

    Raises WireError if these are not the bytes of one, or have more fields than `limits.FIELDS`.
    """
    try:
        fields = _fields(memoryview(data), Content.DESCRIPTOR)
        if next(islice(fields, limits.FIELDS, None), False):
            raise WireError(f"these {len(data)} bytes have more than {limits.FIELDS} fields: no content needs as many")
        return Content.FromString(data)
    except DecodeError as error:
        raise WireError(f"these {len(data)} bytes are no content of fedlora.v1: {error}") from error


def _fields(data: memoryview, kind: Any) -> Iterator[bool]:
    """True for each field of a serialised message, and of those inside it; each number of a packed field counts.

    They are counted before they are parsed: two bytes that say "an empty tensor" become a hundred in memory.
    """
    at = 0
    while at < len(data):
        yield True
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _LENGTH:
            size, at = _varint(data, at)
            yield from _inside(data[at : at + size], kind.fields_by_number.get(tag >> 3))
            at += size
        elif wire == 0:
            at = _varint(data, at)[1]
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise DecodeError(f"a field of type {wire} is not expected")
    if at > len(data):
        raise DecodeError("they end within a field")


def _inside(data: memoryview, field: Any) -> Iterable[bool]:
    if field is None or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return ()
    return repeat(True, len(data)) if field.message_type is None else _fields(data, field.message_type)


_LENGTH, _FIXED = 2, {1: 8, 5: 4}
"""Protobuf's types of fields that say their length, and those that need not, with it."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    number = 0
    for place, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            return number, at + place + 1
    raise DecodeError("a number does not end")


def records(*parts: Content) -> RecordDict:
    """The Flower records of all `parts` together.

    Raises WireError for a name that is there twice, a value without a type, and what Flower's records do not take.
    """
    found = RecordDict()
    for part in parts:
        _add(found, part.arrays, _array_record)
        _add(found, part.configs, lambda values: ConfigRecord(_scalars(values)))
        _add(found, part.metrics, _metric_record)
    return found


def _add(found: RecordDict, parts: Iterable[Any], make: Callable[[Any], Any]) -> None:
    for part in parts:
        _check_name(part.name)
        if part.name in found:
            raise WireError(f"the record {part.name[:100]!r} is there twice")
        try:
            found[part.name] = make(part)
        except (TypeError, ValueError, KeyError) as error:
            raise WireError(f"the record {part.name[:100]!r} cannot be read: {error}") from error


def _check_name(name: str) -> None:
    """Names go into rosters and logs."""
    if len(name) > limits.NAME or not name.isprintable():
        raise WireError(
            f"the name {name[:60]!r} has {len(name)} characters; at most {limits.NAME}, all printable, are read"
        )


def _array_record(part: Arrays) -> ArrayRecord:
    for tensor in part.tensors:
        _check_name(tensor.name)
    named = {t.name: Array(t.dtype, tuple(map(int, t.shape)), t.encoding, t.data) for t in part.tensors}
    if len(named) != len(part.tensors):
        raise WireError(f"a tensor of {part.name[:100]!r} is there twice")
    return ArrayRecord(named)


def _metric_record(values: Values) -> MetricRecord:
    """The numbers in `values`. Those that are not finite are left out: a store takes none of them."""
    if len(values.values) > limits.METRICS:
        raise WireError(f"{len(values.values)} metrics came; at most {limits.METRICS} are read")
    found = _scalars(values)
    wrong = [name for name, value in found.items() if type(value) not in (int, float)]
    if wrong:
        raise WireError(f"the metric {wrong[0][:100]!r} is not a number")
    return MetricRecord({name: value for name, value in found.items() if math.isfinite(value)})


def _scalars(values: Values) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in values.values:
        _check_name(value.name)
        kind = value.WhichOneof("value")
        if kind is None or value.name in found:
            problem = "is there twice" if kind else "has no value"
            raise WireError(f"{value.name[:100]!r} in {values.name[:100]!r} {problem}")
        found[value.name] = getattr(value, kind)
    return found


def work_id(kind: str, task: Content, shared: bytes) -> str:
    """SHA-256 of what an answer depends on, 64 hexadecimal digits.

    task: the task's facts. shared: SHA-256 of the round's serialised arrays, made once for a cohort; not of those that
    a client is sent once, whose digest is among the facts.
    """
    kept = Content()
    kept.CopyFrom(task)
    for values in kept.configs:
        remaining = [value for value in values.values if value.name not in _NOT_OF_THE_WORK]
        del values.values[:]
        values.values.extend(remaining)
    hashed = hashlib.sha256(kind.encode() + b"\0")
    for part in (serialised(kept), shared):
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()
