"""Who may see what. Under central DP who took part is secret, and so is what tells it: that is the operator's alone.

The guarantee's smaller ε holds for those who do not know the rosters (see `fedlora.privacy.central`), and bytes and
seconds of a round tell how many reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedlora.server.dashboard.people import Role
from fedlora.server.views.model import CheckpointRow, Comparison, Group, RunRow, Series

PRIVATE_COLUMNS = frozenset(
    ("seconds", "committed_at", "bytes_up", "bytes_down", "bytes_once", "bytes_total", "reported", "asked")
)
"""Of a run under central DP: for the operator."""

_PRIVATE_FIGURES = ("bytes_", "seconds")
_EVENT_FIELDS: Mapping[str, frozenset[str]] = {
    "run_started": frozenset(("name", "strategy", "rounds", "clients", "cohort")),
    "run_resumed": frozenset(("name", "strategy", "round", "rounds", "clients", "cohort")),
    "round_committed": frozenset(("round", "rounds", "metrics")),
    "run_finished": frozenset(("round", "rounds")),
    "run_stopped": frozenset(("round", "rounds")),
    "run_failed": frozenset(("round", "rounds", "error")),
}
"""What those who may not see rosters get of an event, beside its name, run and time; of others nothing."""

_HELD_BACK = "the reason is for operators: under central DP it may say who took part"


def may_see_clients(role: Role, privacy: str) -> bool:
    """Whether rosters, matrix, spread, events about clients and per-round bytes of a run of that privacy are shown.

    Never to a collaborator, who sees its own site through `Views.mine`.
    """
    return role >= (Role.OPERATOR if privacy == "central" else Role.VIEWER)


def shown_row(role: Role, row: RunRow) -> RunRow:
    """The row without what `role` may not see."""
    if may_see_clients(role, row.privacy):
        return row
    return replace(
        row,
        health_reason=_HELD_BACK if row.health_reason else "",
        participation="",
        reason=_HELD_BACK if row.reason else "",
        bytes_up=None,
        bytes_down=None,
        bytes_once=None,
        expected_seconds=None,
        eta_seconds=None,
    )


def shown_series(role: Role, privacy: str, series: Series) -> Series:
    """The columns that `role` may see."""
    return series if may_see_clients(role, privacy) else without(series, PRIVATE_COLUMNS)


def without(series: Series, names: frozenset[str]) -> Series:
    """The columns but `names`."""
    return Series(*({k: v for k, v in part.items() if k not in names} for part in _parts(series)))


def shown_checkpoints(role: Role, privacy: str, found: Sequence[CheckpointRow]) -> Sequence[CheckpointRow]:
    """Without their times, where those are not for `role`. Files have the size of the model, whoever took part."""
    if may_see_clients(role, privacy):
        return found
    return [replace(row, committed_at=None) for row in found]


def shown_comparison(role: Role, found: Comparison) -> Comparison:
    """The comparison without what `role` may not see of each of its runs."""
    privacy = {row.id: row.privacy for row in found.rows}
    hidden = {run for run, kind in privacy.items() if not may_see_clients(role, kind)}
    if not hidden:
        return found
    return replace(
        found,
        rows=[shown_row(role, row) for row in found.rows],
        series={run: shown_series(role, privacy[run], series) for run, series in found.series.items()},
        groups=[_shown_group(group, hidden) for group in found.groups],
    )


def shown_event(role: Role, privacy: str, event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A line of a run's log as `role` may see it; None: not at all."""
    if may_see_clients(role, privacy):
        return event
    allowed = _EVENT_FIELDS.get(str(event.get("event")))
    if allowed is None or role < Role.VIEWER:
        return None
    return {name: value for name, value in event.items() if name in allowed or name in ("event", "run", "time")}


def _shown_group(group: Group, hidden: set[str]) -> Group:
    if not hidden & set(group.runs):
        return group
    figures = {name: figure for name, figure in group.figures.items() if not name.startswith(_PRIVATE_FIGURES)}
    return replace(group, figures=figures)


def _parts(series: Series) -> tuple[Mapping[str, Any], ...]:
    return series.columns, series.units, series.labels
