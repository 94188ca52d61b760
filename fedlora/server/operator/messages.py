"""Server-sent events as both sides of the operator API know them."""

from collections.abc import Iterator

HEARTBEAT = 15.0
"""Seconds without an event after which a stream shows that it is alive."""

MESSAGE, ALIVE, END = "message", "alive", "end"
"""Kinds: an event of the run, a sign of life, and the last message of a stream. The data of `END`: the run's status,
its reason, and the exit code that fits them."""


def message(number: int, text: bytes) -> bytes:
    """An event of the run, the line `number` of its log."""
    return b"id: %d\ndata: %b\n\n" % (number, text)


def end(text: bytes) -> bytes:
    """The last message."""
    return b"event: %b\ndata: %b\n\n" % (END.encode(), text)


def alive() -> bytes:
    """A comment, which browsers take no notice of."""
    return b": alive\n\n"


def read_messages(lines: Iterator[str], number: int) -> Iterator[tuple[str, int, str]]:
    """The kind, number and text of each message, a block of `field: value` lines that an empty line ends.

    A message without a number has that of the message before; the first, `number`.
    """
    kind, data = MESSAGE, list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line.startswith(":"):
            yield ALIVE, number, value
        elif name == "event":
            kind = value
        elif name == "id" and value.isdecimal():
            number = int(value)
        elif name == "data":
            data.append(value)
        elif not line:
            if data:
                yield kind, number, "\n".join(data)
            kind, data = MESSAGE, []
