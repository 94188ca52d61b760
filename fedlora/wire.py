"""What travels between server and client: the content of Flower messages, written and read in one place.

A task (server → client) holds
    arrays   the tensors of the round (`Delivery.ROUND`)
    once     the tensors that a client gets once (`Delivery.ONCE`, and first values of `Delivery.LOCAL`), the first time
    task     run, round, client, the experiment and the manifest as JSON, the digest of the fixed tensors
An answer (client → server) holds
    arrays   the trained tensors that travel
    metrics  `num-examples`, and what the client measured
    answer   run, round and client, repeated; under local DP also where the client's ledger stands
Or, if the client will not take part,
    declined the reason

Nothing read here is trusted: `read_tensors` checks names, shapes and dtypes against the manifest before it decodes
a byte, and NumPy decodes without pickle.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedlora.adapters.manifest import Manifest, Tensors, TensorSpec
from fedlora.config.schema import RunConfig

SAMPLES = "num-examples"
"""Flower's usual name for the number of training rows behind an update."""

DECLINED = "declined"
MOST_REASON = 1000
"""Characters of a client's reason that are kept."""

_HEX = re.compile(r"[0-9a-f]{1,64}")

FRAME_BYTES = 128
"""What Flower's serialisation (the .npy format) adds to the values of one small-rank array: its header."""


class WireError(ValueError):
    """A message is not what the manifest and the task say it must be; the text names what and why."""


@dataclass(frozen=True)
class TrainTask:
    """One client's work in one round, as it is sent.

    once: `None` where the client already has those tensors. fixed_digest: SHA-256 of the fixed tensors, which the
    client compares with what it holds before it trains. base_digest: SHA-256 of the base model's weights, for methods
    whose fixed tensors were made of them; "" is not compared. receipt: the server's newest for the client's ledger, as
    JSON, or "". deadline: seconds since the epoch after which an answer does not count; None: there is none.
    """

    run: str
    round: int
    client: int
    config: RunConfig
    manifest: Manifest
    tensors: Tensors
    once: Tensors | None
    fixed_digest: str
    base_digest: str = ""
    receipt: str = ""
    deadline: float | None = None


@dataclass(frozen=True)
class LedgerHead:
    """Where a client's privacy ledger stands: its id, how many entries it has, the hash of the last."""

    ledger: str
    length: int
    digest: str


@dataclass(frozen=True)
class Answer:
    """A client's answer: its trained tensors, the rows it trained on, and its measurements.

    samples: under local DP always 1, as the count is private. head: of its ledger, under local DP.
    """

    run: str
    round: int
    client: int
    tensors: Tensors
    samples: int
    metrics: Mapping[str, float]
    head: LedgerHead | None = None


def to_record(tensors: Tensors) -> ArrayRecord:
    """The tensors as Flower's record, in their own order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in tensors.items()})


def payload_bytes(record: ArrayRecord, names: Iterable[str]) -> int:
    """Serialised bytes of those `names` that the record holds."""
    return sum(len(record[name].data) for name in names if name in record)


def predicted_bytes(specs: Iterable[TensorSpec]) -> int:
    """The serialised bytes that `payload_bytes` will count for tensors with these specs."""
    return sum(spec.nbytes + FRAME_BYTES for spec in specs)


def write_task(task: TrainTask, arrays: ArrayRecord, once: ArrayRecord | None) -> RecordDict:
    """The content of a task's message; the records are passed in so that a cohort can share them."""
    fields = ConfigRecord(
        {
            "run": task.run,
            "round": task.round,
            "client": task.client,
            "experiment": task.config.model_dump_json(),
            "manifest": task.manifest.to_json(),
            "fixed-digest": task.fixed_digest,
            "base-digest": task.base_digest,
            "receipt": task.receipt,
            "deadline": -1.0 if task.deadline is None else task.deadline,
        }
    )
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {"arrays": arrays, "task": fields}
    if once is not None:
        records["once"] = once
    return RecordDict(records)


def read_task(content: RecordDict) -> TrainTask:
    """The task in a message's content.

    Raises WireError if it is incomplete or contradicts its own manifest.
    """
    try:
        fields = content.config_records["task"]
        config = read_config(str(fields["experiment"]))
        manifest = read_manifest(str(fields["manifest"]))
        arrays = content.array_records["arrays"]
        numbers = int(str(fields["round"])), int(str(fields["client"]))
        run, digest = str(fields["run"]), str(fields["fixed-digest"])
        receipt, deadline = str(fields["receipt"]), float(str(fields["deadline"]))
        base_digest = str(fields["base-digest"])
    except KeyError as missing:
        raise WireError(f"the task's message has no {missing}") from missing
    except (TypeError, ValueError) as error:
        raise WireError(f"the task's message cannot be read: {error}") from error
    once = content.array_records.get("once")
    return TrainTask(
        run=run,
        round=numbers[0],
        client=numbers[1],
        config=config,
        manifest=manifest,
        tensors=read_tensors(arrays, {name: manifest.tensors[name] for name in arrays if name in manifest.tensors}),
        once=None if once is None else read_tensors(once, {n: s for n, s in manifest.tensors.items() if n in once}),
        fixed_digest=digest,
        base_digest=base_digest,
        receipt=receipt,
        deadline=None if deadline < 0 else deadline,
    )


