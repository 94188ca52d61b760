"""`fedlora runs`: what the run store has."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli.health import alarm, plain
from fedlora.cli.stores import open_store
from fedlora.config.flat import flat
from fedlora.server.records import Outcome, RoundRecord, RunHistory, RunInfo
from fedlora.words import bytes_text

if TYPE_CHECKING:
    from fedlora.server.store import RunStore
    from fedlora.server.views import Views
    from fedlora.server.views.model import RunRow

INTERRUPTED = "interrupted"
DEFAULT_STORE = Path("runs")
_PIPE_WIDTH = 200  # columns where the output is no terminal: nothing is cut that a script could look for
_MOST = 100  # rows of a table of clients; runs may have thousands
_STYLES = {
    "queued": "blue",
    "running": "cyan",
    "stopping": "yellow",
    "finished": "green",
    "stopped": "yellow",
    "failed": "red",
    INTERRUPTED: "yellow",
}
_SHOWN = ("status", "bytes_up", "bytes_down", "bytes_once", "health", "health_reason")

__all__ = ["accuracy_of", "age_text", "flat", "plain", "register", "runs_app"]

runs_app = typer.Typer(name="runs", help="List, show and compare runs.", no_args_is_help=True)

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        help="The folder of the run store. A server's, HOME/runs, is read from the server's database: FEDLORA_DATABASE"
        " in the environment, else as in its server.yaml.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
RunArgument = Annotated[str, typer.Argument(help="An id or how it starts, a name, a run's folder, or `latest`.")]


def register(app: typer.Typer) -> None:
    """Adds `runs` to the command line."""
    app.add_typer(runs_app)


@runs_app.command("ls")
def list_runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the runs, newest first."""
    runs = _listing(store)
    if as_json:
        typer.echo(_json([_listed(run, row) for run, row in runs]))
        return
    console = _console()
    console.print(_list_table(runs) if runs else Text(f"no runs in {store} yet: `fedlora simulate` makes one"))
    for run, row in runs:
        for line in _wrong(run, row):
            console.print(line)


