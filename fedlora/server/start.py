"""What happens before round 1: the first state, for which a method may ask clients for noised sketches."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, Tensors, TensorSpec
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.server.admission import Expected, admit
from fedlora.server.records import RoundRecord
from fedlora.strategies.base import Setup, State, Strategy, sketch_name
from fedlora.wire_start import SketchTask, write_sketch_task

Ask = Callable[[Iterable[Message], float | None], Callable[[], Iterable[Message]]]


def first_state(
    method: Strategy, setup: Setup, config: RunConfig, run: str, ask: Ask, grid: Grid
) -> tuple[State, RoundRecord]:
    """The state before round 1, and round 0's record: who was asked for it, and what that took.

    Raises StrategyError as `Strategy.start` does, RunError if no client gave what was asked for.
    """
    asked: list[RoundRecord] = []

    def sketch(width: int) -> Tensors:
        mean, record = ask_for_sketches(method.manifest(setup), setup, width, config, run, ask, grid)
        asked.append(record)
        return mean

    if config.privacy.local:
        setup = replace(setup, sketch=sketch)
    state = method.start(setup)
    return state, asked[0] if asked else RoundRecord(0, {}, ())


def ask_for_sketches(
    manifest: Manifest, setup: Setup, width: int, config: RunConfig, run: str, ask: Ask, grid: Grid
) -> tuple[Tensors, RoundRecord]:
    """The uniform mean of all clients' noised sketches, `width` columns a module; and the record of asking."""
    nodes = sorted(grid.get_node_ids())[: config.federation.clients]
    messages = [
        Message(write_sketch_task(SketchTask(run, client, config, manifest, width)), node, MessageType.QUERY)
        for client, node in enumerate(nodes)
    ]
    clients = {node: client for client, node in enumerate(nodes)}
    rules = config.federation.model_copy(update={"max_update_norm": None})  # a sketch is no ΔW
    expected = Expected(run, 0, sketch_manifest(manifest, setup, width), {}, rules, private=True)
    verdicts = [
        admit(reply, clients[reply.metadata.src_node_id], expected)
        for reply in ask(messages, config.federation.timeout)()
    ]
    answers = [verdict.answer for verdict in verdicts if verdict.answer is not None]
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
