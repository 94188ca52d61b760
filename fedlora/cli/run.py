"""`fedlora run`: the runs of a server daemon: start, watch, stop, resume, fetch; and its clients."""

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stderr, stdout
from fedlora.cli.runs import accuracy_of, age_text, plain
from fedlora.errors import ExitCode
from fedlora.server.participation import participation, warning
from fedlora.server.records import Outcome, RoundRecord, RunInfo
from fedlora.words import bytes_text, number

if TYPE_CHECKING:
    from fedlora.server.operator.client import OperatorClient

_STYLES = {"queued": "blue", "running": "cyan", "stopping": "yellow", "finished": "green", "stopped": "yellow"}
_MOST = 100  # refusals that `show` lists

run_app = typer.Typer(name="run", help="Start, watch and fetch the runs of a server daemon.", no_args_is_help=True)

Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The server, https://HOST:PORT (or FEDLORA_SERVER).")
]
Home = Annotated[
    Path | None,
    typer.Option(help="A server's home on this machine, for address, token and CA (else FEDLORA_TOKEN, FEDLORA_CA)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]
Run = Annotated[str, typer.Argument(help="An id or how it starts, a name, or `latest`.")]


def register(app: typer.Typer) -> None:
    """Adds `run` with its commands."""
    app.add_typer(run_app)


@run_app.command("start")
def start(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE or GROUP=OPTION, as in Hydra.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings; overrides win over it.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show its progress until it ends.")] = False,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="A text of your own: the same one never starts a second run.")
    ] = None,
    server: Server = None,
    home: Home = None,
    as_json: Json = False,
) -> int:
    """Put a run into the server's queue."""
    whole = None if config is None else _composed(overrides or [], config)
    with _opened(server, home) as client:
        run = client.submit(key or secrets.token_hex(16), overrides, whole)
        if watch:
            return _watch(client, str(run["id"]), as_json)
    _tell(run, f"run {run['id']} ({run['name']}) is {run['status']}", as_json)
    return ExitCode.OK


@run_app.command("ls")
def list_runs(server: Server = None, home: Home = None, as_json: Json = False) -> None:
    """List the server's runs, newest first."""
    with _opened(server, home) as client:
        runs = client.runs()
    if as_json:
        emit_json(list(runs))
    elif runs:
        stdout().print(_runs_table(runs))
    else:
        stdout().print("the server has no runs yet: `fedlora run start` makes one")


@run_app.command("show")
def show(run: Run, server: Server = None, home: Home = None, as_json: Json = False) -> None:
    """Show one run: its outcome, its rounds, and who did not count."""
    with _opened(server, home) as client:
        shown = client.shown(client.find(run))
    if as_json:
        emit_json(dict(shown))
    else:
        _print_run(shown, stdout())


@run_app.command("watch")
def watch(run: Run, server: Server = None, home: Home = None, as_json: Json = False) -> int:
    """Show a run's progress until it ends; ends with the run's exit code. Ctrl-C ends the watching, not the run."""
    with _opened(server, home) as client:
        return _watch(client, client.find(run), as_json)


@run_app.command("stop")
def stop(run: Run, server: Server = None, home: Home = None, as_json: Json = False) -> None:
    """Stop a run: a queued one at once, a running one after its round."""
    with _opened(server, home) as client:
        found = client.stop(client.find(run))
    becomes = "stops after its round" if found["status"] == "running" else f"is {found['status']}"
    _tell(found, f"run {found['id']} {becomes}", as_json)


@run_app.command("resume")
def resume(
    run: Run,
    rounds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Rounds in all, from now on.")] = None,
    server: Server = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Put a run that was stopped or failed back into the queue."""
    with _opened(server, home) as client:
        found = client.resume(client.find(run), rounds)
    _tell(found, f"run {found['id']} is {found['status']}: it goes on after round {found['rounds_done']}", as_json)


@run_app.command("restart")
def restart(
    run: Run,
    without: Annotated[list[str], typer.Option(metavar="CLIENT", help="A site to leave out; may be repeated.")],
    server: Server = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train again without a site: a new run, from the last checkpoint that holds nothing of it."""
    with _opened(server, home) as client:
        found = client.restart(client.find(run), without)
    _tell(found, f"run {found['id']} is {found['status']}: the other sites, {found['rounds']} rounds", as_json)


@run_app.command("download")
def download(
    run: Run,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A new folder; by default RUN-adapter.")] = None,
    server: Server = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fetch the adapter of a finished run: a PEFT checkpoint."""
    from fedlora.server.operator.archive import unpack

    with _opened(server, home) as client, tempfile.TemporaryDirectory(prefix="fedlora-") as passing:
        run_id = client.find(run)
        archive = Path(passing) / "adapter.zip"
        client.download(run_id, archive)
        folder = out or Path(f"{run_id}-adapter")
        files = unpack(archive, folder)
    found = {"run": run_id, "folder": str(folder.absolute()), "files": [str(path.absolute()) for path in files]}
    _tell(found, f"Wrote the adapter to {folder}", as_json)


@run_app.command("clients")
def clients(server: Server = None, home: Home = None, as_json: Json = False) -> None:
    """List the server's clients, and how they are."""
    with _opened(server, home) as client:
        found = client.clients()
    if as_json:
        emit_json(list(found))
    elif found:
        columns = list(dict.fromkeys(name for row in found for name in row))
        stdout().print(_table(columns, [[_cell(row.get(name)) for name in columns] for row in found]))
    else:
        stdout().print("the server knows no clients yet")


@contextmanager
def _opened(server: str | None, home: Path | None) -> "Iterator[OperatorClient]":
    from fedlora.server.operator.access import find_access
    from fedlora.server.operator.client import OperatorClient

    with OperatorClient(find_access(server, home, os.environ)) as client:
        yield client


def _composed(overrides: Sequence[str], file: Path) -> Mapping[str, Any]:
    """A file is read here, where it is; the server gets what it says."""
    from fedlora.config.compose import compose

    return compose(overrides, file=file).model_dump(mode="json")


def _watch(client: "OperatorClient", run_id: str, as_json: bool) -> int:
    from fedlora.server.operator.watch import follow
    from fedlora.simulations.progress import LiveProgress

    console = stderr() if as_json else stdout()
    console.print(f"watching run {run_id}; Ctrl-C ends the watching, not the run", style="dim")
    with LiveProgress(console) as progress:
        code = follow(client, run_id, progress, lambda error: console.print(f"{error}", style="yellow", markup=False))
    shown = client.shown(run_id)
    if as_json:
        emit_json(dict(shown))
    else:
        _print_run(shown, console, rounds=False)
    return code


def _tell(found: Mapping[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        emit_json(dict(found))
    else:
        stdout().print(plain(sentence), soft_wrap=True)


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
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


def _print_run(shown: Mapping[str, Any], console: Console, *, rounds: bool = True) -> None:
    """The run for a person; without its rounds where they were printed as they came."""
    from fedlora.server.operator.client import history_of

    history = history_of(shown)
    run, absent = history.run, warning(history)
    if absent:
        console.print(Text(absent, style="yellow"))
    reason = f": {run.reason}" if run.reason else ""
    console.print(Text.assemble((run.id, "bold"), "  ", plain(run.name), "  ", _status(shown["run"]), plain(reason)))
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
