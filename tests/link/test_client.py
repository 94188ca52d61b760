"""A client's connection: however it ends, another one follows."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fedlora.link import client, limits
from fedlora.link.answers import AnswerBox
from fedlora.link.client import LinkClient
from fedlora.link.v1.link_pb2 import FromClient, FromServer, Welcome
from tests.link.world import Scripted


class Stream:
    """A connection that ends between two frames, after `life` seconds: gRPC says so only to whom writes."""

    def __init__(self, life: float = 0.0) -> None:
        self.written, self.greeted, self.life = 0, False, life

    async def write(self, frame: FromClient) -> None:
        self.written += 1
        if self.written > 1:
            await asyncio.sleep(self.life)
            raise asyncio.InvalidStateError("RPC already finished.")

    async def read(self) -> FromServer:
        if not self.greeted:
            self.greeted = True
            return FromServer(welcome=Welcome(name="site-0", heartbeat_seconds=limits.HEARTBEAT))
        return await asyncio.Future()


class Channel:
    async def close(self) -> None:
        """Nothing is open."""


def test_a_connection_that_has_just_ended_when_it_is_written_to_is_dialled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[Channel] = []

    class Stub:
        def __init__(self, channel: Channel) -> None:
            dialled.append(channel)

        def Connect(self, **_: Any) -> Stream:  # noqa: N802 - gRPC's name
            return Stream()

    async def run() -> LinkClient:
        link = LinkClient(Channel, Scripted(0), AnswerBox(tmp_path))
        running = asyncio.create_task(link.run())
        while len(dialled) < 2 and not running.done():
            await asyncio.sleep(0.01)
        link.stop()
        await running
        return link

    monkeypatch.setattr(client.link_pb2_grpc, "LinkStub", Stub)
    link = asyncio.run(asyncio.wait_for(run(), 10.0))
    assert "already finished" in link.last_error


def test_a_connection_that_was_good_is_dialled_anew_without_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies each time after a few rounds is not waited for longer and longer."""
    lives, most = iter([0.0, 0.0, 0.0, 0.2, 0.0]), []

    class Stub:
        def __init__(self, channel: Channel) -> None:
            """Nothing is dialled."""

        def Connect(self, **_: Any) -> Stream:  # noqa: N802 - gRPC's name
            return Stream(next(lives))

    async def run() -> None:
        link = LinkClient(Channel, Scripted(0), AnswerBox(tmp_path))

        def drawn(_: float, longest: float) -> float:
            most.append(longest)
            if len(most) == 5:
                link.stop()
            return 0.0

        monkeypatch.setattr(client.random, "uniform", drawn)
        await link.run()

    monkeypatch.setattr(client.link_pb2_grpc, "LinkStub", Stub)
    monkeypatch.setattr(limits, "SETTLED", 0.1)
    asyncio.run(asyncio.wait_for(run(), 10.0))
    assert most == [0.2, 0.4, 0.8, 0.2, 0.4]
