"""A round loop whose clients and clock a test decides: no model, no network, no waiting."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedlora.config.schema import RunConfig
from fedlora.flower_internals import Run, empty_run, identify, stamp
from fedlora.server import clock as clocks
from fedlora.server.admission import LOST_CODE
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.committing import Desk, Links
from fedlora.server.events import Event
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import RoundRecord
from fedlora.server.rounds import RoundLoop
from fedlora.strategies.base import State
from fedlora.strategies.fedavg import FedAvg
from fedlora.wire import Answer, TrainTask, read_task, write_answer, write_declined
from tests.strategies.worlds import setup, start
from tests.tiny import tiny_config

NEVER = 10**9


@dataclass(frozen=True)
class Turn:
    """What a client does with one work: how many ticks it takes, and how it ends.

    how: "reports", "declines", "fails", "is lost", or "replays" (its answer names another round).
    """

    ticks: int = 1
    how: str = "reports"


Script = Callable[[int, int], Turn]
"""Of a client and the round that it is asked in."""


def change(task: TrainTask) -> dict[str, np.ndarray]:
    """What a client adds to what it was sent: always the same for a client and round."""
    rng = np.random.default_rng([task.client, task.round])
    return {name: rng.standard_normal(task.tensors[name].shape) for name in task.manifest.uploaded()}


class BareGrid(Grid):
    """What every Grid of so many clients has: its run and its nodes."""

    def __init__(self, clients: int) -> None:
        identify(1)
        self.clients = clients
        self._run = empty_run(1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(2, 2 + self.clients)


class ScriptedGrid(BareGrid):
    """Clients that follow a script. `ticks` is the time."""

    def __init__(self, clients: int, script: Script) -> None:
        super().__init__(clients)
        self.script, self.ticks = script, 0
        self.asked: list[tuple[int, int]] = []
        self.withdrawn: dict[str, str] = {}
        self.most = 0
        self._works: dict[str, tuple[Message, TrainTask, int]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            task = read_task(message.content)
            self.asked.append((task.client, task.round))
            ids.append(stamp(message))
            self._works[ids[-1]] = (message, task, self.ticks + self.script(task.client, task.round).ticks)
        self.most = max(self.most, len(self._works))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        done = [i for i in message_ids if i in self._works and self._works[i][2] <= self.ticks]
        return [self._reply(*self._works.pop(i)[:2]) for i in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids = list(self.push_messages(messages))
        self.ticks += 100 if timeout is None else int(timeout)
        return [reply for i in ids for reply in self.pull_messages([i])]

    def withdraw(self, message_ids: Iterable[str], reason: str) -> None:
        for message_id in message_ids:
            self._works.pop(message_id, None)
            self.withdrawn[message_id] = reason

    def _reply(self, message: Message, task: TrainTask) -> Message:
        reply = _REPLIES[self.script(task.client, task.round).how](message, task)
        stamp(reply)
        return reply


def _reported(message: Message, task: TrainTask) -> Message:
    tensors = {name: task.tensors[name] + delta for name, delta in change(task).items()}
    answer = Answer(task.run, task.round, task.client, tensors, 1 + task.client, {"loss": 1.0})
    return Message(write_answer(answer), reply_to=message)


def _replayed(message: Message, task: TrainTask) -> Message:
    return _reported(message, replace(task, round=task.round - 1))


_REPLIES: dict[str, Callable[[Message, TrainTask], Message]] = {
    "reports": _reported,
    "declines": lambda message, task: Message(RecordDict(write_declined("not today")), reply_to=message),
    "fails": lambda message, task: Message(Error(code=2, reason="ValueError"), reply_to=message),
    "is lost": lambda message, task: Message(Error(code=LOST_CODE, reason="gone"), reply_to=message),
    "replays": _replayed,
}


class Committed:
    """Drives the round loop that `loop` makes, and goes on with what another one has committed."""

    committed: list[Checkpoint]

    def loop(self, state: State) -> RoundLoop:
        """The loop that begins at a state."""
        raise NotImplementedError

    def run(self) -> Self:
        """A new run, to its end."""
        loop = self.loop(first_state())
        loop.start(RoundRecord(0, {}, ()))
        loop.run(0)
        return self

    def resume(self, earlier: Self) -> Self:
        """Goes on with what `earlier` has committed."""
        self.committed = list(earlier.committed)
        last = self.committed[-1]
        loop = self.loop(last.state)
        loop.resume(last, lambda number: self.committed[number].state)
        loop.run(last.round)
        return self

    @property
    def records(self) -> list[RoundRecord]:
        """Of the committed rounds after round 0."""
        return [checkpoint.record for checkpoint in self.committed[1:]]


@dataclass
class Scripted(Committed):
    """One run: its loop, what it committed and told."""

    config: RunConfig
    grid: ScriptedGrid
    present: Callable[[], Sequence[int]] | None = None
    stop: Callable[[], bool] = lambda: False
    committed: list[Checkpoint] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    tidied: int = 0

    def loop(self, state: State) -> RoundLoop:
        method = FedAvg()
        strategy = FlowerStrategy(method, state, self.config, "run-1")
        desk = Desk(self.grid.withdraw, self.present, self._tidy)
        links = Links(
            grid=self.grid,
            ask=lambda messages, timeout: lambda: self.grid.send_and_receive(messages, timeout=timeout),
            measure=lambda state, followed: dict,
            ahead=True,
            commit=self.committed.append,
            kept=dict,
            emit=self.events.append,
            stop=lambda: self.stop(),
            desk=desk,
        )
        return RoundLoop(strategy, self.config, links)

    def _tidy(self) -> None:
        self.tidied += 1


def first_state() -> State:
    """In float64, so that arithmetic can be compared exactly."""
    return start(FedAvg(), setup())


def scripted(script: Script, *, sites: bool = True, **federation: Any) -> Scripted:
    """A run of buffered rounds, of six clients with four at work if not said otherwise."""
    settings: dict[str, Any] = {"clients": 6, "cohort": 4, "rounds": 4, "buffered": True} | federation
    names = [f"site-{number}" for number in range(settings["clients"])] if sites else []
    config = tiny_config(Path("model"), Path("data.csv"), federation={**settings, "sites": names})
    return Scripted(config, ScriptedGrid(config.federation.clients, script))


def ticking(monkeypatch: pytest.MonkeyPatch, run: Scripted) -> Scripted:
    """`run` with its grid's ticks for seconds."""

    def sleep(seconds: float) -> None:
        run.grid.ticks += 1

    clock = SimpleNamespace(monotonic=lambda: float(run.grid.ticks), sleep=sleep)
    monkeypatch.setattr(clocks, "time", clock)
    return run


