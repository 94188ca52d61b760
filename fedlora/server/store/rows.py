"""Between the records and the rows of the tables."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import RowMapping

from fedlora.server.records import Numbers, Outcome, RosterRow, RoundRecord, RunInfo, RunStatus

_NUMBERS: TypeAdapter[Numbers] = TypeAdapter(Numbers)
_ROUND = [field.name for field in fields(RoundRecord) if field.name not in ("metrics", "roster")]
_ROSTER = [field.name for field in fields(RosterRow) if field.name not in ("metrics", "outcome")]


def figures_out(figures: Numbers) -> dict[str, float | str]:
    """Figures for a JSON column."""
    out: dict[str, float | str] = _NUMBERS.dump_python(figures, mode="json")
    return out


def figures_in(raw: Any) -> Numbers:
    """Figures from a JSON column."""
    return _NUMBERS.validate_python(raw)


def folder_out(folder: Path, store: Path) -> str:
    """A run's folder as text: relative where it is inside the store, so that a store can be moved."""
    return str(folder.relative_to(store)) if folder.is_relative_to(store) else str(folder)


def run_out(run: RunInfo, store: Path) -> dict[str, Any]:
    """The row of `run`."""
    row = {field.name: getattr(run, field.name) for field in fields(run)}
    return row | {
        "status": str(run.status),
        "folder": folder_out(run.folder, store),
        "summary": figures_out(run.summary),
    }


def run_in(row: RowMapping, store: Path) -> RunInfo:
    """The run of a row."""
    given: dict[str, Any] = dict(row)
    return RunInfo(
        **given
        | {
            "status": RunStatus(given["status"]),
            "folder": store / given["folder"],
            "summary": figures_in(given["summary"]),
        }
    )


def round_out(run: str, record: RoundRecord) -> dict[str, Any]:
    """The row of one round, without its roster."""
    row = {name: getattr(record, name) for name in _ROUND}
    return row | {"run": run, "metrics": figures_out(record.metrics)}


def roster_out(run: str, record: RoundRecord) -> list[dict[str, Any]]:
    """The rows of one round's roster."""
    return [
        {name: getattr(row, name) for name in _ROSTER}
        | {"run": run, "round": record.round, "outcome": str(row.outcome), "metrics": figures_out(row.metrics)}
        for row in record.roster
    ]


def rounds_in(rounds: Iterable[RowMapping], roster: Iterable[RowMapping]) -> Sequence[RoundRecord]:
    """The records of rows, in the order of `rounds`."""
    by_round: Mapping[int, list[RosterRow]] = defaultdict(list)
    for row in roster:
        by_round[row["round"]].append(_roster_in(row))
    return tuple(_round_in(row, tuple(by_round[row["round"]])) for row in rounds)


def _round_in(row: RowMapping, roster: Sequence[RosterRow]) -> RoundRecord:
    return RoundRecord(metrics=figures_in(row["metrics"]), roster=roster, **{name: row[name] for name in _ROUND})


def _roster_in(row: RowMapping) -> RosterRow:
    plain = {name: row[name] for name in _ROSTER}
    return RosterRow(outcome=Outcome(row["outcome"]), metrics=figures_in(row["metrics"]), **plain)
