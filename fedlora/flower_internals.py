"""The few names that an engine needs from inside Flower, in one place.

Everything else in fedlora imports `flwr.app`, `flwr.serverapp` and `flwr.clientapp` alone. Flower moves its
inner modules between releases: `tests/test_flower_internals.py` fails when one of these has moved or changed.
"""

import uuid
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "NUMPY",
    "Run",
    "arrays_behind",
    "arrays_in",
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


R = TypeVar("R", ConfigRecord, RecordDict)


def filled(record: R, values: Mapping[str, Any]) -> R:
    """`record` with `values` set, whose kinds we know to be right: it would look at each in several ways."""
    record.__dict__["_data"].update(values)
    return record


def record_over(arrays: MutableMapping[str, Array]) -> ArrayRecord:
    """A record whose arrays are whatever `arrays` holds when they are looked at."""
    record = ArrayRecord()
    record.__dict__["_data"] = arrays
    return record


def arrays_behind(record: ArrayRecord) -> object:
    """What holds the arrays of `record`: a dictionary, or what `record_over` was given."""
    return record.__dict__["_data"]


def stamp(message: Message) -> str:
    """Gives `message` the id that Flower's link would give it on sending, and returns it."""
    message_id = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id
