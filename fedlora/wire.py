"""What travels between server and client: the content of Flower messages, written and read in one place.

A task (server → client) holds
    arrays   the tensors of the round (`Delivery.ROUND`)
    once     the tensors that a client gets once (`Delivery.ONCE`, and first values of `Delivery.LOCAL`), the first time
    task     run, round, client, the experiment and the manifest as JSON, the digest of the fixed tensors, and what
             the server and its clients must have in common (`Common`)
An answer (client → server) holds
    arrays   the trained tensors that travel
    metrics  `num-examples`, and what the client measured
    answer   run, round and client, repeated; whether the owner keeps the number of rows; under local DP also where
             the client's ledger stands
Or, if the client will not take part,
    declined the reason

Nothing read here is trusted: `read_tensors` checks names, shapes and dtypes against the manifest before it decodes
a byte, and NumPy decodes without pickle.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora.adapters.manifest import Manifest, Tensors
from fedlora.flower_internals import contents, filled
from fedlora.link import limits
from fedlora.wire_known import known_tensors
from fedlora.wire_tensors import FRAME_BYTES, WireError, payload_bytes, predicted_bytes, read_tensors, to_record
from fedlora.wire_work import (
    Common,
    Work,
    find_record,
    read_config,
    read_facts,
    read_manifest,
    readdressed,
    record_of,
    write_facts,
)

__all__ = [
    "FRAME_BYTES",
    "SAMPLES",
    "TASK",
    "Answer",
    "Common",
    "LedgerHead",
    "TrainTask",
    "WireError",
    "Work",
    "declined_reason",
    "payload_bytes",
    "predicted_bytes",
    "read_answer",
    "read_config",
    "read_manifest",
    "read_task",
    "read_task_facts",
    "read_tensors",
    "readdressed",
    "task_content",
    "to_record",
    "write_answer",
    "write_declined",
    "write_task",
    "write_task_facts",
]

SAMPLES = "num-examples"
"""Flower's usual name for the number of training rows behind an update."""

TASK = "task"
WITHHELD = "samples-withheld"

DECLINED = "declined"
MOST_REASON = limits.TEXT
"""Characters of a client's reason that are kept."""

_HEX = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, kw_only=True)
class TrainTask(Work):
    """One client's work in one round, as it is sent.

    once: `None` where the client already has those tensors. fixed_digest: SHA-256 of the fixed tensors, which the
    client compares with what it holds before it trains.
    """

    tensors: Tensors
    once: Tensors | None
    fixed_digest: str


@dataclass(frozen=True)
class LedgerHead:
    """Where a client's privacy ledger stands: its id, how many entries it has, the hash of the last."""

    ledger: str
    length: int
    digest: str


@dataclass(frozen=True)
class Answer:
    """A client's answer: its trained tensors, the rows it trained on, and its measurements.

    samples: under local DP always 1, as the count is private. head: of its ledger, under local DP. withheld: whether
    `samples` is 1 because the owner keeps the count; then it cannot be a weight.
    """

    run: str
    round: int
    client: int
    tensors: Tensors
    samples: int
    metrics: Mapping[str, float]
    head: LedgerHead | None = None
    withheld: bool = False


def write_task(task: TrainTask, arrays: ArrayRecord, once: ArrayRecord | None) -> RecordDict:
    """The content of a task's message; the records are passed in so that a cohort can share them."""
    return task_content(write_task_facts(task), arrays, once)


def write_task_facts(task: TrainTask) -> ConfigRecord:
    """What a task's message says beside its tensors; `readdressed` makes another client's of it."""
    return write_facts(task, **{"fixed-digest": task.fixed_digest})


def task_content(facts: ConfigRecord, arrays: ArrayRecord, once: ArrayRecord | None) -> RecordDict:
    """The content of a task's message, of its records."""
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {"arrays": arrays, TASK: facts}
    if once is not None:
        records["once"] = once
    return filled(RecordDict(), records)


def read_task(content: RecordDict) -> TrainTask:
    """The task in a message's content.

    Raises WireError if it is incomplete or contradicts its own manifest.
    """
    arrays, once = (find_record(content, name, ArrayRecord) for name in ("arrays", "once"))
    if arrays is None:
        raise WireError("the task's message has no 'arrays'")
    facts = _task_facts(content)
    return TrainTask(
        **facts,
        tensors=known_tensors(arrays, facts["manifest"]),
        once=None if once is None else known_tensors(once, facts["manifest"]),
    )


