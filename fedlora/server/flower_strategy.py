"""The one adapter between fedlora's strategies and Flower: any of them becomes a `flwr.serverapp.strategy.Strategy`."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerBase

from fedlora.adapters.manifest import Role, tensors_digest
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.server.admission import Expected, Verdict, admit, refused
from fedlora.server.aggregation_error import AggregationError, MeasuredError
from fedlora.server.cohort import draw_cohort
from fedlora.server.records import Outcome, RosterRow, RoundRecord
from fedlora.strategies.base import State, Strategy, Update, global_tensors
from fedlora.wire import Answer, TrainTask, payload_bytes, predicted_bytes, to_record, write_task

log = logging.getLogger(__name__)


class FlowerStrategy(FlowerBase):
    """Runs a fedlora strategy under Flower's hooks.

    state: the method's state after the last aggregated round. record: what happened in that round (without metrics of
    evaluations). The arrays that Flower passes around are `state.shared`, as a record.
    """

    def __init__(self, method: Strategy, state: State, config: RunConfig, run: str) -> None:
        self.method = method
        self.state = state
        self.config = config
        self.run = run
        self.record = RoundRecord(0, {}, ())
        self._digest = tensors_digest(state.fixed)
        self._once = to_record({**state.fixed, **state.local})
        self._provisioned: set[int] = set()
        self._asked: dict[int, int] = {}
        self._down: dict[int, tuple[int, int, int]] = {}

    def summary(self) -> None:
        """Logs what runs."""
        log.info("strategy %s: %s", self.method.name, self.method.summary)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each client of the round's cohort, in client order."""
        del arrays, config
        federation = self.config.federation
        nodes = sorted(grid.get_node_ids())
        if len(nodes) < federation.clients:
            raise RunError(
                f"the engine has {len(nodes)} nodes, but federation.clients={federation.clients}:"
                " start as many nodes, or lower federation.clients"
            )
        cohort = draw_cohort(self.config.seed, server_round, federation.clients, federation.cohort)
        self._asked = {nodes[client]: client for client in cohort}
        shared: dict[int, ArrayRecord] = {}
        return [self._message(server_round, node, client, shared) for node, client in self._asked.items()]

    def _message(self, server_round: int, node: int, client: int, shared: dict[int, ArrayRecord]) -> Message:
        tensors = self.method.plan(self.state, client)
        if id(tensors) not in shared:  # a plan that is the same for everyone is serialised once
            shared[id(tensors)] = to_record(tensors)
        arrays = shared[id(tensors)]
        once = None if client in self._provisioned else self._once
        self._down[client] = self._bytes_down(arrays, once)
        self._provisioned.add(client)
        task = TrainTask(self.run, server_round, client, self.config, self.state.manifest, tensors, None, self._digest)
        content = write_task(task, arrays, once)
        return Message(content, node, MessageType.TRAIN, group_id=str(server_round))

    def _bytes_down(self, arrays: ArrayRecord, once: ArrayRecord | None) -> tuple[int, int, int]:
        head = [name for name in arrays if self.state.manifest.tensors[name].role is Role.HEAD]
        in_all, of_head = payload_bytes(arrays, arrays), payload_bytes(arrays, head)
        return in_all, of_head, 0 if once is None else payload_bytes(once, once)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admits, folds in client order, finishes the round.

        Raises RunError if fewer than `federation.min_reports` updates were admitted; the state is then unchanged.
        """
        verdicts = self._verdicts(server_round, replies)
        answers = [verdict.answer for verdict in verdicts if verdict.answer is not None]
        roster = [self._with_bytes_down(verdict.row) for verdict in verdicts]
        self.record = self._account(server_round, roster)
        self._require(answers, roster)
        metrics = self._fold(answers)
        self.record = replace(self.record, metrics=metrics)
        return to_record(self.state.shared), MetricRecord(dict(metrics))

    def _verdicts(self, server_round: int, replies: Iterable[Message]) -> list[Verdict]:
        expected = Expected(
            self.run, server_round, self.state.manifest, global_tensors(self.state), self.config.federation
        )
        found: dict[int, Verdict] = {}
        for reply in replies:
            client = self._asked.get(reply.metadata.src_node_id)
            if client is None or client in found:
                log.warning("an answer from node %s was not asked for: ignored", reply.metadata.src_node_id)
                continue
            found[client] = admit(reply, client, expected)
        lost = "no answer came before the round's deadline (federation.timeout)"
        for client in self._asked.values():
            found.setdefault(client, refused(client, Outcome.LOST, lost))
        self._provisioned -= {client for client, verdict in found.items() if verdict.answer is None}
        return [found[client] for client in sorted(found)]

    def _with_bytes_down(self, row: RosterRow) -> RosterRow:
        return replace(row, bytes_down=self._down[row.client][0])

    def _account(self, server_round: int, roster: list[RosterRow]) -> RoundRecord:
        downs = [self._down[row.client] for row in roster]
        manifest = self.state.manifest
        head_up = [name for name in manifest.uploaded() if manifest.tensors[name].role is Role.HEAD]
        reported = sum(row.outcome is Outcome.REPORTED for row in roster)
        return RoundRecord(
            round=server_round,
            metrics={},
            roster=roster,
            bytes_up=sum(row.bytes_up for row in roster),
            bytes_down=sum(down[0] for down in downs),
            bytes_once=sum(down[2] for down in downs),
            bytes_up_head=reported * predicted_bytes(manifest.tensors[name] for name in head_up),
            bytes_down_head=sum(down[1] for down in downs),
        )

    def _require(self, answers: list[Answer], roster: list[RosterRow]) -> None:
        least = self.config.federation.min_reports
        if len(answers) < least:
            reasons = "; ".join(f"client {row.client}: {row.reason}" for row in roster if row.reason)
            raise RunError(
                f"round {self.record.round}: {len(answers)} of {len(roster)} updates were admitted, fewer than"
                f" federation.min_reports={least} ({reasons})"
            )

    def _fold(self, answers: list[Answer]) -> dict[str, float]:
        before = self.state
        partial = self.method.begin(before)
        error = AggregationError.begin(before)
        for answer in answers:
            update = Update(answer.client, answer.tensors, self._weight(answer))
            partial = self.method.fold(before, partial, update)
            error = error.fold(update)
        self.state, metrics = self.method.finish(before, partial)
        return {**metrics, "train_loss": _weighted_loss(answers), **_error_metrics(error.finish(self.state))}

    def _weight(self, answer: Answer) -> float:
        return float(answer.samples) if self.config.federation.weighting == "samples" else 1.0

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


def _error_metrics(error: MeasuredError | None) -> dict[str, float]:
    if error is None:  # clients keep a factor to themselves: there is no error to tell
        return {}
    return {"aggregation_error": error.value, "aggregation_error_estimated": float(error.estimated)}


def _weighted_loss(answers: list[Answer]) -> float:
    rows = sum(answer.samples for answer in answers)
    return sum(answer.samples * answer.metrics.get("loss", 0.0) for answer in answers) / rows