def replayed(run: Scripted) -> list[dict[str, np.ndarray]]:
    """The states that FedBuff's formula gives for what the rosters say was counted, with weights by samples."""
    states = [dict(run.committed[0].state.shared)]
    manifest, config = run.committed[0].state.manifest, run.config.federation
    for record in run.records:
        now, total, weights = states[-1], dict.fromkeys(manifest.uploaded(), 0.0), 0.0
        for row in record.roster:
            if row.outcome == "reported":
                age = int(row.metrics["staleness"])
                begun = record.round - age
                task = SimpleNamespace(client=row.client, round=begun, tensors=now, manifest=manifest)
                weight = 1.0 + row.client
                weights += weight
                for name, delta in change(task).items():  # type: ignore[arg-type]
                    total[name] = total[name] + weight * (1 + age) ** -config.staleness * delta
        states.append({name: now[name] + total[name] / weights if name in total else now[name] for name in now})
    return states


def check_states(run: Scripted) -> None:
    """The committed states are those of the formula."""
    for checkpoint, expected in zip(run.committed, replayed(run), strict=True):
        for name, array in expected.items():
            np.testing.assert_allclose(checkpoint.state.shared[name], array, rtol=1e-12, atol=1e-12)


def check_rosters(run: Scripted) -> None:
    """Each client once in a round; each of its works counted once; nothing too old."""
    counted: Counter[tuple[int, int]] = Counter()
    for record in run.records:
        assert len({row.client for row in record.roster}) == len(record.roster)
        for row in record.roster:
            assert row.outcome == "reported" or row.reason
            if row.outcome == "reported":
                assert row.metrics["staleness"] <= run.config.federation.max_staleness
                counted[row.client, record.round - int(row.metrics["staleness"])] += 1
    assert set(counted.values()) <= {1}
