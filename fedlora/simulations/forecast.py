"""From a message to what becomes of it in virtual time: who is asked for what, and how it ends."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flwr.app import Message

from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.simulations.course import Course, Rules, Work, busy_seconds, course_of
from fedlora.simulations.devices import Devices, unit
from fedlora.wire import TASK, payload_bytes, predicted_bytes, read_manifest


@dataclass
class Timed:
    """A work that was asked for. attempt: how often its client had been asked in that round before.

    begun: its id in the engine's Grid, once it is trained there.
    """

    message: Message
    client: int
    round: int
    attempt: int
    course: Course
    begun: str | None = None

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands among others: by its end, and works of one instant by client."""
        return self.course.ends, self.client


class Forecast:
    """Knows the devices of a run, and what becomes of each work that is asked for.

    Only what is sent in each round and `train.steps` steps of `train.batch` records take time, whatever rows a client
    has: so nothing is told of those, and a resumed run gives the same times.
    """

    def __init__(self, config: RunConfig) -> None:
        """Raises ConfigError if the trace cannot be read."""
        virtual = config.virtual
        self.devices = Devices(config)
        self._seed, self._dropout = config.seed, virtual.dropout
        self._rules, self._absence = Rules(virtual.sample_seconds or 0.0, virtual.latency), config.federation.absence
        self._records = config.train.steps * config.train.batch
        self._asked: dict[int, tuple[int, int]] = {}
        self._resumed: dict[int, tuple[int, int, float]] = {}

    def of(self, message: Message, now: float) -> Timed:
        """The work of a task's message that is asked for `now`, or was, if a resumed run asks for it again."""
        facts = message.content.config_records[TASK]
        client, number = int(str(facts["client"])), int(str(facts["round"]))
        attempt, asked = self._when(client, number, now)
        self._asked[client] = (number, attempt)
        arrays = message.content.array_records["arrays"]
        work = Work(payload_bytes(arrays, arrays), _answer_bytes(str(facts["manifest"])), self._records)
        busy, drops = busy_seconds(self.devices.of(client), work, self._rules), self._drops(client, number, attempt)
        course = course_of(busy, drops, self.devices.presence(client), self._absence, asked)
        return Timed(message, client, number, attempt, course)

    def _when(self, client: int, number: int, now: float) -> tuple[int, float]:
        resumed = self._resumed.get(client)
        if resumed is not None and resumed[0] == number:
            del self._resumed[client]
            return resumed[1:]
        before = self._asked.get(client)
        return (before[1] + 1 if before is not None and before[0] == number else 0), now

    def _drops(self, client: int, number: int, attempt: int) -> float | None:
        """The part of the work after which the client drops out, if it does."""
        if not self._dropout:
            return None
        drawn, part = unit(self._seed, 2, "dropout", client, number, attempt)
        return part if drawn < self._dropout else None

    def kept(self, works: Iterable[Timed]) -> Mapping[str, Any]:
        """What a checkpoint keeps, so that a resumed run asks for `works` as of when they were asked for."""
        asked = {str(work.client): [work.round, work.attempt, work.course.asked] for work in works}
        return {"asked": asked, "trace": self.devices.digest}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what was kept. Raises RunError if the trace has changed since."""
        if kept["trace"] != self.devices.digest:
            raise RunError(
                "virtual.trace: the file is not the one that this run began with: put that back, or start a new run"
            )
        self._resumed = {int(client): (number, attempt, at) for client, (number, attempt, at) in kept["asked"].items()}


@lru_cache(maxsize=4)
def _answer_bytes(manifest: str) -> int:
    """Of the tensors of an answer. A round's tasks have one manifest."""
    read = read_manifest(manifest)
    return predicted_bytes(read.tensors[name] for name in read.uploaded())
