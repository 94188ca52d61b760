"""Flower records as `fedlora.v1` content and back, and the id of a work. Nothing read here is trusted."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.message import DecodeError, Message

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
    """The content in `data`. Raises WireError if these are not the bytes of one."""
    try:
        return Content.FromString(data)
    except DecodeError as error:
        raise WireError(f"these {len(data)} bytes are no content of fedlora.v1: {error}") from error


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
        if part.name in found:
            raise WireError(f"the record {part.name[:100]!r} is there twice")
        try:
            found[part.name] = make(part)
        except (TypeError, ValueError, KeyError) as error:
            raise WireError(f"the record {part.name[:100]!r} cannot be read: {error}") from error


def _array_record(part: Arrays) -> ArrayRecord:
    named = {t.name: Array(t.dtype, tuple(map(int, t.shape)), t.encoding, t.data) for t in part.tensors}
    if len(named) != len(part.tensors):
        raise WireError(f"a tensor of {part.name[:100]!r} is there twice")
    return ArrayRecord(named)


def _metric_record(values: Values) -> MetricRecord:
    found = _scalars(values)
    wrong = [name for name, value in found.items() if type(value) not in (int, float)]
    if wrong:
        raise WireError(f"the metric {wrong[0][:100]!r} is not a number")
    return MetricRecord(found)


def _scalars(values: Values) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in values.values:
        kind = value.WhichOneof("value")
        if kind is None or value.name in found:
            problem = "is there twice" if kind else "has no value"
            raise WireError(f"{value.name[:100]!r} in {values.name[:100]!r} {problem}")
        found[value.name] = getattr(value, kind)
    return found


def work_id(kind: str, task: Content, shared: bytes) -> str:
    """SHA-256 of what an answer depends on, 64 hexadecimal digits.

    task: the task's facts. shared: the serialised arrays of the round; not those that a client is sent once, whose
    digest is among the facts.
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
