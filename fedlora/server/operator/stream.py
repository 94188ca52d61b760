"""The events of a run over HTTP: the lines of its log, from any line on, as they are or as server-sent events."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from anyio import sleep, to_thread

from fedlora import errors
from fedlora.errors import ExitCode, FedloraError
from fedlora.server.durable import explained
from fedlora.server.events import FILE
from fedlora.server.operator.messages import HEARTBEAT, alive, end, message
from fedlora.server.queue import RunQueue
from fedlora.server.records import RunInfo, RunStatus

_POLL = 0.25  # seconds between two looks at the log
_PART = 1 << 18  # bytes of a log that are read at a time
_ENDED = {RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED}
Line = tuple[int, bytes]


class Tail:
    """Reads the whole lines of a log that grows, which may not exist yet; lines count from 1."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self._path = path
        self._after = after
        self._number = 0
        self._offset = 0

    def read(self) -> list[Line]:
        """The next lines after line `after`, without their ends; none if there are no more for now."""
        while True:
            data = self._next_part()
            lines = [(self._number + place, line) for place, line in enumerate(data.split(b"\n")[:-1], start=1)]
            self._number += len(lines)
            self._offset += len(data)
            wanted = [line for line in lines if line[0] > self._after]
            if wanted or not lines:
                return wanted

    def _next_part(self) -> bytes:
        """What follows, up to the end of its last whole line; longer than a part if one line is."""
        if not self._path.exists():
            return b""
        with explained("read the event log", self._path), self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(_PART)
            while (end := data.rfind(b"\n")) < 0 and (more := file.read(_PART)):
                data += more
        return data[: end + 1]


def lines_after(run: RunInfo, after: int) -> Iterator[bytes]:
    """The lines that the run's log has now, after line `after`, with their ends."""
    tail = Tail(run.folder / FILE, after)
    while lines := tail.read():
        yield b"".join(line + b"\n" for _, line in lines)


async def server_sent(
    queue: RunQueue, run_id: str, after: int, closing: Callable[[], bool], heartbeat: float = HEARTBEAT
) -> AsyncIterator[bytes]:
    """The run's events after line `after`, then those that come, each with its line's number as its id.

    It ends with a message `END` when the run has ended, and without one when `closing`: then come back with the last
    id. The log of a queued run begins when the run does.
    """
    tail = Tail((await to_thread.run_sync(queue.store.get, run_id)).folder / FILE, after)
    yield alive()  # so that the answer begins at once
    quiet = 0.0
    while not closing():
        ended = await to_thread.run_sync(_end, queue, run_id)  # before the lines: none is written after it
        lines = await to_thread.run_sync(tail.read)
        if lines:
            quiet = 0.0
            yield b"".join(message(*line) for line in lines)
            continue
        if ended is not None:
            yield end(json.dumps(ended).encode())
            return
        if quiet >= heartbeat:
            quiet = 0.0
            yield alive()
        await sleep(_POLL)
        quiet += _POLL


def _end(queue: RunQueue, run_id: str) -> dict[str, Any] | None:
    """How the run ended, if it has and its log is complete.

    Who drives it may still write to it after the database says so, or put it back into the queue.
    """
    driven = queue.driven == run_id  # before it is read, or it could be put back between
    run = queue.store.get(run_id)
    if run.status not in _ENDED or driven or queue.store.holder(run) is not None:
        return None
    return {"status": str(run.status), "reason": run.reason, "exit_code": int(exit_code(run))}


def exit_code(run: RunInfo) -> ExitCode:
    """What `fedlora simulate` would have ended with. A failed run's reason begins with the class of its error."""
    if run.status is RunStatus.FINISHED:
        return ExitCode.OK
    if run.status is RunStatus.STOPPED:
        return ExitCode.INTERRUPTED
    kind = getattr(errors, run.reason.partition(":")[0], None)
    return kind.exit_code if isinstance(kind, type) and issubclass(kind, FedloraError) else ExitCode.INTERNAL
