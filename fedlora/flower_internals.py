"""The few names that an engine needs from inside Flower, in one place.

Everything else in fedlora imports `flwr.app`, `flwr.serverapp` and `flwr.clientapp` alone. Flower moves its
inner modules between releases: `tests/test_flower_internals.py` fails when one of these has moved or changed.
"""

import itertools
import time
import uuid
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "NUMPY",
    "Run",
    "addressed",
    "arrays_in",
    "contents",
    "empty_run",
    "encoded",
    "filled",
    "identify",
    "record_over",
    "stamp",
]

NUMPY = "numpy.ndarray"
"""What Flower calls the .npy format."""

SERVER_NODE_ID = 1
"""The id under which our engines let the server send; clients' node ids start above it."""


def identify(run_id: int) -> None:
    """Says who this process is; `flwr.app.Message` cannot be made without it.

    Flower keeps this per process, so one process drives one run at a time.
    """
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID


def empty_run(run_id: int) -> Run:
    """A Flower run that exists only in this process."""
    return Run.create_empty(run_id=run_id)


def encoded(dtype: str, shape: tuple[int, ...], data: bytes, stype: str = NUMPY) -> Array:
    """The array whose .npy file is `data`, as `Array(dtype, shape, stype, data)` makes it.

    That takes ten times as long: it looks at its arguments in three ways, and a round has thousands of arrays.
    """
    array = Array.__new__(Array)
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
    return array


def arrays_in(arrays: Mapping[str, Array]) -> ArrayRecord:
    """The record of `arrays`, as `ArrayRecord(arrays)` makes it: that checks the kind of each name and array."""
    record = ArrayRecord()
    record.__dict__["_data"].update(arrays)
    return record


R = TypeVar("R", ConfigRecord, MetricRecord, RecordDict)


def filled(record: R, values: Mapping[str, Any]) -> R:
    """`record` with `values` set, whose kinds we know to be right: it would look at each in several ways."""
    record.__dict__["_data"].update(values)
    return record


def contents(record: ArrayRecord | ConfigRecord | MetricRecord | RecordDict) -> Mapping[str, Any]:
    """What `record` holds, to look at: each look at the record itself goes through several calls.

    A dictionary, or what `record_over` was given.
    """
    found: Mapping[str, Any] = record.__dict__["_data"]
    return found


def record_over(arrays: MutableMapping[str, Array]) -> ArrayRecord:
    """A record whose arrays are whatever `arrays` holds when they are looked at."""
    record = ArrayRecord()
    record.__dict__["_data"] = arrays
    return record


def addressed(pattern: Message, node: int, content: RecordDict) -> Message:
    """A message as `pattern`, which the server has made, to another node: as if it were made now.

    What is the same for all clients of a round is not looked at again for each.
    """
    metadata = object.__new__(type(pattern.metadata))
    metadata.__dict__.update(pattern.metadata.__dict__, _dst_node_id=node, _created_at=time.time())
    message = object.__new__(Message)
    message.__dict__.update(pattern.__dict__, _metadata=metadata, _content=content)
    return message


_PROCESS, _NUMBERS = uuid.uuid4().hex, itertools.count()


def stamp(message: Message) -> str:
    """Gives `message` the id that Flower's link would give it on sending, and returns it."""
    message_id = f"{_PROCESS}-{next(_NUMBERS):x}"
    message.metadata.__dict__["_message_id"] = message_id
    return message_id
