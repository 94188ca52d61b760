"""`fedlora client join`, `run`, `rotate` and `leave`: what needs the server."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli.client import DEFAULT_HOME, Home, client_app
from fedlora.cli.output import emit_json, stdout
from fedlora.cli.server_daemon import quiet_libraries
from fedlora.errors import ExitCode, IdentityError

if TYPE_CHECKING:
    from fedlora.client.dry_run import Shown
    from fedlora.client.home import SiteHome
    from fedlora.link.v1.link_pb2 import ErasedRun

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `fedlora client`."""
    del app
    for command in (join, run, dry_run, rotate, leave):
        client_app.command(command.__name__.replace("_", "-"))(command)


def join(
    home: Home = DEFAULT_HOME,
    token: Annotated[str | None, typer.Option(help="The token that the server's operator gave.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token: it is then in no shell's history.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT of the enrolment, if it is another one here than the token says.")
    ] = None,
) -> None:
    """Join a server: make a key here, and get a certificate for it."""
    from fedlora.client.home import SiteHome
    from fedlora.client.identity import join as joins
    from fedlora.identity.tokens import decode

    if (token is None) == (token_file is None):
        raise typer.BadParameter("give --token or --token-file, one of them")
    text = token if token_file is None else token_file.read_text(encoding="utf-8")
    invitation = decode(str(text))
    link = joins(SiteHome.open(home), invitation, server=server)
    stdout().print(
        f"joined as {invitation.name!r}; the server's link is {link}\nnext: `fedlora client run --home {home}`",
        markup=False,
        soft_wrap=True,
    )


def run(
    home: Home = DEFAULT_HOME,
    health: Annotated[
        str | None, typer.Option(help="HOST:PORT for a health endpoint; without it there is none.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, and to standard error too.")] = False,
) -> None:
    """Run the client: it connects to its server, and works as far as the owner's policy lets it."""
    from fedlora.client.daemon import run_daemon
    from fedlora.client.home import SiteHome
    from fedlora.client.policy_file import load_policy
    from fedlora.client.site_log import open_log

    opened = SiteHome.open(home)
    rule = load_policy(opened.policy).log
    handler = open_log(opened, rule)
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if verbose else rule.level.upper())
    root.addHandler(handler)
    if verbose:
        root.addHandler(logging.StreamHandler())
    quiet_libraries()
    try:
        run_daemon(opened, health=health)
    finally:
        root.removeHandler(handler)
        handler.close()


def dry_run(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE of the experiment, as in a run.")] = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> int:
    """Train one round on this site's data and show exactly what would be sent. Nothing is sent, nothing is spent."""
    from fedlora.client.dry_run import dry_run as shown_by
    from fedlora.client.home import SiteHome
    from fedlora.config.compose import compose

    shown = shown_by(SiteHome.open(home), compose(overrides or []))
    if as_json:
        emit_json(asdict(shown))
    else:
        _print_dry_run(shown, stdout())
    return ExitCode.PROBLEMS_FOUND if shown.refusals else ExitCode.OK


def _print_dry_run(shown: "Shown", console: Console) -> None:
    for refusal in shown.refusals:
        console.print(Text(f"would be declined: {refusal}", style="yellow"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("tensor", "shape", "type", "bytes"):
        table.add_column(column)
    for tensor in shown.tensors:
        table.add_row(tensor.name, " × ".join(map(str, tensor.shape)), tensor.dtype, f"{tensor.bytes:,}")
    console.print(table)
    for name, value in {**shown.metrics, **shown.facts}.items():
        console.print(Text(f"{name:<24} {value}"))
    for name, value in shown.told.items():
        text = "; ".join(value) if isinstance(value, list) else value
        console.print(Text(f"told when it connects: {name:<8} {text or 'nothing'}"), soft_wrap=True)
    spent = "" if shown.epsilon is None else f", ε = {shown.epsilon:.3g} for the whole run"
    console.print(Text(f"{shown.size:,} bytes in all, SHA-256 {shown.sha256[:16]}…{spent}; nothing was sent or spent"))


def rotate(home: Home = DEFAULT_HOME) -> None:
    """Get a new key and certificate. A running daemon uses them from its next connection on."""
    from fedlora.client.home import SiteHome
    from fedlora.client.identity import renewed

    opened = SiteHome.open(home)
    renewed(opened, _server(opened))
    stdout().print("there is a new key with a new certificate; the old ones end when these are first used")


def leave(
    home: Home = DEFAULT_HOME,
    erase: Annotated[
        bool, typer.Option("--erase", help="The server also deletes this site's updates, metrics and events.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Leave the server: this client's certificate ends. What the ledger says was spent stays spent."""
    from fedlora.client.home import SiteHome
    from fedlora.client.identity import leave as leaves

    opened = SiteHome.open(home)
    reply = leaves(opened, _server(opened), erase=erase)
    if as_json:
        emit_json({"erased": erase, "contains_this_site": [_plain(found) for found in reply.runs]})
        return
    stdout().print("left the server" + (", which has deleted what it stored of this site" if erase else ""))
    for found in reply.runs:
        if not found.rounds:
            continue
        stdout().print(
            f"run {found.run}: the models of its rounds from {min(found.rounds)} on were trained with this site;"
            f" `fedlora run restart {found.run} --without NAME` begins again after round {found.restart_after}",
            markup=False,
            soft_wrap=True,
        )


def _plain(found: "ErasedRun") -> dict[str, Any]:
    return {"run": found.run, "rounds": list(found.rounds), "restart_after": found.restart_after}


def _server(home: "SiteHome") -> str:
    from fedlora.client.home import joined

    found = joined(home)
    if found is None:
        raise IdentityError("this site has joined no server: `fedlora client join --token TOKEN`")
    return found
