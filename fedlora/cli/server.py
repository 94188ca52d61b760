"""`fedlora server`: who may take part: give out tokens, list the clients, revoke one."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.noted import noted
from fedlora.cli.output import emit_json, stderr, stdout
from fedlora.cli.runs import age_text, plain

if TYPE_CHECKING:
    from fedlora.identity.records import ClientRecord

server_app = typer.Typer(name="server", help="Run a server and say who may take part.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The client's name: lower-case letters, digits and '-', a letter first.")]
HomeOption = Annotated[Path, typer.Option("--home", help="The server's home, as `fedlora ca init` made it.")]


def register(app: typer.Typer) -> None:
    """Adds `server` with its commands."""
    app.add_typer(server_app)


@server_app.command("enroll")
def enroll(
    name: Name,
    home: HomeOption,
    address: Annotated[str, typer.Option(help="HOST:PORT at which the client reaches the server.")],
    hours: Annotated[float, typer.Option(help="How long the token is good for.")] = 72.0,
    again: Annotated[
        bool,
        typer.Option("--again", help="For a client that has lost its key: its old certificate ends when it joins."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A new file for the token (mode 0600), in place of standard output.")
    ] = None,
) -> None:
    """Give out a token with which one client can join, once."""
    from fedlora.identity.keys import write_private

    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists already: name a new file", param_hint="--out")
    token, expires = _new_token(home, name, address, hours=hours, again=again)
    if out is None:
        typer.echo(token)
    else:
        write_private(out, token.encode() + b"\n")
    place = "above" if out is None else f"in {out}"
    stderr().print(
        f"the token for client {name!r} is {place}: good for one use, until {expires:%Y-%m-%d %H:%M} UTC."
        " Give it to the client's owner in private: whoever uses it first takes part under that name",
        markup=False,
        soft_wrap=True,
    )


@server_app.command("clients")
def list_clients(
    home: HomeOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """List the clients that were invited, with their certificates and when they were last connected."""
    from fedlora.identity.home import open_registry

    with open_registry(home) as registry:
        clients = registry.clients()
    if as_json:
        emit_json(_dumped(clients))
    else:
        stdout().print(_table(clients) if clients else Text("no clients yet: `fedlora server enroll` invites one"))


@server_app.command("revoke")
def revoke(
    name: Name,
    home: HomeOption,
    reason: Annotated[str, typer.Option(help="Why; the client is told.")] = "",
) -> None:
    """Take a client's certificates and tokens away. It can be let in again with `enroll`."""
    from fedlora.identity.registry import Registry

    with noted(home, "revoke client", f"client {name}", reason) as store:
        Registry(store.database).revoke(name, reason)
    stdout().print(f"client {name!r} is revoked", markup=False, soft_wrap=True)


def _new_token(home: Path, name: str, address: str, *, hours: float, again: bool) -> tuple[str, datetime]:
    """Everything that can be wrong is looked at before anything is written."""
    from fedlora.identity.home import check_reachable
    from fedlora.identity.keys import read_certificate
    from fedlora.identity.registry import Registry
    from fedlora.identity.tls import server_files
    from fedlora.identity.tokens import Invitation, encode

    check_reachable(home, address)
    authority = read_certificate(server_files(home).authority_certificate)
    began = datetime.now(UTC)
    how = f"for {hours:g} hours" + (", again" if again else "")
    with noted(home, "enroll client", f"client {name}", how) as store:
        secret = Registry(store.database).invite(name, hours=hours, again=again)
    expires = began + timedelta(hours=hours)
    return encode(Invitation(name, address, authority, secret, expires)), expires


def _dumped(clients: "Sequence[ClientRecord]") -> Any:
    from pydantic import TypeAdapter

    from fedlora.identity.records import ClientRecord

    return TypeAdapter(Sequence[ClientRecord]).dump_python(clients, mode="json")


def _table(clients: "Sequence[ClientRecord]") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("client", "status", "certificate", "until", "last seen", "version", ""):
        table.add_column(heading, overflow="fold", no_wrap=heading == "client")
    now = datetime.now(UTC)
    for client in clients:
        certificate = "–" if client.certificate is None else client.certificate[:16]
        seen = "never" if client.last_seen is None else f"{age_text(now - client.last_seen)} ago"
        facts = (certificate, _day(client.certificate_expires), seen)
        table.add_row(client.name, str(client.status), *facts, plain(client.version), plain(_remark(client, now)))
    return table


def _remark(client: "ClientRecord", now: datetime) -> str:
    """What else an operator wants to know of a client."""
    if client.status == "revoked":
        return client.reason
    if client.invitation_expires is not None:
        return f"token good until {client.invitation_expires:%Y-%m-%d %H:%M} UTC"
    if client.status == "invited":
        return "its token has expired or was used up: enroll it anew"
    expired = client.certificate_expires is None or client.certificate_expires <= now
    return "its certificate has expired: enroll it anew" if expired else ""


def _day(moment: datetime | None) -> str:
    return "–" if moment is None else f"{moment:%Y-%m-%d}"
