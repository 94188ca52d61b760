"""What is remembered of a run: the rows behind the CLI, the report and the dashboard."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import PlainSerializer


def json_number(value: float) -> float | str:
    """`value` for JSON, which has no NaN and no infinity: those become "nan", "inf" and "-inf"."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


Number = Annotated[float, PlainSerializer(json_number, when_used="json")]
"""A float that pydantic writes as strict JSON; reading takes the words back."""

Numbers = Mapping[str, Number]
"""Named figures, e.g. a round's metrics."""


class RunStatus(StrEnum):
    """Where a run stands. RUNNING with nobody holding its lock means that its process died: resume it.

    QUEUED: a server daemon will begin it, or go on with it, when its turn comes.
    """

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class Outcome(StrEnum):
    """What became of one client in one round."""

    REPORTED = "reported"  # its update was admitted and counted
    REJECTED = "rejected"  # its update failed the admission gate
    DECLINED = "declined"  # the client said no
    FAILED = "failed"  # the client raised an error
    LOST = "lost"  # no answer before the round's deadline
    LATE = "late"  # others had given the round what it needed


@dataclass(frozen=True)
class RosterRow:
    """One client in one round. `reason` is empty for a reported client and a full sentence otherwise.

    For the operator alone: under central DP nothing here has noise, and who took part is what makes a run cheaper.

    metrics: what the client measured, e.g. `loss`, `holdout_accuracy`. Bytes are of serialised tensors.
    """

    client: int
    outcome: Outcome
    reason: str = ""
    samples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    metrics: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """One committed round. Round 0 is the state before training (its roster is empty).

    metrics: `validation_loss`, `validation_accuracy` (or the task's metric), `train_loss`, `aggregation_error`,
    `aggregation_error_estimated` (1.0 where a sketch gave it; both in the rounds that `eval.every` names, as
    `validation_…` are), in virtual time `virtual_seconds`, and what the strategy reports. Under central DP
    `clip_bound` (the next round's C), `noise_std` and `unclipped_fraction` instead of `train_loss` and
    `aggregation_error`: only what is released. Bytes and seconds tell how many reported: they are the operator's.
    bytes_once: of tensors sent once to each client (Fed-SB's A and B), counted apart from bytes_down.
    bytes_*_head: the head's part of bytes_*.
    """

    round: int
    metrics: Numbers
    roster: Sequence[RosterRow]
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_once: int = 0
    bytes_up_head: int = 0
    bytes_down_head: int = 0
    seconds: float = 0.0
    committed_at: datetime | None = None


@dataclass(frozen=True)
class RunInfo:
    """One run. `summary` holds the final figures (`test_accuracy`, …), `config` the resolved configuration as JSON."""

    id: str
    name: str
    status: RunStatus
    strategy: str
    seed: int
    rounds: int
    rounds_done: int
    folder: Path
    created_at: datetime
    finished_at: datetime | None
    sweep: str | None
    summary: Numbers
    config: str
    reason: str = ""


@dataclass(frozen=True)
class RunHistory:
    """A run with all of its committed rounds, oldest first."""

    run: RunInfo
    rounds: Sequence[RoundRecord]
