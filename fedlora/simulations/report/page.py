"""The HTML page of one run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import StoreError
from fedlora.privacy.account import read_account
from fedlora.server.participation import warning
from fedlora.server.records import RunHistory, RunInfo, RunStatus
from fedlora.simulations.report import holders as partition
from fedlora.simulations.report.curves import metric_of, run_charts, virtual_seconds
from fedlora.simulations.report.render import render
from fedlora.simulations.report.roster import MEANINGS, SIGNS, Trouble, matrix, troubles
from fedlora.words import bytes_text, counted, number, seconds_text, spoken


@dataclass(frozen=True)
class Figure:
    """A key figure: its name, its value, and a remark in small print."""

    name: str
    value: str
    remark: str = ""


def write_report(history: RunHistory, path: Path, *, partition_table: object = None) -> Path:
    """Writes one self-contained HTML page about a run: no script, nothing from elsewhere; returns `path`.

    partition_table: who holds what, a `fedlora.data.table.PartitionTable` or a mapping with the same names. A given
    table is kept in the run's folder, and read from there when none is given, so that a report can be written again
    without the data.

    Raises StoreError if the page cannot be written or the run's configuration is no JSON.
    """
    try:
        if partition_table is not None and history.run.folder.is_dir():
            partition.save(partition_table, history.run.folder)
        table = partition.load(history.run.folder) if partition_table is None else partition_table
        return render("run.html", path, **_contents(history, table))
    except OSError as error:
        raise StoreError(f"cannot write the report {path}: {error}; free some space, or name another file") from error


def _contents(history: RunHistory, table: object | None) -> dict[str, Any]:
    found = troubles(history)
    return {
        "run": history.run,
        "sentence": outcome_sentence(history),
        "figures": key_figures(history),
        "troubles": found,
        "privacy": read_account(history.run.folder),
        "charts": run_charts(history),
        "holders": None if table is None else partition.holders(table),
        "matrix": matrix(history),
        "signs": [(outcome, SIGNS[outcome], MEANINGS[outcome]) for outcome in SIGNS],
        "config": flat_config(history.run),
    }


def outcome_sentence(history: RunHistory) -> str:
    """One sentence: how the run ended and how good the model is."""
    run = history.run
    rounds = f"{run.rounds_done} of {counted(run.rounds, 'round')}"
    endings = {
        RunStatus.FINISHED: f"{run.strategy} finished {counted(run.rounds_done, 'round')}",
        RunStatus.QUEUED: f"{run.strategy} waits for its turn; it has committed {rounds}",
        RunStatus.RUNNING: f"{run.strategy} has committed {rounds}",
        RunStatus.STOPPED: f"{run.strategy} was stopped after {rounds}",
        RunStatus.FAILED: f"{run.strategy} failed after {rounds}",
    }
    name, value, split = _quality(history)
    reached = f"; its {name} on the {split} split is {number(value)}" if value is not None else ""
    reason = f": {run.reason.rstrip('.')}" if run.reason and run.status is not RunStatus.FINISHED else ""
    absent = warning(history)
    return f"{absent}{' ' if absent else ''}{endings[run.status]}{reason}{reached}."


def key_figures(history: RunHistory) -> list[Figure]:
    """The figures at the top of the page."""
    rounds = history.rounds
    name, value, split = _quality(history)
    up, down = sum(r.bytes_up for r in rounds), sum(r.bytes_down for r in rounds)
    up_head, down_head = sum(r.bytes_up_head for r in rounds), sum(r.bytes_down_head for r in rounds)
    once = sum(r.bytes_once for r in rounds)
    figures = [
        Figure(f"{split} {name}", number(value), _loss_remark(history, split)),
        Figure("rounds", f"{history.run.rounds_done} / {history.run.rounds}"),
        _clients(history, troubles(history)),
        Figure("sent up", bytes_text(up), _head_remark(up_head)),
        Figure("sent down", bytes_text(down), _head_remark(down_head)),
        Figure("sent once", bytes_text(once), "at clients’ first rounds, beside what is sent down" if once else ""),
        Figure("time", seconds_text(sum(r.seconds for r in rounds)), "all rounds, with evaluation"),
    ]
    times = virtual_seconds(rounds)
    virtual = Figure("virtual time", seconds_text(max(times.values(), default=0.0)), "what the clients took")
    return [*figures, virtual] if times else figures


def flat_config(run: RunInfo) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration by section: (section, [(dotted key, value as JSON)])."""
    try:
        config = json.loads(run.config)
    except ValueError as error:
        raise StoreError(f"the configuration of run {run.id} in the store is no JSON: {error}") from error
    sections = [("run", {k: v for k, v in config.items() if not isinstance(v, dict)})]
    sections += [(key, value) for key, value in config.items() if isinstance(value, dict)]
    return [(name, list(_leaves(values, "" if name == "run" else name))) for name, values in sections]


def _leaves(values: Mapping[str, Any], prefix: str) -> Sequence[tuple[str, str]]:
    leaves: list[tuple[str, str]] = []
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and value:
            leaves += _leaves(value, dotted)
        else:
            leaves.append((dotted, json.dumps(value, ensure_ascii=False)))
    return leaves


def _quality(history: RunHistory) -> tuple[str, float | None, str]:
    """The task's metric in words, its final value, and the split that it is of."""
    metric = metric_of(history.run, history.rounds)
    tested = history.run.summary.get(f"test_{metric}")
    if tested is not None:
        return spoken(metric), tested, "test"
    seen = [r.metrics[f"validation_{metric}"] for r in history.rounds if f"validation_{metric}" in r.metrics]
    return spoken(metric), seen[-1] if seen else None, "validation"


def _loss_remark(history: RunHistory, split: str) -> str:
    loss = history.run.summary.get(f"{split}_loss")
    return "" if loss is None else f"loss {number(loss)}"


def _head_remark(head: int) -> str:
    return f"{bytes_text(head)} of it the head" if head else "no head among it"


def _clients(history: RunHistory, found: Sequence[Trouble]) -> Figure:
    asked = {row.client for record in history.rounds for row in record.roster}
    bad = {trouble.client for trouble in found}
    remark = f"{counted(len(bad), 'client')} with trouble" if bad else "every answer counted" if asked else ""
    return Figure("clients asked", str(len(asked)), remark)
