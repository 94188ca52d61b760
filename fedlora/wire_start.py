"""What travels before round 1: the message that asks a client for a noised sketch of its first gradient."""

from dataclasses import dataclass

from flwr.app import RecordDict

from fedlora.wire import TASK, TrainTask, read_task_facts
from fedlora.wire_tensors import WireError
from fedlora.wire_work import Work, read_facts, record_of, write_facts

SKETCH = "sketch"


@dataclass(frozen=True, kw_only=True)
class SketchTask(Work):
    """What a client is asked: a noised sketch, `width` columns a module, of its first gradient."""

    round: int = 0
    width: int


def write_sketch_task(task: SketchTask) -> RecordDict:
    """The content of a sketch task's message."""
    return RecordDict({SKETCH: write_facts(task, width=task.width)})


def read_sketch_task(content: RecordDict) -> SketchTask:
    """The sketch task in a message's content. Raises WireError if it is incomplete or cannot be read."""
    record = record_of(content, SKETCH)
    width = record.get("width")
    if type(width) is not int or width < 1:
        raise WireError(f"the sketch task's 'width' is {width!r}, not a whole number of 1 or more")
    return SketchTask(**read_facts(record), width=width)


def read_work(content: RecordDict) -> TrainTask | SketchTask:
    """The task in a message, from its config records alone: arrays need not be there yet.

    Raises WireError if there is none, or it cannot be read.
    """
    return read_task_facts(content) if TASK in content.config_records else read_sketch_task(content)
