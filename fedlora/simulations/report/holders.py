"""Who holds what: the partition, drawn and as a table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.simulations.report.charts import COLOURS, Chart, stacked_bars
from fedlora.words import counted

FILE = "partition.json"
"""Where a run's folder keeps the partition table, so that a report can be written again without the data."""
_SHOWN = 60
_DRAWN = 30


@dataclass(frozen=True)
class Cell:
    """A count, and its share (0 to 1) of the table's largest count."""

    count: int
    share: float


@dataclass(frozen=True)
class Holders:
    """The table of a partition. counts: one row of cells a client, one column a label (none without labels)."""

    summary: str
    labels: Sequence[str]
    clients: Sequence[int]
    rows: Sequence[int]
    counts: Sequence[Sequence[Cell]]
    chart: Chart | None
    hidden: int


def as_mapping(table: object) -> Mapping[str, Any]:
    """A partition table, dataclass or mapping, as a mapping with `rows` and maybe `clients`, `counts` and `labels`."""
    if dataclasses.is_dataclass(table) and not isinstance(table, type):
        return dataclasses.asdict(table)
    if isinstance(table, Mapping):
        return table
    raise TypeError(f"a partition table is a dataclass or a mapping, not {type(table).__name__}")


def save(table: object, folder: Path) -> None:
    """Keeps the table in a run's folder."""
    found = as_mapping(table)
    kept = {key: found.get(key) for key in ("clients", "rows", "counts", "labels")}
    (folder / FILE).write_text(json.dumps(kept, default=lambda value: value.tolist()), encoding="utf-8")


def load(folder: Path) -> Mapping[str, Any] | None:
    """The table that `save` kept, if there is one."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def holders(table: object) -> Holders:
    """What the page shows of a partition: all clients, or the first of many."""
    found = as_mapping(table)
    rows = [int(n) for n in found["rows"]]
    raw = found.get("counts")
    counts = [[int(n) for n in row] for row in raw] if raw is not None else [[] for _ in rows]
    width = max((len(row) for row in counts), default=0)
    labels = [str(name) for name in found.get("labels") or range(width)][:width]
    clients = int(found.get("clients") or len(rows))
    most = max((n for row in counts for n in row), default=0) or 1
    return Holders(
        summary=_summary(rows, clients),
        labels=labels,
        clients=range(min(len(rows), _SHOWN)),
        rows=rows[:_SHOWN],
        counts=[[Cell(n, n / most) for n in row] for row in counts[:_SHOWN]],
        chart=_chart(rows, labels, counts),
        hidden=max(0, clients - _SHOWN),
    )


def _summary(rows: Sequence[int], clients: int) -> str:
    if not rows:
        return "No client holds any rows."
    ordered = sorted(rows)
    middle = ordered[len(ordered) // 2]
    who = counted(clients, "client") if clients == len(rows) else f"The first {len(rows):,} of {clients:,} clients"
    return f"{who} hold {sum(rows):,} rows: from {ordered[0]:,} to {ordered[-1]:,}, median {middle:,}."


def _chart(rows: Sequence[int], labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Chart | None:
    """Bars where they can be told apart; beyond that the table's shading shows the same."""
    if not rows or len(rows) > _DRAWN or len(labels) > COLOURS:
        return None
    names = [str(client) for client in range(len(rows))]
    if not labels:
        return stacked_bars("Rows of each client", names, ["rows"], [[n] for n in rows])
    return stacked_bars("Rows of each client, by label", names, labels, counts)
