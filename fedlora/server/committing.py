"""How a round becomes durable: measured, maybe while the next one is trained, then committed and told."""

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora.adapters.manifest import Tensors
from fedlora.config.schema import RunConfig
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.clock import KEPT, Clock, WallClock
from fedlora.server.events import ClientRefused, ClientReported, Event, RoundCommitted
from fedlora.server.flower_strategy import FlowerStrategy, measured_in
from fedlora.server.records import Outcome, RosterRow, RoundRecord
from fedlora.strategies.base import State


@dataclass(frozen=True)
class Desk:
    """What buffered rounds need beside a Grid's methods; the defaults are for one whose nodes are always there.

    withdraw: ends the works of pushed messages, for a reason that their clients are told. present: the nodes that are
    connected; None: all. tidy: deletes the answers of works that are not open.
    """

    withdraw: Callable[[Iterable[str], str], None] = lambda message_ids, reason: None  # noqa: ARG005
    present: Callable[[], Container[int]] | None = None
    tidy: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Links:
    """What a round loop is connected to.

    grid: the engine, as the strategy's hooks see it. ask: gives messages to clients; what it returns, called, gives the
    replies (waiting for them). measure: begins to measure the global model of a state, told whether training follows at
    once; what it returns, called, gives the metrics. ahead: whether it measures in the background, so that a round is
    better begun before the last one is committed. commit: makes a round durable. kept: what clients keep of their
    own, by client, where this process holds it (virtual clients). emit: takes events. stop: asked between rounds; True
    ends the loop after the round that was begun last. desk: see `Desk`. emit_many: takes several events, faster than
    one by one; None: there is no faster way. clock: what rounds, deadlines and pauses take for the time.
    """

    grid: Grid
    ask: Callable[[Iterable[Message], float | None], Callable[[], Iterable[Message]]]
    measure: Callable[[State, bool], Callable[[], Mapping[str, float]]]
    ahead: bool
    commit: Callable[[Checkpoint], object]
    kept: Callable[[], Mapping[int, Tensors]]
    emit: Callable[[Event], None]
    stop: Callable[[], bool]
    desk: Desk = field(default_factory=Desk)
    emit_many: Callable[[Sequence[Event]], None] | None = None
    clock: Clock = field(default_factory=WallClock)

    def tell(self, events: Sequence[Event]) -> None:
        """Emits all of them, in their order."""
        if self.emit_many is not None:
            self.emit_many(events)
            return
        for event in events:
            self.emit(event)


class Committer:
    """Measures and commits rounds, one after another."""

    def __init__(self, strategy: FlowerStrategy, config: RunConfig, links: Links) -> None:
        self.strategy, self.config, self.links = strategy, config, links
        self.ahead = links.ahead and may_begin_ahead(config)
        self._seconds: list[float] = []
        self._began = time.perf_counter()
        self._measuring: Callable[[], None] = lambda: None

    def take(self, record: RoundRecord, at_work: Mapping[int, int]) -> None:
        """Begins to measure the round that was aggregated last; `settle` ends it.

        at_work: the clients that still work on a round, and on which: a resumed run asks them for it again.
        """
        state, kept = self.strategy.state, self.links.kept()
        record = replace(record, metrics={**record.metrics, **self.links.clock.told()})
        metrics = self._measure(state, record.round)
        rng: dict[str, Any] = {"seed": self.config.seed, "next_round": record.round + 1}
        if at_work:
            rng[AT_WORK] = {str(client): number for client, number in at_work.items()}
        if clock := self.links.clock.kept():
            rng[KEPT] = clock

        def commit() -> None:
            self._commit(state, kept, replace(record, metrics={**record.metrics, **metrics()}), rng)

        self._measuring = commit

    def settle(self) -> None:
        """Commits the round that was taken last, if it is not yet."""
        commit, self._measuring = self._measuring, lambda: None
        commit()

    def tell_roster(self, number: int) -> None:
        """Emits an event for each client of round `number`, if that was concluded, well or not."""
        record = self.strategy.record
        if record.round == number and record.roster:
            self.links.tell([_told(self.strategy.run, number, row) for row in record.roster])

    def _measure(self, state: State, number: int) -> Callable[[], Mapping[str, float]]:
        last = number == self.config.federation.rounds
        due = self.config.eval.where != "clients" and measured_in(self.config, number)
        return self.links.measure(state, self.ahead and not last) if due else dict

    def _commit(self, state: State, kept: Mapping[int, Tensors], record: RoundRecord, rng: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        record = replace(record, seconds=now - self._began, committed_at=datetime.now(UTC))
        self._began = now
        self.links.commit(Checkpoint(record.round, state, record, kept, rng))
        if record.round:
            self._seconds.append(record.seconds)
        rounds = self.config.federation.rounds
        eta = self._eta(rounds - record.round)
        self.links.emit(RoundCommitted.of(self.strategy.run, record, rounds=rounds, eta_seconds=eta))

    def _eta(self, left: int) -> float | None:
        recent = self._seconds[-5:]
        return left * sum(recent) / len(recent) if recent else None


def _told(run: str, number: int, row: RosterRow) -> Event:
    kind = ClientReported if row.outcome is Outcome.REPORTED else ClientRefused
    return kind(run=run, round=number, row=row)


AT_WORK = "at_work"
"""In a checkpoint's `rng`: client → the round that it was asked in and still works on. Buffered rounds alone."""


def at_work(checkpoint: Checkpoint) -> dict[int, int]:
    """Client → the round that it worked on when the checkpoint was committed.

    None for one that became the start of another run, whose clients have other numbers.
    """
    noted = {int(client): int(number) for client, number in checkpoint.rng.get(AT_WORK, {}).items()}
    return {client: number for client, number in noted.items() if number <= checkpoint.round}


def may_begin_ahead(config: RunConfig) -> bool:
    """Whether a round may begin before the last one is committed.

    Not under central DP: a round whose model was sent out and that a crash then lost would be drawn anew, and so be
    released twice. Nor with sites under local DP: the lost round may come again with other updates, and what a site has
    released for the next one it releases again, byte for byte, although it began at another state. (Virtual clients
    die and come back together: their lost round comes again as it was.)
    """
    return config.privacy.name == "none" or (config.privacy.local and not config.federation.sites)