def read_task_facts(content: RecordDict) -> TrainTask:
    """The task in a message whose arrays are not there yet: it holds no tensors.

    Raises WireError if it is incomplete or cannot be read.
    """
    return TrainTask(**_task_facts(content), tensors={}, once=None)


def _task_facts(content: RecordDict) -> dict[str, Any]:
    record = record_of(content, TASK)
    if "fixed-digest" not in record:
        raise WireError("the task's message has no 'fixed-digest'")
    return {**read_facts(record), "fixed_digest": str(record["fixed-digest"])}


def write_answer(answer: Answer) -> RecordDict:
    """The content of an answer's message."""
    metrics = _metric_record({SAMPLES: answer.samples, **answer.metrics})
    identity = filled(ConfigRecord(), {"run": answer.run, "round": answer.round, "client": answer.client})
    if answer.withheld:
        identity[WITHHELD] = True
    if answer.head is not None:
        identity["ledger"] = answer.head.ledger
        identity["ledger-length"] = answer.head.length
        identity["ledger-digest"] = answer.head.digest
    return filled(RecordDict(), {"arrays": to_record(answer.tensors), "metrics": metrics, "answer": identity})


def _metric_record(values: dict[str, float]) -> MetricRecord:
    """As Flower makes it, which looks at each value in several ways. Raises TypeError for what is no number."""
    usual = all(type(value) is float or type(value) is int for value in values.values())
    return filled(MetricRecord(), values) if usual else MetricRecord(values)  # type: ignore[arg-type]


def write_declined(reason: str) -> RecordDict:
    """The content of the message with which a client says no."""
    return RecordDict({DECLINED: ConfigRecord({"reason": reason})})


def declined_reason(content: RecordDict) -> str | None:
    """Why the client said no, fit to be stored and shown; None if it did not."""
    record = find_record(content, DECLINED, ConfigRecord)
    return None if record is None else limits.shown(str(record.get("reason")), MOST_REASON)


def read_answer(content: RecordDict, manifest: Manifest) -> Answer:
    """The answer in a message's content, its tensors exactly those that the manifest says are uploaded.

    Raises WireError naming the first thing that is not as it must be.
    """
    arrays = find_record(content, "arrays", ArrayRecord)
    if arrays is None:
        raise WireError("the answer has no 'arrays' record")
    measured = find_record(content, "metrics", MetricRecord)
    if measured is None:
        raise WireError("the answer has no 'metrics' record")
    identity = find_record(content, "answer", ConfigRecord)
    if identity is None:
        raise WireError("the answer does not say which run, round and client it belongs to")
    metrics = dict(contents(measured))
    samples = metrics.pop(SAMPLES, None)
    if not isinstance(samples, int):
        raise WireError(f"{SAMPLES!r} is {samples!r}, not a whole number")
    return Answer(
        run=str(identity.get("run")),
        round=_whole_number(identity, "round"),
        client=_whole_number(identity, "client"),
        tensors=read_tensors(arrays, manifest.expected),
        samples=samples,
        metrics=_measured(metrics),
        head=_ledger_head(identity),
        withheld=bool(identity.get(WITHHELD, False)),
    )


def _measured(metrics: Mapping[str, object]) -> dict[str, float]:
    """The numbers among them. Raises WireError for too many, or a name that must not go into a roster or a log."""
    if len(metrics) > limits.METRICS:
        raise WireError(f"{len(metrics)} metrics came; at most {limits.METRICS} are read")
    for name in metrics:
        if len(name) > limits.NAME or not name.isprintable():
            raise WireError(f"the metric {name[:60]!r} has a name that is too long, or cannot be printed")
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def _ledger_head(identity: ConfigRecord) -> LedgerHead | None:
    if "ledger" not in identity:
        return None
    found = LedgerHead(
        str(identity["ledger"]), _whole_number(identity, "ledger-length"), str(identity.get("ledger-digest"))
    )
    if not (_HEX.fullmatch(found.ledger) and _HEX.fullmatch(found.digest) and found.length >= 0):
        raise WireError("the answer's ledger head is no ledger's: its id and hash must be hexadecimal")
    return found


def _whole_number(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int):
        raise WireError(f"the answer's {key!r} is {value!r}, not a whole number")
    return value