def write_answer(answer: Answer) -> RecordDict:
    """The content of an answer's message."""
    metrics = MetricRecord({SAMPLES: answer.samples, **answer.metrics})
    identity = ConfigRecord({"run": answer.run, "round": answer.round, "client": answer.client})
    if answer.head is not None:
        identity["ledger"] = answer.head.ledger
        identity["ledger-length"] = answer.head.length
        identity["ledger-digest"] = answer.head.digest
    return RecordDict({"arrays": to_record(answer.tensors), "metrics": metrics, "answer": identity})


def write_declined(reason: str) -> RecordDict:
    """The content of the message with which a client says no."""
    return RecordDict({DECLINED: ConfigRecord({"reason": reason})})


def declined_reason(content: RecordDict) -> str | None:
    """Why the client said no; None if it did not."""
    record = content.config_records.get(DECLINED)
    return None if record is None else str(record.get("reason"))[:MOST_REASON]


def read_answer(content: RecordDict, manifest: Manifest) -> Answer:
    """The answer in a message's content, its tensors exactly those that the manifest says are uploaded.

    Raises WireError naming the first thing that is not as it must be.
    """
    for kind, name in ((content.array_records, "arrays"), (content.metric_records, "metrics")):
        if name not in kind:
            raise WireError(f"the answer has no {name!r} record")
    identity = content.config_records.get("answer")
    if identity is None:
        raise WireError("the answer does not say which run, round and client it belongs to")
    metrics = dict(content.metric_records["metrics"])
    samples = metrics.pop(SAMPLES, None)
    if not isinstance(samples, int):
        raise WireError(f"{SAMPLES!r} is {samples!r}, not a whole number")
    return Answer(
        run=str(identity.get("run")),
        round=_whole_number(identity, "round"),
        client=_whole_number(identity, "client"),
        tensors=read_tensors(
            content.array_records["arrays"], {name: manifest.tensors[name] for name in manifest.uploaded()}
        ),
        samples=samples,
        metrics={name: float(value) for name, value in metrics.items() if isinstance(value, int | float)},
        head=_ledger_head(identity),
    )


def _ledger_head(identity: ConfigRecord) -> LedgerHead | None:
    if "ledger" not in identity:
        return None
    found = LedgerHead(
        str(identity["ledger"]), _whole_number(identity, "ledger-length"), str(identity.get("ledger-digest"))
    )
    if not (_HEX.fullmatch(found.ledger) and _HEX.fullmatch(found.digest) and found.length >= 0):
        raise WireError("the answer's ledger head is no ledger's: its id and hash must be hexadecimal")
    return found


def read_tensors(record: ArrayRecord, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """The record's arrays, decoded, in the order of `specs`.

    Raises WireError for a missing or unexpected name, a wrong shape or dtype, or more bytes than the shape needs.
    """
    missing, unexpected = sorted(set(specs) - set(record)), sorted(set(record) - set(specs))
    if missing:
        raise WireError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if unexpected:
        raise WireError(f"tensor {unexpected[0]!r} is not expected ({len(unexpected)} in all)")
    return {name: _decode(name, record[name], spec) for name, spec in specs.items()}


def _decode(name: str, array: Array, spec: TensorSpec) -> NDArray[Any]:
    limit = spec.nbytes + 2 * FRAME_BYTES
    if len(array.data) > limit:
        raise WireError(
            f"tensor {name!r} takes {len(array.data)} bytes; {spec.shape} {spec.dtype} needs at most {limit}"
        )
    try:
        values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError, SyntaxError) as error:
        raise WireError(f"tensor {name!r} cannot be decoded: {error}") from error
    if values.shape != spec.shape or str(values.dtype) != spec.dtype:
        raise WireError(
            f"tensor {name!r} is {values.shape} {values.dtype}; the manifest says {spec.shape} {spec.dtype}"
        )
    return values


def _whole_number(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int):
        raise WireError(f"the answer's {key!r} is {value!r}, not a whole number")
    return value


# The same experiment and manifest come with every task of a run: parse each text once.
@lru_cache(maxsize=4)
def read_config(text: str) -> RunConfig:
    """The experiment in `text`: data checked against the schema. No resolver runs, nothing is instantiated."""
    return RunConfig.model_validate_json(text)


@lru_cache(maxsize=4)
def read_manifest(text: str) -> Manifest:
    """The manifest in `text`."""
    return Manifest.from_json(text)
