"""The names that fedlora takes from inside Flower still exist and still mean what the engines rely on."""

import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlora.flower_internals import SERVER_NODE_ID, empty_run, identify, stamp


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


def test_an_empty_run_has_the_id_it_was_given() -> None:
    assert empty_run(5).run_id == 5
