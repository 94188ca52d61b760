"""Virtual time: a Grid around the engine's Grid of virtual clients, whose messages take the time of a simulated clock.

What becomes of a work is known when it is asked for (`fedlora.simulations.course`). A client that would be late, has
dropped out or is away is not trained: its message goes no further, it keeps what it had, and under local DP it spends
nothing.
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedlora.config.schema import RunConfig
from fedlora.flower_internals import SERVER_NODE_ID, Run, stamp
from fedlora.server.admission import LATE_CODE, LOST_CODE
from fedlora.server.clock import VIRTUAL_SECONDS
from fedlora.server.committing import Desk
from fedlora.simulations.clock import VirtualClock
from fedlora.simulations.engines import Engine
from fedlora.simulations.forecast import Forecast, Timed
from fedlora.simulations.virtual import VirtualGrid
from fedlora.wire import declined_reason

NOT_TRAINED = "it was not trained"
NOT_NEEDED = f"the round had what it needed (federation.over_selection) before this answer; {NOT_TRAINED}"


def in_virtual_time(engine: Engine, grid: VirtualGrid, config: RunConfig) -> Engine:
    """`engine`, which is one around `grid`, in the virtual time that `config` describes.

    Raises ConfigError if the trace cannot be read.
    """
    forecast = Forecast(config)
    timed = TimedGrid(grid, forecast, VirtualClock(forecast), config)
    return replace(engine, grid=timed, ask=timed.ask, desk=Desk(timed.withdraw, timed.present), clock=timed.clock)


class TimedGrid(Grid):
    """A Grid whose messages take virtual time. Questions before round 1 take none.

    clock: that of the run, which begins at 0.
    """

    def __init__(self, grid: VirtualGrid, forecast: Forecast, clock: VirtualClock, config: RunConfig) -> None:
        self._grid, self._forecast, self.clock = grid, forecast, clock
        self._enough = config.federation.cohort if config.federation.over_selection > 1 else None
        # Under local DP nobody trains whose update may still be withdrawn: that would be spent in vain.
        self._ahead = 0 if config.privacy.local else (config.engine.workers or 1) - 1

    def set_run(self, run: Run) -> None:
        """Takes over Flower's description of the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node (Flower has deprecated this in favour of `Message(...)`)."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in the order of the clients."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Asks each message's client now; returns ids with which the replies can be pulled when it is time."""
        return [self._opened(self._forecast.of(message, self.clock.now())) for message in messages]

    def _opened(self, work: Timed) -> str:
        message_id = stamp(work.message)
        self.clock.open[message_id] = work
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that are there by now and were not pulled yet. Now they are trained."""
        works, now = self.clock.open, self.clock.now()
        ready = [i for i in message_ids if i in works and works[i].course.ends <= now]
        return [self._pulled(works.pop(message_id)) for message_id in ready]

    def _pulled(self, work: Timed) -> Message:
        if work.course.lost:
            return _error(work, LOST_CODE, f"{work.course.lost}; {NOT_TRAINED}")
        coming = sorted(
            (each for each in self.clock.open.values() if not each.course.lost), key=lambda each: each.place
        )
        for each in (work, *coming[: self._ahead]):
            if each.begun is None:
                (each.begun,) = self._grid.push_messages([each.message])
        return _timed(self._grid.wait_for(str(work.begun)), work)

    def withdraw(self, message_ids: Iterable[str], reason: str) -> None:
        """Ends the works of pushed messages. Who was trained ahead keeps what it had."""
        del reason
        works = [self.clock.open.pop(message_id) for message_id in message_ids]
        self._grid.forget([work.begun for work in works if work.begun is not None])

    def present(self) -> Container[int]:
        """The nodes whose clients are there now. Each is looked up when it is asked for."""
        return _There(self._forecast, self.clock.now())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """A reply to each message; `timeout` in virtual seconds."""
        return self.ask(messages, timeout)()

    def ask(self, messages: Iterable[Message], timeout: float | None = None) -> Callable[[], Iterable[Message]]:
        """Asks each message's client now. What it returns, called, gives all replies; after the last the round is over.

        Without over-selection they come in the order of the messages, those of who does not answer in time first.
        """
        messages = list(messages)
        if any(message.metadata.message_type != MessageType.TRAIN for message in messages):
            return self._grid.ask(messages, None)
        now = self.clock.now()
        deadline = math.inf if timeout is None else now + timeout
        works = [self._forecast.of(message, now) for message in messages]
        sitting = Sitting.of(works, deadline, self._enough)
        collect = self._grid.ask([work.message for work in sitting.first], None)
        return lambda: self._replies(sitting, collect)

    def _replies(self, sitting: "Sitting", collect: Callable[[], Iterable[Message]]) -> Iterator[Message]:
        for work in sitting.lost:
            yield _error(work, LOST_CODE, sitting.reason(work))
        works, rest, answered = sitting.first, sitting.rest, list[Timed]()
        while works:
            for work, reply in zip(works, collect(), strict=True):
                if _is_answer(reply):
                    answered.append(work)
                yield _timed(reply, work)
            missing = sitting.enough - len(answered)
            works, rest = _in_client_order(rest[:missing]), rest[missing:]
            collect = self._grid.ask([work.message for work in works], None)
        for work in rest:
            yield _error(work, LATE_CODE, NOT_NEEDED)
        self.clock.jump(sitting.end(answered))


