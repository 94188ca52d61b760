"""Runs in virtual time whose clients answer at once: no model, no waiting; the time is the simulation's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message

from fedlora.config.schema import RunConfig
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.committing import Links
from fedlora.server.events import Event
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import RosterRow
from fedlora.server.rounds import RoundLoop
from fedlora.simulations.engines import Engine
from fedlora.simulations.forecast import Forecast
from fedlora.simulations.timed import in_virtual_time
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid
from fedlora.strategies.base import State
from fedlora.strategies.fedavg import FedAvg
from fedlora.wire import Answer, read_task, write_answer
from tests.server.scripted import Committed, change
from tests.tiny import tiny_config


class KilledError(BaseException):
    """As SIGKILL: nothing is tidied up."""


def virtual_config(federation: dict[str, Any] | None = None, /, seed: int = 0, **virtual: Any) -> RunConfig:
    """Six clients, four a round, four rounds of one step of one record, which takes a client of speed 1 a second."""
    settings = {"clients": 6, "cohort": 4, "rounds": 4, **(federation or {})}
    train = {"steps": 1, "batch": 1}
    section = {"sample_seconds": 1.0, **virtual}
    return tiny_config(Path("m"), Path("d.csv"), federation=settings, virtual=section, train=train, seed=seed)


@dataclass
class TimedRun(Committed):
    """One run, what it committed and whom it trained. dies_after: commits after which it is killed."""

    config: RunConfig
    dies_after: int | None = None
    fails: frozenset[int] = frozenset()
    committed: list[Checkpoint] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    trained: list[tuple[int, int]] = field(default_factory=list)

    def answer(self, message: Message, context: Context) -> Message:
        """What a client does."""
        task = read_task(message.content)
        self.trained.append((task.client, task.round))
        if task.client in self.fails:
            raise ValueError("this one always fails")
        tensors = {name: task.tensors[name] + delta for name, delta in change(task).items()}
        content = write_answer(Answer(task.run, task.round, task.client, tensors, 1 + task.client, {"loss": 1.0}))
        return Message(content, reply_to=message)

    def loop(self, state: State) -> RoundLoop:
        strategy = FlowerStrategy(FedAvg(), state, self.config, "run-1")
        grid = VirtualGrid(InProcess(Clients(self.answer)), self.config.federation.clients)  # type: ignore[arg-type]
        engine = Engine(grid, grid.ask, lambda state, split, followed: dict, ahead=True)
        timed = in_virtual_time(engine, grid, self.config)
        self.forecast = timed.clock._forecast  # type: ignore[attr-defined]
        links = Links(
            grid=timed.grid,
            ask=timed.ask,
            measure=lambda state, followed: dict,
            ahead=True,
            commit=self._commit,
            kept=dict,
            emit=self.events.append,
            stop=lambda: False,
            desk=timed.desk,
            clock=timed.clock,
        )
        return RoundLoop(strategy, self.config, links)

    def _commit(self, checkpoint: Checkpoint) -> None:
        self.committed.append(checkpoint)
        if self.dies_after is not None and len(self.committed) > self.dies_after:
            raise KilledError

    @property
    def times(self) -> list[float]:
        """Virtual seconds at the end of each round."""
        return [record.metrics["virtual_seconds"] for record in self.records]

    def rows(self, number: int) -> dict[int, RosterRow]:
        """The roster of a round, by client."""
        return {row.client: row for row in self.records[number - 1].roster}


def busy_of(config: RunConfig, client: int) -> float:
    """Seconds that a client which stays takes for one work, by its own device, of computation alone."""
    return (
        config.train.steps
        * config.train.batch
        * float(config.virtual.sample_seconds or 0)
        / device_speed(config, client)
    )


def device_speed(config: RunConfig, client: int) -> float:
    """The speed of a client."""
    return Forecast(config).devices.of(client).speed


def same_bits(one: TimedRun, two: TimedRun) -> None:
    """Both have committed the same rounds: states, rosters and times."""
    assert one.times == two.times
    for left, right in zip(one.committed, two.committed, strict=True):
        assert left.record.roster == right.record.roster
        for name, array in left.state.shared.items():
            assert np.asarray(array).tobytes() == np.asarray(right.state.shared[name]).tobytes()
