"""`send`, changed on its way to the browser."""

import time
from collections.abc import Awaitable, Callable

from starlette.types import Message, Send

LOOK = 5.0
"""Seconds between two looks at whether the session of an open stream goes on."""

_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class EndedError(OSError):
    """Raised into an endpoint that would send on although its answer has ended, as if the browser were gone."""


class Bodiless:
    """For HEAD: the answer's head alone. Raises EndedError if there is more to come."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
        else:
            await self._send(_END)
            if message.get("more_body", False):
                raise EndedError("who asks with HEAD wants no body")


class Watched:
    """Ends a stream soon after its session has ended: logged out, removed, expired. Raises EndedError then."""

    def __init__(
        self, send: Send, goes_on: Callable[[], Awaitable[bool]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send, self._goes_on, self._clock = send, goes_on, clock
        self._looked = clock()

    async def __call__(self, message: Message) -> None:
        if message.get("more_body", False) and self._clock() - self._looked >= LOOK:
            self._looked = self._clock()
            if not await self._goes_on():
                await self._send(_END)
                raise EndedError("the session has ended")
        await self._send(message)


class Recorded:
    """Writes down how an action went before its answer begins: nobody is told of what is not on record."""

    def __init__(self, send: Send, record: Callable[[int], Awaitable[None]]) -> None:
        self._send, self._record = send, record

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._record(message["status"])
        await self._send(message)
