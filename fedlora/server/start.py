"""What happens before round 1: the first state, for which a method may ask clients for noised sketches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, Tensors, TensorSpec
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.server.admission import Expected, Verdict, admit
from fedlora.server.asking import deadline_of
from fedlora.server.receipts import ReceiptBook
from fedlora.server.records import RoundRecord
from fedlora.strategies.base import Setup, State, Strategy, sketch_name
from fedlora.wire import Common
from fedlora.wire_start import SketchTask, write_sketch_task

Ask = Callable[[Iterable[Message], float | None], Callable[[], Iterable[Message]]]


def first_state(
    method: Strategy,
    setup: Setup,
    config: RunConfig,
    run: str,
    ask: Ask,
    grid: Grid,
    *,
    book: ReceiptBook | None = None,
    common: Common | None = None,
) -> tuple[State, RoundRecord]:
    """The state before round 1, and round 0's record: who was asked for it, and what that took.

    book: where receipts for clients' privacy ledgers are. common: what clients compare with their own.

    Raises StrategyError as `Strategy.start` does, RunError if no client gave what was asked for.
    """
    asked: list[RoundRecord] = []
    asking = _Asking(config, run, ask, grid, book, common or Common())

    def sketch(width: int) -> Tensors:
        mean, record = ask_for_sketches(method.manifest(setup), setup, width, asking)
        asked.append(record)
        return mean

    if config.privacy.local:
        setup = replace(setup, sketch=sketch)
    state = method.start(setup)
    return state, asked[0] if asked else RoundRecord(0, {}, ())


@dataclass(frozen=True)
class _Asking:
    """What asking clients takes."""

    config: RunConfig
    run: str
    ask: Ask
    grid: Grid
    book: ReceiptBook | None
    common: Common

    def message(self, manifest: Manifest, width: int, client: int, node: int) -> Message:
        task = SketchTask(
            run=self.run,
            client=client,
            config=self.config,
            manifest=manifest,
            width=width,
            labels=self.common.labels,
            tokenizer_digest=self.common.tokenizer_digest,
            base_digest=self.common.base_digest,
            receipt="" if self.book is None else self.book.newest(client),
            deadline=deadline_of(self.config),
        )
        return Message(write_sketch_task(task), node, MessageType.QUERY, group_id="0")


def ask_for_sketches(manifest: Manifest, setup: Setup, width: int, asking: _Asking) -> tuple[Tensors, RoundRecord]:
    """The uniform mean of all clients' noised sketches, `width` columns a module; and the record of asking."""
    nodes = sorted(asking.grid.get_node_ids())[: asking.config.federation.clients]
    clients = {node: client for client, node in enumerate(nodes)}
    messages = [asking.message(manifest, width, client, node) for node, client in clients.items()]
    rules = asking.config.federation.model_copy(update={"max_update_norm": None})  # a sketch is no ΔW
    expected = Expected(asking.run, 0, sketch_manifest(manifest, setup, width), {}, rules, private=True)
    found: dict[int, Verdict] = {}
    for reply in asking.ask(messages, asking.config.federation.timeout)():
        client = clients.get(reply.metadata.src_node_id)
        if client is not None and client not in found:
            found[client] = admit(reply, client, expected)
    verdicts = [found[client] for client in sorted(found)]  # the mean's bits do not depend on who answered first
    answers = [verdict.answer for verdict in verdicts if verdict.answer is not None]
    for answer in answers:
        if asking.book is not None and answer.head is not None:
            asking.book.note(answer.client, answer.head)
    if not answers:
        reasons = "; ".join(f"client {verdict.row.client}: {verdict.row.reason}" for verdict in verdicts)
        raise RunError(
            f"no client gave the sketch that strategy.init=private starts from ({reasons or 'none answered'})"
        )
    names = expected.manifest.uploaded()
    mean = {
        name: np.stack([answer.tensors[name] for answer in answers]).mean(axis=0, dtype=np.float64) for name in names
    }
    roster = [verdict.row for verdict in verdicts]
    return mean, RoundRecord(0, {}, roster, bytes_up=sum(row.bytes_up for row in roster))


def sketch_manifest(manifest: Manifest, setup: Setup, width: int) -> Manifest:
    """What an answer with sketches holds: Y (d, width) and Z (k, width) of each module."""
    specs = {}
    for module, (d, k) in setup.modules.items():
        specs[sketch_name(module, "Y")] = TensorSpec((d, width), Role.B, module, True, Delivery.ROUND)
        specs[sketch_name(module, "Z")] = TensorSpec((k, width), Role.A, module, True, Delivery.ROUND)
    return Manifest(Form.LORA, width, manifest.scaling, manifest.seed, specs)
