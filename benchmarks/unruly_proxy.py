"""A TCP proxy on loopback that does to a connection what networks do: breaks, waits, falls silent, spoils bytes."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Trouble:
    """What happens, once, to the bytes that go one way, after that many more of them have passed.

    how: "truncate" (the connection ends there), "corrupt" (one bit is turned) or "swap" (two pieces change places).
    upward: from the client to the server. fired: whether it has happened.
    """

    how: str
    after: int
    upward: bool = True
    fired: bool = False

    def spoilt(self, data: bytes) -> tuple[bytes, bool]:
        """What is passed on in place of `data`, and whether the connection ends behind it."""
        if self.fired or self.after + 2 > len(data):
            self.after -= 0 if self.fired else len(data)
            return data, False
        self.fired, at = True, max(0, self.after)
        head, tail = data[:at], data[at:]
        if self.how == "truncate":
            return head, True
        if self.how == "corrupt":
            return head + bytes([tail[0] ^ 1]) + tail[1:], False
        half = len(tail) // 2
        return head + tail[half:] + tail[:half], False


class UnrulyProxy:
    """Listens at `port` and passes everything on to `target`, a port of this machine. All methods are for any thread.

    connections: how many came so far.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port, self.connections = target, 0, 0
        self._delay = 0.0
        self._troubles: list[Trouble] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._flow = self._call(_open_event())
        self._call(self._listen())

    def drop(self) -> None:
        """Resets every connection; new ones are taken."""
        self._call(self._drop())

    def refuse(self) -> None:
        """Resets every connection, and refuses new ones until `mend`."""
        self._call(self._refuse())

    def silence(self) -> None:
        """Passes nothing on until `mend`, and tells nobody: a cable that is pulled."""
        self._call(self._set_flow(False))

    def delay(self, seconds: float) -> None:
        """Holds each piece back for so long."""
        self._delay = seconds

    def spoil(self, trouble: Trouble) -> None:
        """Lets `trouble` happen."""
        self._troubles.append(trouble)

    def mend(self) -> None:
        """Is a good proxy again."""
        self._delay, self._troubles = 0.0, []
        self._call(self._set_flow(True))
        self._call(self._listen())

    def close(self) -> None:
        """Ends it."""
        self._call(self._refuse())
        self._call(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def _drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _set_flow(self, flows: bool) -> None:
        (self._flow.set if flows else self._flow.clear)()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        self._writers.add(writer)
        try:
            await self._flow.wait()
            onward, out = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(out)
            await self._both_ways((reader, out), (onward, writer))
        except OSError:
            pass  # the server is not there, or somebody hung up: that is passed on too
        finally:
            self._hang_up(writer)
            self._tasks.discard(asyncio.current_task())  # type: ignore[arg-type]

    async def _both_ways(self, up: Any, down: Any) -> None:
        pumps = [asyncio.create_task(self._pump(*up, True)), asyncio.create_task(self._pump(*down, False))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._hang_up(up[1])

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upward: bool) -> None:
        while data := await reader.read(1 << 16):
            await self._flow.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            ends = False
            for trouble in [each for each in self._troubles if each.upward == upward]:
                data, ends = trouble.spoilt(data)
            writer.write(data)
            await writer.drain()
            if ends:
                return

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()


async def _open_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