@dataclass(frozen=True)
class Sitting:
    """A round that waits for its cohort, and what is known of it beforehand.

    lost: who gives no answer before the `deadline`. first: who is waited for, in client order: as many as are `enough`,
    the first to be ready. rest: who comes after them, in the order of their coming.
    """

    deadline: float
    enough: int
    asked: Sequence[Timed]
    lost: Sequence[Timed]
    first: Sequence[Timed]
    rest: Sequence[Timed]

    @classmethod
    def of(cls, works: Sequence[Timed], deadline: float, enough: int | None) -> "Sitting":
        """The round of `works`. enough: answers that it waits for; None: all."""
        lost, coming = list[Timed](), list[Timed]()
        for work in sorted(works, key=lambda work: work.place):
            (lost if work.course.lost or work.course.ends > deadline else coming).append(work)
        wanted = len(works) if enough is None else min(enough, len(works))
        return cls(deadline, wanted, works, lost, _in_client_order(coming[:wanted]), coming[wanted:])

    def end(self, answered: Sequence[Timed]) -> float:
        """When it is over, which is when enough have answered, or everybody has ended, or at the deadline."""
        ends = answered if len(answered) >= self.enough else self.asked
        return max((min(work.course.ends, self.deadline) for work in ends), default=0.0)

    def reason(self, work: Timed) -> str:
        """Why a lost one gives no answer."""
        course = work.course
        if course.lost:
            return f"{course.lost}; {NOT_TRAINED}"
        return (
            f"its answer would take {course.ends - course.asked:.4g} s, and the round's deadline came after"
            f" {self.deadline - course.asked:.4g} s (federation.timeout); {NOT_TRAINED}"
        )


def _in_client_order(works: Sequence[Timed]) -> Sequence[Timed]:
    """As other engines are asked: groups are those of a run without virtual time."""
    return sorted(works, key=lambda work: work.client)


@dataclass(frozen=True)
class _There:
    """The nodes whose clients are there at a time."""

    forecast: Forecast
    time: float

    def __contains__(self, node: object) -> bool:
        client = node - SERVER_NODE_ID - 1 if isinstance(node, int) else -1
        return self.forecast.devices.presence(client).at(self.time).there


def _is_answer(reply: Message) -> bool:
    return not reply.has_error() and declined_reason(reply.content) is None


def _timed(reply: Message, work: Timed) -> Message:
    """The reply, with what it took."""
    if not reply.has_error() and "metrics" in reply.content.metric_records:
        reply.content.metric_records["metrics"][VIRTUAL_SECONDS] = work.course.ends - work.course.asked
    return reply


def _error(work: Timed, code: int, reason: str) -> Message:
    reply = Message(Error(code=code, reason=reason), reply_to=work.message)
    stamp(reply)
    return reply
