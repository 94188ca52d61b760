"""Buffered asynchronous rounds: nobody waits for the slowest, and what comes late still counts.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, arXiv:2106.06639. Up to
`federation.cohort` sites are at work at a time. A round is over when `federation.buffer` updates were admitted; the
next state is the mean of them, each moved from the state that it was begun at (`fedlora.strategies.staleness`). Who is
still at work then goes on. A site is asked in a round at most once, and not in one in which its work has ended.
"""

import logging
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedlora.config.buffering import buffer_size
from fedlora.config.schema import RunConfig
from fedlora.errors import StoreError
from fedlora.server.admission import Expected, Verdict, refused
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.cohort import asking_order, to_ask
from fedlora.server.committing import Links, at_work
from fedlora.server.events import RoundStarted
from fedlora.server.flower_strategy import FlowerStrategy, needed
from fedlora.server.judging import as_of, judged, too_old
from fedlora.server.records import Outcome
from fedlora.strategies.base import State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Open:
    """A work that has not ended. begun: the round that it was asked in, and the state that it begins at."""

    client: int
    begun: Expected


@dataclass(frozen=True)
class _Connected:
    """The clients that are connected, by their nodes: `present`, or all if that is None."""

    nodes: Sequence[int]
    present: Container[int] | None

    def __contains__(self, client: object) -> bool:
        return isinstance(client, int) and (self.present is None or self.nodes[client] in self.present)


