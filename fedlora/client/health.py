"""A daemon's health endpoint: `GET /health` on loopback, 200 while it is connected to its server, 503 otherwise."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_LONGEST = 4096
_SECONDS = 5.0


@asynccontextmanager
async def health_server(address: str | None, healthy: Callable[[], bool]) -> AsyncIterator[None]:
    """Answers at `address` ("host:port") for the block; None: nowhere. Raises OSError if it is taken."""
    if address is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _SECONDS)
            writer.write(reply(head, healthy()))
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # whoever asks so gets no answer
        finally:
            writer.close()

    host, _, port = address.rpartition(":")
    server = await asyncio.start_server(answer, host, int(port), limit=_LONGEST)
    async with server:
        yield


def reply(head: bytes, healthy: bool) -> bytes:
    """The HTTP answer to a request's head."""
    found = head.startswith(b"GET /health ")
    status = ("200 OK" if healthy else "503 Service Unavailable") if found else "404 Not Found"
    body = json.dumps({"connected": healthy}).encode() if found else b"{}"
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode() + (
        b"Connection: close\r\n\r\n" + body
    )
