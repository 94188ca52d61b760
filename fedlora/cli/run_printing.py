"""What `fedlora run` prints of a server's runs and clients."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli.health import alarm_of, plain
from fedlora.cli.runs import accuracy_of, age_text
from fedlora.server.participation import participation, warning
from fedlora.server.records import Outcome, RoundRecord, RunInfo
from fedlora.words import bytes_text, number

_STYLES = {"queued": "blue", "running": "cyan", "stopping": "yellow", "finished": "green", "stopped": "yellow"}
_MOST = 100  # refusals that `show` lists


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """The runs, as the server tells of them, a row each."""
    from fedlora.server.operator.client import info_of

    now = datetime.now(UTC)
    rows = [_run_row(info_of(row), row, now) for row in runs]
    return _table(("id", "name", "strategy", "status", "rounds", "test accuracy", "up", "down", "age"), rows)


def _run_row(run: RunInfo, row: Mapping[str, Any], now: datetime) -> list[Text]:
    sums = [bytes_text(row.get(name, 0)) for name in ("bytes_up", "bytes_down")]
    figures = [f"{run.rounds_done}/{run.rounds}", number(accuracy_of(run.summary)), *sums]
    return [
        *map(plain, (run.id, run.name, run.strategy)),
        _status(row),
        *map(plain, (*figures, age_text(now - run.created_at))),
    ]


def _status(row: Mapping[str, Any]) -> Text:
    word = "stopping" if row.get("stop_requested") else str(row["status"])
    return Text(word, style=_STYLES.get(word, "red"))


def clients_table(clients: Sequence[Mapping[str, Any]]) -> Table:
    """The clients, as the server tells of them, with a column for each fact of a few words that any of them has."""
    columns = [name for name in dict.fromkeys(name for row in clients for name in row) if name != "policy"]
    return _table(columns, [[_cell(row.get(name)) for name in columns] for row in clients])


def print_run(shown: Mapping[str, Any], console: Console, *, rounds: bool = True) -> None:
    """The run for a person; without its rounds where they were printed as they came."""
    from fedlora.server.operator.client import history_of

    history = history_of(shown)
    run, absent = history.run, warning(history)
    if absent:
        console.print(Text(absent, style="yellow"))
    reason = f": {run.reason}" if run.reason else ""
    console.print(Text.assemble((run.id, "bold"), "  ", plain(run.name), "  ", _status(shown["run"]), plain(reason)))
    for line in alarm_of(shown["run"], "  health     "):
        console.print(line, soft_wrap=True)
    console.print(f"  rounds     {run.rounds_done} of {run.rounds} committed")
    console.print(plain(f"  strategy   {run.strategy}, seed {run.seed}"))
    console.print(plain(f"  folder     {run.folder} (on the server)"), soft_wrap=True)
    for name, value in run.summary.items():
        console.print(plain(f"  {name:<10} {number(value)}"))
    if rounds and history.rounds:
        console.print(_rounds_table(history.rounds))
    shares = participation(history)
    if shares:
        told = ", ".join(f"{share.site} {share.counted} of {share.asked}" for share in shares)
        console.print(plain(f"  sites      counted in {told} rounds"), soft_wrap=True)
    _print_refused(history.rounds, console)


def _rounds_table(rounds: Sequence[RoundRecord]) -> Table:
    names = list(dict.fromkeys(name for record in rounds for name in record.metrics))
    rows = []
    for record in rounds:
        counted = sum(row.outcome is Outcome.REPORTED for row in record.roster)
        figures = [number(record.metrics.get(name)) for name in names]
        sums = map(bytes_text, (record.bytes_up, record.bytes_down))
        told = (str(record.round), *figures, f"{counted}/{len(record.roster)}", *sums, f"{record.seconds:.1f}")
        rows.append([plain(cell) for cell in told])
    return _table(("round", *names, "counted", "up", "down", "seconds"), rows)


def _print_refused(rounds: Sequence[RoundRecord], console: Console) -> None:
    refused = [(record.round, row) for record in rounds for row in record.roster if row.outcome is not Outcome.REPORTED]
    if not refused:
        return
    cut = f" (the last {_MOST} of {len(refused)}; --json has all)" if len(refused) > _MOST else ""
    console.print(Text(f"Who did not count, and why{cut}", style="bold"))
    rows = [
        [plain(text) for text in (str(where), str(row.client), str(row.outcome), row.reason)]
        for where, row in refused[-_MOST:]
    ]
    console.print(_table(("round", "client", "outcome", "reason"), rows))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(plain(column), overflow="fold", no_wrap=column == "id")
    for row in rows:
        table.add_row(*row)
    return table


def _cell(value: Any) -> Text:
    return plain("–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value))
