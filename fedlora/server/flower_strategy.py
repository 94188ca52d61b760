"""The one adapter between fedlora's strategies and Flower: any of them becomes a `flwr.serverapp.strategy.Strategy`."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerBase

from fedlora.adapters.manifest import Role
from fedlora.config.schema import RunConfig
from fedlora.config.site_rules import FEW, undisguised
from fedlora.errors import QuorumError, RunError
from fedlora.privacy.central import BOUND, CentralMechanism, central_source, mechanism_for, release_round
from fedlora.server.admission import Expected, Verdict, refused
from fedlora.server.asking import Asking
from fedlora.server.cohort import draw_cohort
from fedlora.server.folding import Folding, InOrder, Rules
from fedlora.server.judging import evenly, judged
from fedlora.server.receipts import ReceiptBook
from fedlora.server.records import Outcome, RosterRow, RoundRecord
from fedlora.strategies.base import State, Strategy, global_tensors
from fedlora.wire import Answer, Common, predicted_bytes, to_record

log = logging.getLogger(__name__)

Taken = Callable[[int, Verdict], Verdict]
"""What is left of a client's verdict once it is taken."""


class FlowerStrategy(FlowerBase):
    """Runs a fedlora strategy under Flower's hooks.

    Under central DP the strategy sees, instead of the clients' updates, one that moves the state by their noised mean.

    state: the method's state after the last aggregated round. record: what happened in that round (without metrics of
    evaluations). The arrays that Flower passes around are `state.shared`, as a record.
    """

    def __init__(
        self,
        method: Strategy,
        state: State,
        config: RunConfig,
        run: str,
        *,
        book: ReceiptBook | None = None,
        base_digest: str = "",
        labels: tuple[str, ...] | None = None,
        tokenizer_digest: str = "",
    ) -> None:
        """book: where receipts for clients' privacy ledgers are, under local DP. The others: see `Common`."""
        self.method = method
        self.state = state
        self.config = config
        self.run = run
        self.record = RoundRecord(0, {}, ())
        self._asked: dict[int, int] = {}
        self._central = mechanism_for(method, config)
        self._book = book
        common = Common(labels, tokenizer_digest, base_digest)
        self._asking = Asking(method, state, config, run, common, book)

    @property
    def cohort(self) -> tuple[int, ...]:
        """The clients that were asked in the round that was begun last, in ascending order."""
        return tuple(self._asked.values())

    def restore(self, record: RoundRecord) -> None:
        """Goes on after the committed `record`: central DP clips to the bound that it left."""
        if self._central is not None:
            self._central = self._central.with_bound(record.metrics.get(BOUND, self._central.bound))

    def acknowledge(self) -> None:
        """The rounds so far are durable: clients' ledgers get their receipts with the next task."""
        if self._book is not None:
            self._book.acknowledge()

    def summary(self) -> None:
        """Logs what runs."""
        log.info("strategy %s: %s", self.method.name, self.method.summary)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the round's cohort, in client order."""
        del arrays, config
        nodes = self.nodes(grid)
        self._asked = {nodes[client]: client for client in draw_cohort(self.config, server_round)}
        return self.messages(server_round, self._asked, self.state)

    def nodes(self, grid: Grid) -> Sequence[int]:
        """The node of each client, in the order of their numbers. Raises RunError if `grid` has too few."""
        nodes, clients = in_order(grid.get_node_ids()), self.config.federation.clients
        if len(nodes) < clients:
            raise RunError(
                f"the engine has {len(nodes)} nodes, but federation.clients={clients}:"
                " start as many nodes, or lower federation.clients"
            )
        return nodes

    def messages(self, server_round: int, asked: Mapping[int, int], state: State) -> list[Message]:
        """The tasks of a round that begins at `state`, for `asked`: node → client."""
        return self._asking.messages(server_round, asked, state)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admits, folds in client order, finishes the round.

        Raises RunError if fewer than `federation.min_reports` updates were admitted; the state is then unchanged. Not
        under central DP: how many report is private, and a round without any is one of noise.
        """
        if self._central is not None or self.config.federation.sites:
            self.conclude(server_round, self._verdicts(server_round, replies, whole))
        else:  # counted in as they come: a cohort's updates need not be in memory together
            folding = self._folding(server_round)
            in_order = InOrder(list(self._asked.values()), folding)
            self.conclude(server_round, self._verdicts(server_round, replies, in_order.take), folding=folding)
        return to_record(self.state.shared), MetricRecord(dict(self.record.metrics))

    def conclude(
        self, server_round: int, found: Mapping[int, Verdict], waiting: str = "", folding: Folding | None = None
    ) -> None:
        """Ends a round with what became of its clients: folds, finishes, and writes `record`.

        waiting: who has not ended, for an error's text. folding: where the updates are counted in already. Raises as
        `aggregate_train` does.
        """
        self._note_heads(found)
        self._asking.forget([client for client, verdict in found.items() if verdict.answer is None])
        verdicts = [found[client] for client in sorted(found)]
        answers = [verdict.answer for verdict in verdicts if verdict.answer is not None]
        roster = [self._with_bytes_down(verdict.row) for verdict in verdicts]
        self.record = self._account(server_round, roster)
        if self._central is None:
            self._require(answers, roster, waiting)
            answers = evenly(answers)
            done = folding or self._folded(server_round, answers)
            self.state, metrics = done.finish(answers)
        else:
            metrics = self._fold_noised(self._central, answers)
        self.record = replace(self.record, metrics=metrics)

    def expected(self, server_round: int, state: State) -> Expected:
        """What an answer must fit in a round that begins at `state`."""
        return Expected(
            self.run,
            server_round,
            state.manifest,
            global_tensors(state),
            self.config.federation,
            private=self.config.privacy.local,
        )

    def _verdicts(self, server_round: int, replies: Iterable[Message], taken: Taken) -> dict[int, Verdict]:
        expected = self.expected(server_round, self.state)
        found: dict[int, Verdict] = {}
        for reply in replies:
            client = self._asked.get(reply.metadata.src_node_id)
            if client is None or client in found:
                log.warning("an answer from node %s was not asked for: ignored", reply.metadata.src_node_id)
                continue
            found[client] = taken(client, judged(reply, client, expected))
        lost = "no answer came before the round's deadline (federation.timeout)"
        for client in self._asked.values():
            if client not in found:
                found[client] = taken(client, refused(client, Outcome.LOST, lost))
        return found

    def _note_heads(self, found: Mapping[int, Verdict]) -> None:
        for client, verdict in found.items():
            if self._book is not None and verdict.answer is not None and verdict.answer.head is not None:
                self._book.note(client, verdict.answer.head)

    def _with_bytes_down(self, row: RosterRow) -> RosterRow:
        return replace(row, bytes_down=self._asking.down[row.client].nbytes)

    def _account(self, server_round: int, roster: list[RosterRow]) -> RoundRecord:
        downs = [self._asking.down[row.client] for row in roster]
        manifest = self.state.manifest
        head_up = [name for name in manifest.uploaded() if manifest.tensors[name].role is Role.HEAD]
        reported = sum(row.outcome is Outcome.REPORTED for row in roster)
        return RoundRecord(
            round=server_round,
            metrics={},
            roster=roster,
            bytes_up=sum(row.bytes_up for row in roster),
            bytes_down=sum(down.nbytes for down in downs),
            bytes_once=sum(down.once for down in downs),
            bytes_up_head=reported * predicted_bytes(manifest.tensors[name] for name in head_up),
            bytes_down_head=sum(down.head for down in downs),
        )

    def _require(self, answers: list[Answer], roster: list[RosterRow], waiting: str) -> None:
        least, why = needed(self.config)
        if len(answers) < least:
            reasons = [f"client {row.client}: {row.reason}" for row in roster if row.reason]
            raise QuorumError(
                f"round {self.record.round}: {len(answers)} of {len(roster)} updates were admitted, fewer than"
                f" {why}={least} ({'; '.join([*reasons, waiting] if waiting else reasons)})"
            )

    def _folding(self, server_round: int) -> Folding:
        rules = Rules(self.config.federation.weighting == "samples", measured_in(self.config, server_round))
        return Folding(self.method, self.state, rules)

    def _folded(self, server_round: int, answers: list[Answer]) -> Folding:
        folding = self._folding(server_round)
        for answer in answers:
            folding.add(answer)
        return folding

    def _fold_noised(self, mechanism: CentralMechanism, answers: list[Answer]) -> dict[str, float]:
        """What is told of the round is released: no training loss, no aggregation error."""
        before, source = self.state, central_source(self.config, "noise", self.record.round)
        released = release_round(mechanism, before, (answer.tensors for answer in answers), source)
        partial = self.method.fold(before, self.method.begin(before), released.update)
        self.state, metrics = self.method.finish(before, partial)
        self._central = released.following
        return {**metrics, **released.metrics}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """None: clients measure the received model on their held-out rows while they train."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate; see `configure_evaluate`."""
        del server_round, replies
        return None


def in_order(nodes: Iterable[int]) -> Sequence[int]:
    """The nodes in ascending order. A range stays one: virtual clients are as many as you like."""
    return nodes if isinstance(nodes, range) and nodes.step > 0 else sorted(nodes)


def measured_in(config: RunConfig, number: int) -> bool:
    """Whether a round is measured: every `eval.every`-th is, and the last."""
    return number % config.eval.every == 0 or number == config.federation.rounds


def whole(client: int, verdict: Verdict) -> Verdict:
    """All of it: the updates are needed together."""
    del client
    return verdict


def needed(config: RunConfig) -> tuple[int, str]:
    """How many updates a round needs to be released, and the setting that says so."""
    if undisguised(config) and config.federation.min_reports < FEW:
        return FEW, "what hides a single site (federation.release_few)"
    return config.federation.min_reports, "federation.min_reports"
