"""What a finished run leaves: test figures, the PEFT adapter, the report."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedlora.adapters.export import export_adapter
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.data.table import PartitionTable, describe
from fedlora.privacy.account import Account, write_account
from fedlora.server.clock import VIRTUAL_SECONDS
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.ledgers import account_of
from fedlora.simulations.report import write_report
from fedlora.strategies.base import State, global_tensors

ADAPTER, REPORT, SUMMARY = "adapter", "report.html", "summary.json"
"""What a run's folder holds in the end, beside its checkpoints."""


def leave_results(
    store: RunStore, info: RunInfo, config: RunConfig, worker: Worker, state: State, test: Mapping[str, float]
) -> Mapping[str, float]:
    """Exports the adapter, closes the run, writes its account of privacy and the report.

    Returns the final figures, among them those of `test`.
    """
    summary = {**_totals(store, info), **test}
    account = account_of(config, info.id, store.history(info).rounds)
    write_account(info.folder, account)
    _export(info, config, worker, state, summary, account)
    (info.folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    store.finish(info, RunStatus.FINISHED, summary)
    holders = None if config.federation.sites else describe_partition(worker)  # what sites hold is theirs to tell
    write_report(store.history(info), info.folder / REPORT, partition_table=holders)
    return summary


def _totals(store: RunStore, info: RunInfo) -> dict[str, float]:
    rounds = store.history(info).rounds
    totals = {name: float(sum(getattr(r, name) for r in rounds)) for name in ("bytes_up", "bytes_down", "bytes_once")}
    totals["seconds"] = sum(r.seconds for r in rounds)
    if "aggregation_error" in rounds[-1].metrics:
        totals["aggregation_error"] = rounds[-1].metrics["aggregation_error"]
    if VIRTUAL_SECONDS in rounds[-1].metrics:
        totals[VIRTUAL_SECONDS] = rounds[-1].metrics[VIRTUAL_SECONDS]
    return totals


def may_leave(config: RunConfig, summary: Mapping[str, float]) -> Mapping[str, float]:
    """The figures that an export may hold: under central DP none that tell how many clients reported."""
    if config.privacy.name != "central":
        return summary
    return {name: value for name, value in summary.items() if not name.startswith("bytes_") and name != "seconds"}


def _export(
    info: RunInfo, config: RunConfig, worker: Worker, state: State, summary: Mapping[str, float], account: Account
) -> Path:
    return export_adapter(
        info.folder / ADAPTER,
        manifest=state.manifest,
        tensors=global_tensors(state),
        task=worker.task,
        config=config,
        summary=may_leave(config, summary),
        account=account,
    )


def describe_partition(worker: Worker, shown: int = 200) -> PartitionTable:
    """Who holds what, for at most the first `shown` clients."""
    names = worker.splits.labels
    column = None if names is None else np.asarray(worker.splits.train["label"], dtype=np.int64)
    return describe(worker.partition, column, names, shown)