@runs_app.command("show")
def show_run(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one run: its outcome, rounds, roster, paths and configuration."""
    with open_store(store) as opened:
        history = opened.history(opened.find(run))
        row = _views(opened).run_row(history.run.id)
    if as_json:
        typer.echo(_json(_shown(history, row)))
        return
    console = _console()
    for part in _parts(history, row):
        console.print(part, soft_wrap=isinstance(part, Text))


def accuracy_of(summary: Mapping[str, float]) -> float | None:
    """The test accuracy of a summary, whatever the task calls it (`test_accuracy`, `test_token_accuracy`)."""
    return next((value for name, value in summary.items() if name.startswith("test_") and "accuracy" in name), None)


def age_text(since: timedelta) -> str:
    """How long ago, in the largest fitting unit, e.g. 3 h."""
    seconds = max(0, int(since.total_seconds()))
    steps = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    return next((f"{seconds // size} {unit}" for size, unit in steps if seconds >= size), "0 s")


def _listing(store: Path) -> "Sequence[tuple[RunInfo, RunRow]]":
    """The runs, and how they fare; nothing where nobody has run anything yet."""
    if store == DEFAULT_STORE and not store.exists():  # elsewhere a missing folder is rather a typing mistake
        return []
    with open_store(store) as opened:
        rows = {row.id: row for row in _views(opened).runs()}
        return [(run, rows[run.id]) for run in opened.list() if run.id in rows]


def _views(opened: "RunStore") -> "Views":
    """What is known of the runs without working anything out."""
    from fedlora.server.views import Views

    return Views(opened, work=None)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _dumped(kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).dump_python(value, mode="json")


def _listed(run: RunInfo, row: "RunRow") -> dict[str, Any]:
    """A run for scripts: the record without its configuration, the status as shown, its bytes, and how it fares."""
    plain_row: dict[str, Any] = _dumped(RunInfo, run)
    del plain_row["config"]
    return plain_row | {name: getattr(row, name) for name in _SHOWN}


def _shown(history: RunHistory, row: "RunRow") -> dict[str, Any]:
    return {
        "run": _listed(history.run, row),
        "paths": {name: str(path) for name, path in _paths(history)},
        "rounds": _dumped(Sequence[RoundRecord], history.rounds),
        "config": json.loads(history.run.config),
    }


def _list_table(runs: "Sequence[tuple[RunInfo, RunRow]]") -> Table:
    table = _table("id", "name", "strategy", "status", "rounds", "test accuracy", "up", "down", "once", "age")
    now = datetime.now(UTC)
    for run, row in runs:
        sums = (row.bytes_up or 0, row.bytes_down or 0, row.bytes_once or 0)
        words = (run.id, plain(run.name), plain(run.strategy), _status(row))
        figures = (f"{run.rounds_done}/{run.rounds}", _number(accuracy_of(run.summary)), *map(bytes_text, sums))
        table.add_row(*words, *figures, age_text(now - run.created_at))
    return table


def _status(row: "RunRow") -> Text:
    return Text(row.status, style=_STYLES[row.status])


def _wrong(run: RunInfo, row: "RunRow") -> Iterator[Text]:
    """What is wrong with the run's progress, if something is."""
    if row.status == INTERRUPTED:
        yield Text(_resume_hint(run), style="yellow")
    else:
        yield from alarm(run.id, row.health, row.health_reason)


def _parts(history: RunHistory, row: "RunRow") -> Iterator[Text | Table]:
    yield from _facts(history, row)
    yield _title("Rounds")
    yield _rounds_table(history.rounds)
    yield from _clients(history.rounds)
    yield from _refused(history.rounds)
    yield _title("Paths")
    yield from (Text(f"  {name:<11} {path}") for name, path in _paths(history))
    yield _title("Configuration")
    yield from (plain(f"  {line}") for line in override_lines(json.loads(history.run.config)))


def _facts(history: RunHistory, row: "RunRow") -> Iterator[Text]:
    run = history.run
    yield Text.assemble((run.id, "bold"), "  ", plain(run.name))
    reason = plain(f": {run.reason}" if run.reason else "")
    yield Text.assemble("  status      ", _status(row), reason)
    yield from (Text("  ") + line for line in _wrong(run, row))
    up, down, sent_once = row.bytes_up or 0, row.bytes_down or 0, row.bytes_once or 0
    sent = f"{bytes_text(up)} up, {bytes_text(down)} down" if history.rounds else "nothing yet"
    once = f", {bytes_text(sent_once)} once" if sent_once else ""
    ended = f", ended {run.finished_at:%Y-%m-%d %H:%M:%S}" if run.finished_at else ""
    yield plain(f"  strategy    {run.strategy}, seed {run.seed}" + (f", sweep {run.sweep}" if run.sweep else ""))
    yield Text(f"  rounds      {run.rounds_done} of {run.rounds} committed")
    yield Text(f"  time        started {run.created_at:%Y-%m-%d %H:%M:%S}{ended} (UTC)")
    yield Text(f"  bytes       {sent}{once}")
    yield from (plain(f"  {name:<11} {value:.4g}") for name, value in run.summary.items())


def _rounds_table(rounds: Sequence[RoundRecord]) -> Table:
    names = list(dict.fromkeys(name for record in rounds for name in record.metrics))
    table = _table("round", *names, "counted", "asked", "up", "down", "once", "seconds")
    for record in rounds:
        figures = [_number(record.metrics.get(name)) for name in names]
        counted = sum(row.outcome is Outcome.REPORTED for row in record.roster)
        sums = map(bytes_text, (record.bytes_up, record.bytes_down, record.bytes_once))
        table.add_row(
            str(record.round), *figures, str(counted), str(len(record.roster)), *sums, f"{record.seconds:.1f}"
        )
    return table


def _clients(rounds: Sequence[RoundRecord]) -> Iterator[Text | Table]:
    """Each client's part in the run."""
    outcomes = list(Outcome)
    rows = [row for record in rounds for row in record.roster]
    counts = Counter((row.client, row.outcome) for row in rows)
    up, down = Counter[int](), Counter[int]()
    for row in rows:
        up[row.client] += row.bytes_up
        down[row.client] += row.bytes_down
    table = _table("client", "asked", *map(str, outcomes), "up", "down")
    for client in sorted(up)[:_MOST]:
        each = [counts[client, outcome] for outcome in outcomes]
        table.add_row(str(client), str(sum(each)), *map(str, each), bytes_text(up[client]), bytes_text(down[client]))
    if rows:
        yield _title("Clients", len(up))
        yield table


def _refused(rounds: Sequence[RoundRecord]) -> Iterator[Text | Table]:
    """Who did not count; the latest rounds, where there are too many."""
    refused = [(record.round, row) for record in rounds for row in record.roster if row.outcome is not Outcome.REPORTED]
    table = _table("round", "client", "outcome", "reason")
    for number, row in refused[-_MOST:]:
        table.add_row(str(number), str(row.client), str(row.outcome), plain(row.reason))
    if refused:
        yield _title("Who did not count, and why", len(refused))
        yield table


def _title(text: str, count: int = 0) -> Text:
    """The title of a part; it says so where a table cannot show all `count` rows."""
    return Text(text + (f" ({_MOST} of {count}; --json has all)" if count > _MOST else ""), style="bold")


def override_lines(config: Mapping[str, Any]) -> Iterator[str]:
    """A configuration as sorted `key=value` lines, as overrides are written; made for `diff`."""
    for key, value in sorted(flat(config).items()):
        yield f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _paths(history: RunHistory) -> Iterable[tuple[str, Path]]:
    from fedlora.server.checkpoint import round_folder
    from fedlora.server.events import FILE as EVENTS_FILE
    from fedlora.server.store.folders import CONFIG

    folder = history.run.folder
    yield "folder", folder
    yield "config", folder / CONFIG
    yield "events", folder / EVENTS_FILE
    if history.rounds:
        yield "checkpoint", round_folder(folder, history.rounds[-1].round)
    for name in ("adapter", "report.html"):
        if (folder / name).exists():
            yield name.partition(".")[0], folder / name


def _resume_hint(run: RunInfo) -> str:
    resume = f"`fedlora simulate --resume {run.id}`"
    return f"{run.id}: its process died after round {run.rounds_done}; {resume} goes on from there"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
