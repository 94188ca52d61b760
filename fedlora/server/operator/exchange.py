"""What the gates of the operator API and of the dashboard have in common: names of this server, limits, bodies."""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

from anyio import move_on_after
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class Failures:
    """How often something happened, by address: at most `limit` in `seconds`, of the last `addresses`. In memory."""

    def __init__(
        self,
        limit: int = 10,
        seconds: float = 60.0,
        addresses: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._limit, self._addresses, self._clock = limit, addresses, clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, address: str) -> bool:
        """Counts one more of `address`; True while it is within the limit."""
        now = self._clock()
        since, count = self._counts.pop(address, (now, 0))
        if now - since >= self.seconds:
            since, count = now, 0
        self._counts[address] = since, count + 1
        if len(self._counts) > self._addresses:
            self._counts.popitem(last=False)
        return count < self._limit


def names_us(given: Sequence[str], hosts: Collection[str]) -> bool:
    """Whether the Host headers `given` are one, with a name of `hosts` (lower case) and any port."""
    found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    return found is not None and found["name"].strip("[]").lower() in hosts


def address_of(scope: Scope) -> str:
    """The address that a request came from."""
    return str((scope.get("client") or ["unknown"])[0])


class Headed:
    """`send`, with `headers` on the answer where it does not set its own."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send, self._headers = send, headers
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
        await self._send(message)


class Replay:
    """`receive` for a request whose body was read already: the body, then what happens to the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def read_body(
    headers: Headers, receive: Receive, *, most: int = MAX_BODY, seconds: float = math.inf
) -> bytes | None:
    """The whole body; None if it has over `most` bytes, without reading all of it.

    Raises ClientDisconnect, and TimeoutError if it is not there after `seconds`.
    """
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 20 or int(declared) > most:
        return None
    with move_on_after(seconds):
        return await _collected(receive, most)
    raise TimeoutError(f"the request's body was not there after {seconds:g} seconds")


async def _collected(receive: Receive, most: int) -> bytes | None:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            return None
    return bytes(body)
