"""Messages to virtual clients and what comes of them, as plain bytes: for actors that share no memory with us.

What crosses is dictionaries, texts, numbers and `fedlora.v1` content. No class of fedlora or Flower is ever pickled.
Arrays are numbered and travel apart from what names them: those that several messages share are there once, and those
that an actor gives back unchanged not at all.
"""

from collections.abc import Iterable, Sequence
from typing import TypedDict

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.app import UserConfig as Place

from fedlora.flower_internals import stamp
from fedlora.link.content import arrays, facts, parse, records, serialised
from fedlora.simulations.virtual import Called

_NAME = "arrays"


class Packed(TypedDict):
    """A `RecordDict`: its facts as content, and the number of each of its array records by name."""

    facts: bytes
    arrays: dict[str, int]


class Letter(TypedDict):
    """A message to one virtual client, and what the client keeps."""

    kind: str
    group: str
    node: int
    run: int
    place: Place
    content: Packed
    state: Packed


class Outcome(TypedDict):
    """What came of a letter. error: why the client failed; None: `content` is its answer."""

    code: int
    error: str | None
    content: Packed
    state: Packed


class Packer:
    """Packs records, and numbers the array records in them; `records` holds those, by number.

    known: array records that the other side has, with the numbers from 0. Array records count as never changed.
    """

    def __init__(self, known: Iterable[ArrayRecord] = ()) -> None:
        self.records = list(known)
        self._numbers = {id(record): number for number, record in enumerate(self.records)}

    def pack(self, content: RecordDict) -> Packed:
        """Raises WireError for a value that `fedlora.v1` does not know."""
        numbers = {name: self._number(record) for name, record in content.array_records.items()}
        return Packed(facts=serialised(facts(content)), arrays=numbers)

    def _number(self, record: ArrayRecord) -> int:
        if id(record) not in self._numbers:
            self._numbers[id(record)] = len(self.records)
            self.records.append(record)
        return self._numbers[id(record)]


def unpack(packed: Packed, numbered: Sequence[ArrayRecord]) -> RecordDict:
    """The records in `packed`; `numbered` are the array records by number, and are not copied."""
    found = records(parse(packed["facts"]))
    for name, number in packed["arrays"].items():
        found[name] = numbered[number]
    return found


def array_bytes(record: ArrayRecord) -> bytes:
    """One array record as content."""
    return serialised(arrays(RecordDict({_NAME: record})))


def read_arrays(data: bytes) -> ArrayRecord:
    """The array record in `data`. Raises WireError if there is none."""
    return records(parse(data)).array_records[_NAME]


def write_letter(message: Message, context: Context, packer: Packer) -> Letter:
    """`message` to the client of `context`."""
    return Letter(
        kind=message.metadata.message_type,
        group=message.metadata.group_id,
        node=context.node_id,
        run=context.run_id,
        place=dict(context.node_config),
        content=packer.pack(message.content),
        state=packer.pack(context.state),
    )


def read_letter(letter: Letter, numbered: Sequence[ArrayRecord]) -> tuple[Message, Context]:
    """The message, as good as the one that was sent, and the client's context. Flower must know who this process is."""
    message = Message(unpack(letter["content"], numbered), letter["node"], letter["kind"], group_id=letter["group"])
    stamp(message)
    context = Context(
        run_id=letter["run"],
        node_id=letter["node"],
        node_config=letter["place"],
        state=unpack(letter["state"], numbered),
        run_config={},
    )
    return message, context


def write_outcome(called: Called, packer: Packer) -> Outcome:
    """What calling the client app gave."""
    reply, state = called.reply, packer.pack(called.state)
    if reply.has_error():
        nothing = packer.pack(RecordDict())
        return Outcome(code=reply.error.code, error=reply.error.reason or "", content=nothing, state=state)
    return Outcome(code=0, error=None, content=packer.pack(reply.content), state=state)


def read_outcome(message: Message, outcome: Outcome, numbered: Sequence[ArrayRecord]) -> Called:
    """What came of `message`."""
    state = unpack(outcome["state"], numbered)
    if outcome["error"] is not None:
        return Called(Message(Error(code=outcome["code"], reason=outcome["error"]), reply_to=message), state)
    return Called(Message(unpack(outcome["content"], numbered), reply_to=message), state)
