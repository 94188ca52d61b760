"""`fedlora ca`: a server's certificate authority: make it, show it, change the server's hosts."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from fedlora.cli.output import emit_json, stdout

ca_app = typer.Typer(
    name="ca", help="A server's own certificate authority: make it, show it, change the hosts.", no_args_is_help=True
)

Home = Annotated[Path, typer.Argument(help="The server's home: a folder for its keys, certificates and runs.")]


def register(app: typer.Typer) -> None:
    """Adds `ca` with its commands."""
    app.add_typer(ca_app)


@ca_app.command("init")
def init(
    home: Home,
    name: Annotated[str, typer.Option(help="What the authority is called in its certificate.")] = "fedlora",
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A DNS name or IP address at which clients reach the server; again for each."
            " Without it: localhost, 127.0.0.1 and this machine's name."
        ),
    ] = None,
) -> None:
    """Make a home for a server: an authority, a server certificate that it signed, and an empty run store."""
    from fedlora.identity.home import default_hosts, make_home, server_facts

    make_home(home, name, host or default_hosts())
    _say(Text(f"made a server's home in {home}"))
    _print(server_facts(home))
    place = shlex.quote(str(home))
    _say(
        Text(
            f"{home / 'ca' / 'ca.key'} lets its holder pose as the server and as any client: keep it secret, back it up"
        )
    )
    _say(Text(f"next: `fedlora server enroll NAME --home {place} --address HOST:PORT` gives a client a token to join"))


@ca_app.command("show")
def show(home: Home, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False) -> None:
    """Show the authority's fingerprint and how long the certificates are valid."""
    from fedlora.identity.home import server_facts

    facts = server_facts(home)
    if as_json:
        emit_json(facts)
    else:
        _print(facts)


@ca_app.command("hosts")
def hosts(
    home: Home,
    host: Annotated[
        list[str], typer.Option(help="A DNS name or IP address at which clients reach the server; again for each.")
    ],
) -> None:
    """Make a new server certificate for these hosts and no others. Clients stay enrolled; restart the server."""
    from fedlora.identity.authority import open_authority
    from fedlora.identity.home import server_facts
    from fedlora.identity.tls import ensure_server_certificate, server_files

    made = ensure_server_certificate(home, open_authority(server_files(home).authority), host)
    _say(Text("made a new server certificate: restart the server" if made else "the server's certificate will do"))
    _print(server_facts(home))


def _print(facts: dict[str, Any]) -> None:
    server = facts["server"]
    _say(Text(f"  authority    {facts['name']}, until {_day(facts['expires'])}: {facts['certificate']}"))
    _say(Text(f"  fingerprint  {facts['sha256']} (SHA-256)"))
    _say(Text(f"  server       {', '.join(server['hosts'])}, until {_day(server['expires'])}"))


def _say(text: Text) -> None:
    stdout().print(text, soft_wrap=True)


def _day(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d}"
