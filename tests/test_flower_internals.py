"""The names that fedlora takes from inside Flower still exist and still mean what the engines rely on."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlora.flower_internals import (
    NUMPY,
    SERVER_NODE_ID,
    addressed,
    arrays_in,
    contents,
    empty_run,
    encoded,
    filled,
    identify,
    stamp,
)


def test_a_message_can_be_made_after_identify_and_carries_that_identity() -> None:
    identify(7)
    message = Message(RecordDict(), 12, MessageType.TRAIN, group_id="3")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (
        7,
        SERVER_NODE_ID,
        12,
    )


def test_without_an_identity_flower_refuses_to_make_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError, match="run_id"):
        Message(RecordDict(), 12, MessageType.TRAIN)


def test_a_stamped_message_is_what_its_reply_refers_to() -> None:
    identify(1)
    message = Message(RecordDict(), 12, MessageType.TRAIN)
    message_id = stamp(message)
    assert message.metadata.message_id == message_id
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == message_id
    assert stamp(message) != message_id


def test_an_addressed_message_is_the_one_that_flower_makes() -> None:
    identify(7)
    pattern, content = Message(RecordDict(), 1, MessageType.TRAIN, group_id="3"), RecordDict({"a": ConfigRecord()})
    ours, theirs = addressed(pattern, 12, content), Message(content, 12, MessageType.TRAIN, group_id="3")
    assert vars(ours).keys() == vars(theirs).keys()
    mine, others = dict(vars(ours.metadata)), dict(vars(theirs.metadata))
    assert others.pop("_created_at") - 60 < mine.pop("_created_at") <= theirs.metadata.created_at + 1
    assert mine == others
    assert ours.content is content
    assert stamp(ours) != ours.metadata.reply_to_message_id
    assert (pattern.metadata.dst_node_id, pattern.metadata.message_id) == (1, "")
    assert Message(RecordDict(), reply_to=ours).metadata.dst_node_id == SERVER_NODE_ID


def test_records_that_are_filled_are_those_that_flower_makes() -> None:
    for kind, values in ((ConfigRecord, {"a": "b", "c": 1}), (MetricRecord, {"a": 1, "b": 0.5})):
        record = filled(kind(), values)
        assert record == kind(values)
        assert contents(record) == values
        assert record.deflate() == kind(values).deflate()


def test_an_empty_run_has_the_id_it_was_given() -> None:
    assert empty_run(5).run_id == 5


def test_arrays_and_records_that_are_put_together_are_those_that_flower_makes() -> None:
    theirs = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    ours = encoded("float32", (2, 3), theirs.data)
    assert (ours, ours.stype, vars(ours).keys()) == (theirs, NUMPY, vars(theirs).keys() - {"_is_dirty"})
    assert ours.deflate() == theirs.deflate()
    record, made = arrays_in({"a": ours}), ArrayRecord({"a": theirs})
    assert (record, record.object_id) == (made, made.object_id)
    with pytest.raises(TypeError):
        record["b"] = 3  # as Flower's own does: it looks at what is added
    assert set(record) == {"a"}
