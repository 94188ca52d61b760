"""Small runs for the tests of the run store; also imported by the scripts that are killed."""

from pathlib import Path

import numpy as np

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec, factor_name, head_name
from fedlora.config.schema import RunConfig
from fedlora.seeding import stream
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.records import Outcome, RosterRow, RoundRecord
from fedlora.strategies.base import State

CLIENTS = 3


def config(**changes: object) -> RunConfig:
    """A whole configuration, with some top-level values changed."""
    raw = {
        "name": "tiny",
        "model": {"source": "config", "name": "tiny"},
        "task": {"name": "text_classification"},
        "data": {"source": "local", "name": "rows", "partition": {"name": "iid"}},
        "adapter": {},
        "strategy": {"name": "fed_sb", "init": "random"},
        "train": {},
        "federation": {"clients": CLIENTS, "cohort": 2, "rounds": 5},
        "eval": {},
        "engine": {},
    }
    return RunConfig.model_validate(raw | changes)


def record(number: int) -> RoundRecord:
    """A round in which client 0 reported and client 1 was rejected; round 0 has no roster."""
    roster = (
        RosterRow(
            0, Outcome.REPORTED, samples=20, bytes_up=100, bytes_down=200, seconds=0.5, metrics={"loss": 0.1 + 0.2}
        ),
        RosterRow(1, Outcome.REJECTED, reason="its norm 1e9 is over the bound 10", bytes_up=100, bytes_down=200),
    )
    return RoundRecord(
        round=number,
        metrics={"validation_accuracy": 0.5 + number / 100, "train_loss": 1 / (number + 1)},
        roster=roster if number else (),
        bytes_up=200 * bool(number),
        bytes_down=400 * bool(number),
        bytes_once=7 * bool(number),
        seconds=1.5,
    )


def manifest() -> Manifest:
    """One module with B·R·A and a head."""
    module = "layer.0.query"
    spec = {role: TensorSpec((4, 4), role, module, role is Role.R, Delivery.ONCE) for role in (Role.A, Role.B)}
    spec[Role.R] = TensorSpec((4, 4), Role.R, module, True, Delivery.ROUND)
    tensors = {factor_name(module, role): entry for role, entry in spec.items()}
    tensors[head_name("weight")] = TensorSpec((3, 4), Role.HEAD, "", True, Delivery.ROUND)
    return Manifest(Form.LORA_SB, 4, 2.0, 7, tensors)


def checkpoint(number: int) -> Checkpoint:
    """Round `number` of a run: every bit follows from the number, but the fixed tensors, which never change."""
    table = manifest()
    draw = stream(7, "sample", number)
    fixed = stream(7, "fixed")
    return Checkpoint(
        round=number,
        state=State(
            manifest=table,
            shared={name: draw.standard_normal(table.tensors[name].shape) for name in table.names(Delivery.ROUND)},
            fixed={name: fixed.standard_normal(table.tensors[name].shape) for name in table.names(Delivery.ONCE)},
            server={"step": np.array(number), "momentum": draw.standard_normal((4, 4)).astype(np.float32)},
        ),
        record=record(number),
        clients={client: {"local": draw.standard_normal(5)} for client in range(CLIENTS)},
        rng={"seed": 7, "round": number},
    )


def groups(point: Checkpoint) -> dict[str, dict[str, np.ndarray]]:
    """All tensors of a checkpoint."""
    state = point.state
    kept = {f"client {client}": dict(tensors) for client, tensors in point.clients.items()}
    return {"shared": dict(state.shared), "fixed": dict(state.fixed), "server": dict(state.server)} | kept


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Fails unless both hold the same bits (the time of the commit aside)."""
    left, right = groups(found), groups(expected)
    assert left.keys() == right.keys()
    for group, tensors in right.items():
        assert left[group].keys() == tensors.keys()
        for name, array in tensors.items():
            other = left[group][name]
            assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found.state.manifest == expected.state.manifest
    assert (found.round, found.rng) == (expected.round, expected.rng)
    assert (found.record.metrics, found.record.roster) == (expected.record.metrics, expected.record.roster)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
