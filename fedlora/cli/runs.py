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

from fedlora.server.records import Outcome, RoundRecord, RunHistory, RunInfo, RunStatus
from fedlora.words import bytes_text

if TYPE_CHECKING:
    from fedlora.server.store import RunStore, Traffic

INTERRUPTED = "interrupted"
DEFAULT_STORE = Path("runs")
_PIPE_WIDTH = 200  # columns where the output is no terminal: nothing is cut that a script could look for
_MOST = 100  # rows of a table of clients; runs may have thousands
_STYLES = {
    "queued": "blue",
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "failed": "red",
    INTERRUPTED: "yellow",
}

runs_app = typer.Typer(name="runs", help="List, show and compare runs.", no_args_is_help=True)

StoreOption = Annotated[Path, typer.Option("--store", help="The folder of the run store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
RunArgument = Annotated[str, typer.Argument(help="An id or how it starts, a name, a run's folder, or `latest`.")]


def register(app: typer.Typer) -> None:
    """Adds `runs` to the command line."""
    app.add_typer(runs_app)


@runs_app.command("ls")
def list_runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the runs, newest first."""
    runs, traffic = _listing(store)
    if as_json:
        typer.echo(_json([_listed(run, status, traffic) for run, status in runs]))
        return
    console = _console()
    console.print(_list_table(runs, traffic) if runs else Text(f"no runs in {store} yet: `fedlora simulate` makes one"))
    for run, status in runs:
        if status == INTERRUPTED:
            console.print(Text(_resume_hint(run), style="yellow"))


@runs_app.command("show")
def show_run(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one run: its outcome, rounds, roster, paths and configuration."""
    with _open(store) as opened:
        history = opened.history(opened.find(run))
        status = status_of(opened, history.run)
        traffic = opened.traffic()
    if as_json:
        typer.echo(_json(_shown(history, status, traffic)))
        return
    console = _console()
    for part in _parts(history, status, traffic):
        console.print(part, soft_wrap=isinstance(part, Text))


def status_of(store: "RunStore", run: RunInfo) -> str:
    """The run's status, or "interrupted" if it should be running and no process holds it."""
    alive = run.status is not RunStatus.RUNNING or store.holder(run) is not None
    return str(run.status) if alive else INTERRUPTED


def accuracy_of(summary: Mapping[str, float]) -> float | None:
    """The test accuracy of a summary, whatever the task calls it (`test_accuracy`, `test_token_accuracy`)."""
    return next((value for name, value in summary.items() if name.startswith("test_") and "accuracy" in name), None)


def age_text(since: timedelta) -> str:
    """How long ago, in the largest fitting unit, e.g. 3 h."""
    seconds = max(0, int(since.total_seconds()))
    steps = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    return next((f"{seconds // size} {unit}" for size, unit in steps if seconds >= size), "0 s")


def plain(text: str) -> Text:
    """Text that came from elsewhere (names, clients' reasons): no markup, no control characters for the terminal."""
    return Text("".join(char if char.isprintable() else "�" for char in text))


def _listing(store: Path) -> "tuple[list[tuple[RunInfo, str]], Mapping[str, Traffic]]":
    """The runs with their statuses, and what each carried; nothing where nobody has run anything yet."""
    if store == DEFAULT_STORE and not store.exists():  # elsewhere a missing folder is rather a typing mistake
        return [], {}
    with _open(store) as opened:
        return [(run, status_of(opened, run)) for run in opened.list()], opened.traffic()


def _open(store: Path) -> "RunStore":
    from fedlora.server.store import RunStore

    return RunStore.open(store, create=False)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _dumped(kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).dump_python(value, mode="json")


def _listed(run: RunInfo, status: str, traffic: Mapping[str, "Traffic"]) -> dict[str, Any]:
    """A run for scripts: the record without its configuration, the status as shown, and its bytes."""
    row: dict[str, Any] = _dumped(RunInfo, run)
    del row["config"]
    carried = traffic.get(run.id)
    sums = (carried.up, carried.down, carried.once) if carried else (0, 0, 0)
    return row | {"status": status} | dict(zip(("bytes_up", "bytes_down", "bytes_once"), sums, strict=True))


def _shown(history: RunHistory, status: str, traffic: Mapping[str, "Traffic"]) -> dict[str, Any]:
    return {
        "run": _listed(history.run, status, traffic),
        "paths": {name: str(path) for name, path in _paths(history)},
        "rounds": _dumped(Sequence[RoundRecord], history.rounds),
        "config": json.loads(history.run.config),
    }


def _list_table(runs: Sequence[tuple[RunInfo, str]], traffic: Mapping[str, "Traffic"]) -> Table:
    table = _table("id", "name", "strategy", "status", "rounds", "test accuracy", "up", "down", "once", "age")
    now = datetime.now(UTC)
    for run, status in runs:
        carried = traffic.get(run.id)
        sums = (carried.up, carried.down, carried.once) if carried else (0, 0, 0)
        words = (run.id, plain(run.name), plain(run.strategy), Text(status, style=_STYLES[status]))
        figures = (f"{run.rounds_done}/{run.rounds}", _number(accuracy_of(run.summary)), *map(bytes_text, sums))
        table.add_row(*words, *figures, age_text(now - run.created_at))
    return table


def _parts(history: RunHistory, status: str, traffic: Mapping[str, "Traffic"]) -> Iterator[Text | Table]:
    yield from _facts(history, status, traffic)
    yield _title("Rounds")
    yield _rounds_table(history.rounds)
    yield from _clients(history.rounds)
    yield from _refused(history.rounds)
    yield _title("Paths")
    yield from (Text(f"  {name:<11} {path}") for name, path in _paths(history))
    yield _title("Configuration")
    yield from (plain(f"  {line}") for line in flat(json.loads(history.run.config)))


def _facts(history: RunHistory, status: str, traffic: Mapping[str, "Traffic"]) -> Iterator[Text]:
    run = history.run
    yield Text.assemble((run.id, "bold"), "  ", plain(run.name))
    reason = plain(f": {run.reason}" if run.reason else "")
    yield Text.assemble("  status      ", (status, _STYLES[status]), reason)
    if status == INTERRUPTED:
        yield Text("  " + _resume_hint(run), style="yellow")
    carried = traffic.get(run.id)
    sent = f"{bytes_text(carried.up)} up, {bytes_text(carried.down)} down" if carried else "nothing yet"
    once = f", {bytes_text(carried.once)} once" if carried and carried.once else ""
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


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A configuration as sorted `key=value` lines, as overrides are written; made for `diff`."""
    for key, value in sorted(config.items()):
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


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
