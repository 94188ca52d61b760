"""Messages to clients survive as plain bytes, and arrays that are shared or unchanged travel once or not at all."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedlora.flower_internals import identify, stamp
from fedlora.simulations.parcels import (
    Packer,
    array_bytes,
    read_arrays,
    read_letter,
    read_outcome,
    unpack,
    write_letter,
    write_outcome,
)
from fedlora.simulations.virtual import Called, error_reply
from fedlora.wire import to_record


@pytest.fixture(autouse=True)
def known_to_flower() -> None:
    identify(1)


def shared() -> ArrayRecord:
    return to_record({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0)})


def message(arrays: ArrayRecord, node: int = 2) -> Message:
    made = Message(RecordDict({"arrays": arrays, "task": ConfigRecord({"round": 3})}), node, "train", group_id="3")
    stamp(made)
    return made


def context(kept: ArrayRecord, node: int = 2) -> Context:
    return Context(
        run_id=1, node_id=node, node_config={"partition-id": 0}, state=RecordDict({"kept": kept}), run_config={}
    )


scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=9), st.binary()
)


@given(st.dictionaries(st.sampled_from("abcd"), scalars))
def test_facts_come_back(facts: dict[str, bool | int | float | str | bytes]) -> None:
    content = RecordDict({"facts": ConfigRecord(dict(facts)), "metrics": MetricRecord({"loss": 0.5})})
    assert unpack(Packer().pack(content), []) == content


def test_arrays_come_back() -> None:
    assert read_arrays(array_bytes(shared())) == shared()


def test_a_letter_says_all_that_a_client_sees() -> None:
    packer, arrays = Packer(), shared()
    letter = write_letter(message(arrays), context(arrays), packer)
    assert len(packer.records) == 1  # the message and the state share it
    sent, place = read_letter(letter, [read_arrays(array_bytes(record)) for record in packer.records])
    assert sent.content == message(arrays).content
    assert sent.metadata.message_type == "train"
    assert (sent.metadata.dst_node_id, sent.metadata.group_id) == (2, "3")
    assert place == context(arrays)


def test_what_messages_share_is_there_once() -> None:
    packer, arrays = Packer(), shared()
    for node in (2, 3):
        write_letter(message(arrays, node), context(shared(), node), packer)
    assert len(packer.records) == 3


def test_an_outcome_brings_only_new_arrays() -> None:
    asked, kept, fresh = message(shared()), shared(), to_record({"c": np.ones(2)})
    packer = Packer([kept])
    called = Called(Message(RecordDict({"arrays": fresh}), reply_to=asked), RecordDict({"kept": kept}))
    outcome = write_outcome(called, packer)
    assert packer.records[1:] == [fresh]
    found = read_outcome(asked, outcome, packer.records)
    assert found.state["kept"] is kept
    assert found.reply.content["arrays"] == fresh
    assert found.reply.metadata.reply_to_message_id == asked.metadata.message_id


def test_a_failure_is_an_outcome() -> None:
    asked, packer = message(shared()), Packer()
    outcome = write_outcome(Called(error_reply(asked, "ValueError: no"), RecordDict()), packer)
    reply = read_outcome(asked, outcome, packer.records).reply
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (2, "ValueError: no")