class Buffered:
    """`Rounds` that are over when enough updates are there, whoever they are from."""

    def __init__(self, strategy: FlowerStrategy, config: RunConfig, links: Links, settle: Callable[[], None]) -> None:
        """settle: called when sites are at work, to commit the round before."""
        self.strategy, self.config, self.links, self._settle = strategy, config, links, settle
        self._size = buffer_size(config)
        self._nodes = strategy.nodes(links.grid)
        self._open: dict[str, Open] = {}
        self._ended: dict[int, Verdict] = {}
        self._now = strategy.expected(0, strategy.state)
        self._order: Sequence[int] = ()
        self._leftovers = False
        if self._size == config.federation.clients:
            log.warning("federation.buffer = %d is all clients: each round waits for the slowest of them", self._size)

    @property
    def at_work(self) -> Mapping[int, int]:
        """See `Rounds`."""
        return {work.client: work.begun.round for work in self._open.values()}

    def resume(self, checkpoint: Checkpoint, state_after: Callable[[int], State]) -> None:
        """Asks those who were at work for the same works again: who has finished one sends it, or it is here already.

        They were not counted in the checkpoint's round, or before: that was committed with the list of them.
        """
        by_round: dict[int, list[int]] = {}
        for client, number in sorted(at_work(checkpoint).items()):
            by_round.setdefault(number, []).append(client)
        for number, clients in sorted(by_round.items()):
            try:
                self._ask(clients, number, state_after(number - 1))
            except StoreError as error:
                names = ", ".join(map(str, clients))
                log.warning("the works of round %d, of clients %s, are given up: %s", number, names, error)
        self._leftovers = True

    def attempt(self, number: int) -> None:
        """See `Rounds`. Another attempt at a round keeps what was admitted, and asks anew who was refused."""
        if number != self._now.round:
            self._begin(number)
        else:
            self._ended = {client: found for client, found in self._ended.items() if found.answer is not None}
        self._fill()
        self._clear_leftovers()
        self._settle()
        rounds, cohort = self.config.federation.rounds, tuple(sorted(self.at_work))
        self.links.emit(RoundStarted(run=self.strategy.run, round=number, rounds=rounds, cohort=cohort))
        self._collect()
        if number == rounds and self._counted >= needed(self.config)[0]:
            self._end_run()
        self.strategy.conclude(number, self._ended, self._waiting())

    def close(self) -> None:
        """See `Rounds`."""
        self._withdraw(list(self._open), "the run has ended, or was stopped")

    @property
    def _counted(self) -> int:
        return sum(verdict.answer is not None for verdict in self._ended.values())

    def _begin(self, number: int) -> None:
        """A new round; what is too old for it is not waited for any more."""
        self._now, self._ended = self.strategy.expected(number, self.strategy.state), {}
        self._order = asking_order(self.config, number)
        oldest = number - self.config.federation.max_staleness
        old = [message_id for message_id, work in self._open.items() if work.begun.round < oldest]
        self._take(old)  # it may have ended otherwise
        self._refuse([message_id for message_id in old if message_id in self._open])

    def _refuse(self, message_ids: Iterable[str]) -> None:
        for message_id in message_ids:
            work = self._open[message_id]
            reason = too_old(work.begun, self._now)
            self._ended[work.client] = refused(work.client, Outcome.LATE, reason)
            self._withdraw([message_id], reason)

    def _end_run(self) -> None:
        """The last round takes what is there, and names who was still at work."""
        self._take(list(self._open))
        reason = "the run's last round was over before its update was there"
        for work in self._open.values():
            self._ended[work.client] = refused(work.client, Outcome.LATE, reason)
        self._withdraw(list(self._open), reason)

    def _withdraw(self, message_ids: list[str], reason: str) -> None:
        for message_id in message_ids:
            del self._open[message_id]
        if message_ids:
            self.links.desk.withdraw(message_ids, reason)

    def _fill(self) -> None:
        """Asks idle sites, so that as many as `federation.cohort` are at work."""
        chosen = to_ask(self._idle(), set(self.at_work), self._there(), self.config.federation.cohort)
        self._ask(chosen, self._now.round, self.strategy.state)

    def _idle(self) -> Iterator[int]:
        """Who may be asked, the first first."""
        busy = set(self.at_work)
        return (client for client in self._order if client not in busy and client not in self._ended)

    def _awaited(self) -> Collection[int]:
        """The idle ones if there is a place for one: who of them comes is asked."""
        there = self._there()
        full = sum(client in there for client in self.at_work) >= self.config.federation.cohort
        return () if full else list(self._idle())

    def _there(self) -> Container[int]:
        """The clients that are connected."""
        present = self.links.desk.present
        return _Connected(self._nodes, None if present is None else present())

    def _ask(self, clients: list[int], number: int, state: State) -> None:
        if not clients:
            return
        begun = self._now if number == self._now.round else self.strategy.expected(number, state)
        messages = self.strategy.messages(number, {self._nodes[client]: client for client in clients}, state)
        for message_id, client in zip(self.links.grid.push_messages(messages), clients, strict=True):
            self._open[message_id] = Open(client, begun)

    def _clear_leftovers(self) -> None:
        """Once after a restart, when the works that are open are known: answers that were counted before go."""
        if self._leftovers:
            self.links.desk.tidy()
            self._leftovers = False

    def _collect(self) -> None:
        """Waits until the buffer is full, the time is up, or nobody is left to wait for."""
        timeout, clock = self.config.federation.timeout, self.links.clock
        deadline = None if timeout is None else clock.now() + timeout
        while True:
            self._take(list(self._open), self._size)
            if self._counted >= self._size:
                return
            self._fill()
            if not self._open or (deadline is not None and clock.now() >= deadline):
                return
            clock.look(deadline, self._awaited)

    def _take(self, message_ids: list[str], enough: int | None = None) -> None:
        """Judges what has ended of these works, one after another, until `enough` updates count."""
        counted = self._counted
        for message_id in self.links.clock.in_order(message_ids):
            if enough is not None and counted >= enough:
                return
            for reply in self.links.grid.pull_messages([message_id]):
                work = self._open.pop(message_id)
                verdict = judged(reply, work.client, work.begun)
                self._ended[work.client] = found = as_of(verdict, work.begun, self._now)
                counted += found.answer is not None

    def _waiting(self) -> str:
        return "; ".join(f"client {client}: still at work" for client in sorted(self.at_work))
