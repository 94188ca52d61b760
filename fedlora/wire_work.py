"""What every task says before its tensors: enough for a client to say yes or no."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora.adapters.manifest import Manifest
from fedlora.config.schema import RunConfig
from fedlora.config.track import TrackConfig
from fedlora.flower_internals import contents, filled
from fedlora.wire_tensors import WireError

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


@dataclass(frozen=True)
class Common:
    """What the server and all clients of a run must have in common, as the server has it.

    labels: index = class id; None: nothing is compared (virtual clients share the server's data). tokenizer_digest,
    base_digest: SHA-256 of tokenizer or image processor, and of the base model's weights; "" is not compared.
    """

    labels: tuple[str, ...] | None = None
    tokenizer_digest: str = ""
    base_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The facts of a task for one client. round: 0 for what is asked before round 1.

    labels, tokenizer_digest, base_digest: see `Common`. receipt: the server's newest for the client's ledger, as JSON,
    or "". deadline: seconds since the epoch after which an answer does not count; None: there is none.
    """

    run: str
    round: int
    client: int
    config: RunConfig
    manifest: Manifest
    labels: tuple[str, ...] | None = None
    tokenizer_digest: str = ""
    base_digest: str = ""
    receipt: str = ""
    deadline: float | None = None


def write_facts(work: Work, **more: str | int) -> ConfigRecord:
    """The record with the facts of `work`, and with what its kind of task says beside them."""
    return ConfigRecord(
        {
            "run": work.run,
            "round": work.round,
            "client": work.client,
            "experiment": travelling(work.config).model_dump_json(),
            "manifest": work.manifest.to_json(),
            "labels": json.dumps(work.labels),
            "tokenizer-digest": work.tokenizer_digest,
            "base-digest": work.base_digest,
            "receipt": work.receipt,
            "deadline": -1.0 if work.deadline is None else work.deadline,
            **more,
        }
    )


def readdressed(record: ConfigRecord, client: int, receipt: str) -> ConfigRecord:
    """The facts in `record` for another client of the same round: all else is the same for everyone."""
    copied: ConfigRecord = record.copy()
    return filled(copied, {"client": client, "receipt": receipt})


def travelling(config: RunConfig) -> RunConfig:
    """`config` as clients get it: without where the server writes figures to, and to sites without its own paths.

    Virtual clients need those: they read the same files.
    """
    config = config.model_copy(update={"track": TrackConfig.model_validate({})})
    if not config.federation.sites:
        return config
    own = {
        "store": Path(RunConfig.model_fields["store"].default),
        "output": None,
        "model": config.model.model_copy(update={"path": None}),
        "data": config.data.model_copy(update={"path": None}),
        "privacy": config.privacy.model_copy(update={"ledgers": None}),
    }
    return config.model_copy(update=own)


def record_of(content: RecordDict, name: str) -> ConfigRecord:
    """The record `name` of a message. Raises WireError if there is none."""
    found = find_record(content, name, ConfigRecord)
    if found is None:
        raise WireError(f"the task's message has no {name!r}")
    return found


def find_record(content: RecordDict, name: str, kind: type[R]) -> R | None:
    """The record `name` of that kind; None if there is none. (Flower's own views copy all records for one look.)"""
    found = contents(content).get(name)
    return found if isinstance(found, kind) else None


def read_facts(facts: ConfigRecord) -> dict[str, Any]:
    """The fields of `Work`, by name.

    Raises WireError if one is missing or cannot be read.
    """
    record = contents(facts)
    try:
        deadline = float(str(record["deadline"]))
        return {
            "run": str(record["run"]),
            "round": int(str(record["round"])),
            "client": int(str(record["client"])),
            "config": read_config(str(record["experiment"])),
            "manifest": read_manifest(str(record["manifest"])),
            "labels": _labels(str(record["labels"])),
            "tokenizer_digest": str(record["tokenizer-digest"]),
            "base_digest": str(record["base-digest"]),
            "receipt": str(record["receipt"]),
            "deadline": None if deadline < 0 else deadline,
        }
    except KeyError as missing:
        raise WireError(f"the task's message has no {missing}") from missing
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"the task's message cannot be read: {error}") from error


@lru_cache(maxsize=4)  # they come with every task, too
def _labels(text: str) -> tuple[str, ...] | None:
    found = json.loads(text)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise WireError("the labels are no list of names")
    return tuple(found)


# The same experiment and manifest come with every task of a run: parse each text once.
@lru_cache(maxsize=4)
def read_config(text: str) -> RunConfig:
    """The experiment in `text`: data checked against the schema. No resolver runs, nothing is instantiated."""
    return RunConfig.model_validate_json(text)


@lru_cache(maxsize=4)
def read_manifest(text: str) -> Manifest:
    """The manifest in `text`."""
    return Manifest.from_json(text)
