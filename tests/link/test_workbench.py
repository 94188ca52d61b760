"""A client's works: what becomes of them when connections, disks and rounds end at the wrong instant."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedlora.link import content, workbench
from fedlora.link.answers import AnswerBox
from fedlora.link.assignment import Stage, Task
from fedlora.link.v1.link_pb2 import Chunk, Closed, FromClient, Offer, Openness, Resume
from fedlora.link.workbench import Workbench
from fedlora.link.works import Payload
from fedlora.privacy.declined import RoundClosedError
from fedlora.wire import to_record
from tests.link.world import Scripted

WORK = "a" * 64
ARRAYS = Payload.of(
    content.serialised(content.arrays(RecordDict({"arrays": to_record({"head": np.zeros(4, np.float32)})})))
)


def offer() -> Offer:
    return Offer(work=WORK, run="run-1", round=1, kind="train", size=len(ARRAYS.data), sha256=ARRAYS.sha256)


class Bench:
    """A workbench in a running loop, and what it says."""

    def __init__(self, handler: Any, folder: Path) -> None:
        self.bench = Workbench(handler, AnswerBox(folder))
        self.said: list[FromClient] = []
        self._line: asyncio.Task[None] | None = None
        self._working = asyncio.create_task(self.bench.run())

    def connect(self) -> None:
        self._line = asyncio.create_task(self._listen(self.bench.connected()))

    def disconnect(self) -> None:
        assert self._line is not None
        self._line.cancel()
        self.bench.disconnected()

    async def _listen(self, outgoing: "asyncio.Queue[FromClient]") -> None:
        while True:
            self.said.append(await outgoing.get())

    async def until_said(self, kind: str, times: int = 1) -> None:
        await self.until(lambda: sum(frame.HasField(kind) for frame in self.said) >= times)

    async def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 5.0
        while not holds():
            assert time.monotonic() < end, [frame.WhichOneof("said") for frame in self.said]
            await asyncio.sleep(0.01)

    async def offered(self) -> None:
        """The work arrives whole."""
        await self.bench.hear("offer", offer())
        await self.until_said("accept")
        await self.send_arrays()

    async def send_arrays(self) -> None:
        await self.bench.hear("chunk", Chunk(work=WORK, offset=0, data=ARRAYS.data))

    async def end(self) -> None:
        self._working.cancel()
        if self._line is not None:
            self._line.cancel()
        await asyncio.sleep(0)


def played(script: Callable[[Bench], Coroutine[Any, Any, None]], handler: Any, folder: Path) -> Bench:
    """Plays a script in a loop of its own."""

    async def play() -> Bench:
        bench = Bench(handler, folder)
        bench.connect()
        await script(bench)
        await bench.end()
        return bench

    return asyncio.run(asyncio.wait_for(play(), 20.0))


def test_an_answer_whose_round_ended_out_of_sight_does_not_keep_the_client_from_ending(tmp_path: Path) -> None:
    handler = Scripted(0, before_work=lambda task: time.sleep(0.2))

    async def script(bench: Bench) -> None:
        await bench.offered()
        await bench.until(lambda: bool(handler.worked))
        bench.disconnect()
        await bench.until(lambda: bench.bench._assignments[WORK].stage is Stage.ANSWERED)
        bench.connect()
        await bench.until_said("is_open")
        await bench.bench.hear("openness", Openness(work=WORK, open=False))
        await asyncio.wait_for(bench.bench.idle(), 2.0)

    played(script, handler, tmp_path)


class Forgetful(Scripted):
    """A client that cannot write down what leaves, `failures` times."""

    failures = 0

    def sending(self, offer: Offer, answer: bytes, offset: int) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no space left on device")
        super().sending(offer, answer, offset)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "NOTE_WAIT", 0.01)
    monkeypatch.setattr(workbench, "NOTE_TRIES", 3)


@pytest.mark.parametrize(("failures", "said"), [(0, "chunk"), (2, "chunk"), (3, "failed")])
def test_what_leaves_is_noted_first_and_a_full_disk_has_some_time_to_be_cleared(
    tmp_path: Path, failures: int, said: str
) -> None:
    handler = Forgetful(0)
    handler.failures = failures

    async def script(bench: Bench) -> None:
        await bench.offered()
        await bench.until_said("upload")
        await bench.bench.hear("resume", Resume(work=WORK, offset=0))
        await bench.until_said(said)

    bench = played(script, handler, tmp_path)
    assert handler.sent == [0] * (said == "chunk")
    assert any(frame.HasField("chunk") for frame in bench.said) is (said == "chunk")
    assert "no space" not in str(bench.said)


def test_work_that_was_closed_and_offered_again_is_not_ended_by_what_it_was_before(tmp_path: Path) -> None:
    """A server that was set back closes a work and asks for it again, while the client still works on it."""
    calls: list[int] = []

    def refuses_once(task: Task) -> None:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.3)
            raise RoundClosedError("the round ended")

    async def script(bench: Bench) -> None:
        await bench.offered()
        await bench.until(lambda: bool(calls))
        await bench.bench.hear("closed", Closed(work=WORK, reason="the server has given the round up"))
        await bench.bench.hear("offer", offer())
        await bench.until_said("accept", 2)
        await bench.send_arrays()
        await bench.until_said("upload")

    bench = played(script, Scripted(0, before_work=refuses_once), tmp_path)
    assert not any(frame.HasField("decline") for frame in bench.said)


def test_work_that_was_closed_and_offered_again_is_done_once(tmp_path: Path) -> None:
    handler = Scripted(0, before_work=lambda task: time.sleep(0.3))

    async def script(bench: Bench) -> None:
        await bench.offered()
        await bench.until(lambda: bool(handler.worked))
        await bench.bench.hear("closed", Closed(work=WORK, reason="the server has given the round up"))
        await bench.bench.hear("offer", offer())
        await bench.until_said("accept", 2)
        await bench.send_arrays()
        await bench.until_said("upload")

    played(script, handler, tmp_path)
    assert len(handler.worked) == 1
