"""A client's works: what it was offered, is fetching, works on, and has answered. Lives in one event loop."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fedlora.errors import LinkError
from fedlora.link import limits
from fedlora.link.answers import AnswerBox
from fedlora.link.assignment import Assignment, Handler, Stage, told_outside
from fedlora.link.v1.link_pb2 import (
    Accept,
    Acknowledged,
    Chunk,
    Closed,
    Decline,
    Failed,
    FromClient,
    IsOpen,
    Offer,
    Openness,
    Resume,
    Upload,
)
from fedlora.link.works import WORK_ID
from fedlora.privacy.declined import DeclinedError

log = logging.getLogger(__name__)

OPEN_PATIENCE = 120.0
"""Seconds that a client waits for the server to say whether a round is still open; then it counts as closed."""

NOTE_TRIES, NOTE_WAIT = 30, 2.0
"""Times, and seconds between them, that a client tries to note what is about to leave; then the work has failed."""

_WINDOW = 8
"""Chunks that may wait to be written."""


class Workbench:
    """Offers become answers, one at a time; a broken connection loses nothing of them."""

    def __init__(self, handler: Handler, answers: AnswerBox) -> None:
        self._handler, self._answers = handler, answers
        self._assignments: dict[str, Assignment] = {}
        self._ready: asyncio.Queue[Assignment] = asyncio.Queue()
        self._outgoing: asyncio.Queue[FromClient] | None = None
        self._online = asyncio.Event()
        self._opennesses: dict[str, asyncio.Future[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hearers: Mapping[str, Callable[[Any], Awaitable[None]]] = {
            "offer": self._on_offer,
            "chunk": self._on_chunk,
            "resume": self._on_resume,
            "acknowledged": self._on_acknowledged,
            "openness": self._on_openness,
            "closed": self._on_closed,
        }

    # The connection.

    def connected(self) -> "asyncio.Queue[FromClient]":
        """A connection is there; what is to be sent comes from the queue."""
        self._outgoing = asyncio.Queue(_WINDOW)
        self._online.set()
        for work, assignment in self._assignments.items():
            if assignment.stage in (Stage.FETCHING, Stage.ANSWERED):  # if its round is over, nobody offers it again
                self.say(FromClient(is_open=IsOpen(work=work)))
        return self._outgoing

    def disconnected(self) -> None:
        """The connection is gone; offers come again on the next one."""
        self._outgoing = None
        self._online.clear()
        for assignment in self._assignments.values():
            if assignment.sending is not None:
                assignment.sending.cancel()

    def say(self, frame: FromClient) -> None:
        """Sends a frame in the background, if there is a connection."""
        self._start(self._said(frame))

    async def _said(self, frame: FromClient) -> None:
        if self._outgoing is not None:
            await self._outgoing.put(frame)

    def _start(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def hear(self, kind: str, said: Any) -> None:
        """Handles a frame. Raises LinkError for one that a server must not send."""
        hearer = self._hearers.get(kind)
        if hearer is None:
            raise LinkError(f"the server said {kind!r}, which this client does not expect")
        await hearer(said)

    async def idle(self) -> None:
        """Returns when no work is in hand."""
        while any(a.stage in (Stage.WORKING, Stage.ANSWERED) for a in self._assignments.values()):
            await asyncio.sleep(0.1)

    # What a server says.

    async def _on_offer(self, offer: Offer) -> None:
        if not WORK_ID.fullmatch(offer.work):
            raise LinkError(f"{offer.work[:80]!r} is no id of a work")
        there = self._assignments.get(offer.work)
        if there is None:
            there = self._assignments[offer.work] = Assignment(offer)
            self._start(self._begin(there))
            return
        there.offer = offer
        if there.stage is Stage.FETCHING:
            self.say(FromClient(accept=Accept(work=offer.work, offset=len(there.arrays))))
        elif there.stage is Stage.ANSWERED:
            self._announce(there)

    async def _begin(self, assignment: Assignment) -> None:
        """Sends the answer if it was given before; else decides."""
        known = await self._known(assignment)
        if known is not None:
            self._answered(assignment, known)
            return
        reason = await self._decided(assignment.offer)
        if assignment.stage is Stage.OVER:
            return
        if reason is not None:
            self._declined(assignment, reason)
            return
        assignment.stage = Stage.FETCHING
        self.say(FromClient(accept=Accept(work=assignment.work, offset=0)))
        self._work_if_whole(assignment)

    async def _known(self, assignment: Assignment) -> bytes | None:
        try:
            return await asyncio.to_thread(self._answers.read, assignment.work)
        except OSError:
            log.exception("an answer that was given before cannot be read: the work is done again")
            return None

    async def _decided(self, offer: Offer) -> str | None:
        try:
            return await asyncio.to_thread(self._handler.decide, offer)
        except Exception as error:
            log.exception("an offer could not be looked at")
            return f"this client cannot look at the offer: {told_outside(error)}"

    async def _on_chunk(self, said: Chunk) -> None:
        assignment = self._assignments.get(said.work)
        if assignment is None or assignment.stage is not Stage.FETCHING:
            return
        assignment.take(said.offset, said.data)
        self._work_if_whole(assignment)

    def _work_if_whole(self, assignment: Assignment) -> None:
        if assignment.whole:
            assignment.stage = Stage.WORKING
            self._ready.put_nowait(assignment)

    async def run(self) -> None:
        """Works on what is ready, for ever."""
        while True:
            assignment = await self._ready.get()
            if assignment.stage is Stage.WORKING:
                await self._work(assignment)

    async def _work(self, assignment: Assignment) -> None:
        try:
            answer = await self._made(assignment)
        except DeclinedError as error:
            self._declined(assignment, str(error))
        except Exception as error:
            log.exception("run %s, round %d: the work failed", assignment.offer.run, assignment.offer.round)
            self._failed(assignment, error)
        else:
            self._answered(assignment, answer)

    def _declined(self, assignment: Assignment, reason: str) -> None:
        if self._drop(assignment):
            self.say(FromClient(decline=Decline(work=assignment.work, reason=reason[: limits.TEXT])))

    def _failed(self, assignment: Assignment, error: Exception) -> None:
        if self._drop(assignment):
            self.say(FromClient(failed=Failed(work=assignment.work, reason=told_outside(error)[: limits.TEXT])))

    async def _made(self, assignment: Assignment) -> bytes:
        """The answer, stored. One that came of the same work after it was closed, and before it came again, is kept."""
        loop = asyncio.get_running_loop()

        def still_open() -> bool:
            return asyncio.run_coroutine_threadsafe(self._is_open(assignment), loop).result()

        known = await self._known(assignment)
        if known is not None:
            return known
        answer = await asyncio.to_thread(self._handler.work, assignment.task(still_open))
        await asyncio.to_thread(self._answers.store, assignment.work, answer)
        return answer

    def _answered(self, assignment: Assignment, answer: bytes) -> None:
        if assignment.stage is Stage.OVER:
            return
        assignment.stage, assignment.answer, assignment.arrays = Stage.ANSWERED, answer, bytearray()
        self._announce(assignment)

    def _announce(self, assignment: Assignment) -> None:
        digest = hashlib.sha256(assignment.answer).digest()
        self.say(FromClient(upload=Upload(work=assignment.work, size=len(assignment.answer), sha256=digest)))

    async def _on_resume(self, said: Resume) -> None:
        assignment = self._assignments.get(said.work)
        if assignment is None or assignment.stage is not Stage.ANSWERED:
            return
        if assignment.sending is not None:
            assignment.sending.cancel()
        assignment.sending = self._start(self._send(assignment, said.offset))

    async def _send(self, assignment: Assignment, offset: int) -> None:
        if offset < len(assignment.answer) and not await self._noted(assignment, offset):
            return
        for start in range(offset, len(assignment.answer), limits.CHUNK):
            part = assignment.answer[start : start + limits.CHUNK]
            await self._said(FromClient(chunk=Chunk(work=assignment.work, offset=start, data=part)))

    async def _noted(self, assignment: Assignment, offset: int) -> bool:
        """Whether what leaves could be noted. The disk may be full for a while: then it is tried again."""
        for left in reversed(range(NOTE_TRIES)):
            try:
                await asyncio.to_thread(self._handler.sending, assignment.offer, assignment.answer, offset)
                return assignment.stage is Stage.ANSWERED
            except Exception as error:
                log.exception("what is about to leave cannot be noted, so it does not leave; tries left: %d", left)
                if not left:
                    self._failed(assignment, error)
            await asyncio.sleep(NOTE_WAIT)
        return False

    async def _on_acknowledged(self, said: Acknowledged) -> None:
        await self._over(said.work, said.counted, said.reason)

    async def _on_closed(self, said: Closed) -> None:
        await self._over(said.work, False, said.reason)

    async def _over(self, work: str, counted: bool, reason: str) -> None:
        assignment = self._assignments.get(work)
        if assignment is not None:
            self._drop(assignment)
            await asyncio.to_thread(self._handler.ended, assignment.offer, counted, reason)

    def _drop(self, assignment: Assignment) -> bool:
        """Whether it was still wanted. What was dropped may be there again: the same work, offered anew."""
        wanted, assignment.stage = assignment.stage is not Stage.OVER, Stage.OVER
        if wanted:
            del self._assignments[assignment.work]
            self._settle(assignment.work, False)
        return wanted

    # Is the round still open?

    async def _is_open(self, assignment: Assignment) -> bool:
        """The server's word; without one in `OPEN_PATIENCE` seconds the round counts as closed."""
        try:
            return await asyncio.wait_for(self._asked(assignment), OPEN_PATIENCE)
        except TimeoutError:
            return False

    async def _asked(self, assignment: Assignment) -> bool:
        while assignment.stage is not Stage.OVER:
            await self._online.wait()
            answer = self._opennesses.setdefault(assignment.work, asyncio.get_running_loop().create_future())
            self.say(FromClient(is_open=IsOpen(work=assignment.work)))
            try:
                return await asyncio.wait_for(asyncio.shield(answer), limits.HEARTBEAT)
            except TimeoutError:  # the line may have broken with the question on it
                continue
        return False

    async def _on_openness(self, said: Openness) -> None:
        self._settle(said.work, said.open)
        there = self._assignments.get(said.work)
        if there is not None and not said.open and there.stage in (Stage.FETCHING, Stage.ANSWERED):
            log.info("run %s, round %d: it ended while there was no connection", there.offer.run, there.offer.round)
            self._drop(there)

    def _settle(self, work: str, is_open: bool) -> None:
        answer = self._opennesses.pop(work, None)
        if answer is not None and not answer.done():
            answer.set_result(is_open)
