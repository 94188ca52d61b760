"""Synthetic runs for the tests of the report and of the comparison."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunHistory, RunInfo, RunStatus

BEGAN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
BAD = {
    (3, 7): (Outcome.REJECTED, "client 7's update has a NaN in encoder.layer.0.attention.self.query.lora_B."),
    (5, 7): (Outcome.REJECTED, "client 7's update has a NaN in encoder.layer.0.attention.self.query.lora_B."),
    (6, 2): (Outcome.FAILED, "client 2 raised RuntimeError: out of memory."),
    (8, 4): (Outcome.LOST, "no answer within 30 s."),
}


def config(strategy: str, seed: int, **changes: Any) -> str:
    sections: dict[str, Any] = {
        "seed": seed,
        "name": None,
        "store": "runs",
        "output": None,
        "model": {"source": "asset", "name": "minilm-l6", "architecture": None, "train_head": True},
        "task": {"name": "text_classification", "max_length": 64},
        "data": {"name": "trec6", "partition": {"name": "dirichlet", "alpha": 0.5}},
        "adapter": {"r": 8, "scaling": 2.0, "targets": ["query", "value"]},
        "strategy": {"name": strategy},
        "train": {"lr": 0.003, "optimizer": "adamw", "steps": 10, "batch": 16},
        "federation": {"clients": 10, "cohort": 5, "rounds": 12},
    }
    return json.dumps(sections | changes)


def roster(number: int, rng: np.random.Generator, clients: int, bad: Mapping[tuple[int, int], Any]) -> list[RosterRow]:
    rows = []
    for client in sorted(rng.choice(clients, size=min(5, clients), replace=False).tolist()):
        outcome, reason = bad.get((number, client), (Outcome.REPORTED, ""))
        accuracy = float(np.clip(0.9 - 0.7 * math.exp(-number / 3) + rng.normal(0, 0.08), 0, 1))
        metrics = {"loss": 1.8 - accuracy, "holdout_accuracy": accuracy, "holdout_loss": 1.9 - 1.2 * accuracy}
        kept = metrics if outcome is Outcome.REPORTED else {}
        rows.append(RosterRow(client, outcome, reason, 300, 300_000, 310_000, 0.7, kept))
    for (bad_round, client), (outcome, reason) in bad.items():
        if bad_round == number and client not in {row.client for row in rows}:
            rows.append(RosterRow(client, outcome, reason))
    return rows


def make_history(
    strategy: str = "fedavg",
    seed: int = 0,
    *,
    folder: Path = Path("/nonexistent"),
    rounds: int = 12,
    clients: int = 10,
    bad: Mapping[tuple[int, int], Any] = BAD,
    level: float = 0.9,
    status: RunStatus = RunStatus.FINISHED,
    **changes: Any,
) -> RunHistory:
    """A plausible run: accuracy rises to about `level`; changes: whole sections of the configuration."""
    rng = np.random.default_rng(seed)
    records = [RoundRecord(0, {"validation_loss": 1.8, "validation_accuracy": 0.17}, ())]
    for number in range(1, rounds + 1):
        accuracy = level - (level - 0.17) * math.exp(-number / 2.5) + float(rng.normal(0, 0.008))
        metrics = {
            "validation_loss": 1.9 - 1.6 * accuracy,
            "validation_accuracy": accuracy,
            "train_loss": 1.7 - 1.5 * accuracy,
            "aggregation_error": 0.3 * math.exp(-number / 2.0),
            "aggregation_error_estimated": float(number > 9),
            "residual_norm": 0.02 / number,
        }
        rows = roster(number, rng, clients, bad)
        records.append(
            RoundRecord(number, metrics, rows, 1_500_000, 1_550_000, 73_728 if number == 1 else 0, 9_000, 9_300, 3.4)
        )
    summary = {"test_accuracy": level - 0.01 + float(rng.normal(0, 0.005)), "test_loss": 0.41}
    ended = BEGAN + timedelta(seconds=50)
    finished = status is RunStatus.FINISHED
    info = RunInfo(
        f"{strategy}-trec6-{seed}", f"{strategy} on trec6", status, strategy, seed, 12, rounds, folder, BEGAN,
        ended if finished else None, None, summary if finished else {}, config(strategy, seed, **changes),
        "" if finished else "fewer than 1 client reported in round 5.",
    )  # fmt: skip
    return RunHistory(info, records)


def make_partition(clients: int = 10, labels: int = 6) -> dict[str, Any]:
    names = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM", *(f"L{i}" for i in range(labels))][:labels]
    counts = np.random.default_rng(0).dirichlet([0.5] * labels, clients) * 400
    table = counts.round().astype(int)
    return {"rows": table.sum(axis=1).tolist(), "counts": table.tolist(), "labels": names}
