"""`fedlora run`: the runs of a server daemon: start, watch, stop, resume, fetch; and its clients."""

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.cli.health import alarm_of, plain
from fedlora.cli.output import emit_json, stderr, stdout
from fedlora.cli.run_printing import clients_table, print_run, runs_table
from fedlora.errors import ExitCode

if TYPE_CHECKING:
    from fedlora.server.operator.client import OperatorClient

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
        stdout().print(runs_table(runs))
        for line in (line for row in runs for line in alarm_of(row)):
            stdout().print(line, soft_wrap=True)
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
        print_run(shown, stdout())


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
        stdout().print(clients_table(found))
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
        print_run(shown, console, rounds=False)
    return code


def _tell(found: Mapping[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        emit_json(dict(found))
    else:
        stdout().print(plain(sentence), soft_wrap=True)
