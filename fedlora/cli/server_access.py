"""`fedlora server access` and `link`: who may use the server's dashboard, and what a collaborator is shown."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedlora.cli.noted import HERE, noted
from fedlora.cli.output import emit_json, stderr, stdout
from fedlora.cli.runs import age_text, plain
from fedlora.cli.server import HomeOption, server_app

access_app = typer.Typer(name="access", help="Say who may use the dashboard, and as what.", no_args_is_help=True)

Person = Annotated[str, typer.Argument(help="Whose token it is: lower-case letters, digits and '-', a letter first.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `fedlora server`."""
    del app
    server_app.add_typer(access_app)
    server_app.command("link")(link)


@access_app.command("ls")
def list_access(
    home: HomeOption, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """List the access tokens. The text in the home's operator.token opens the dashboard too, as an admin."""
    from fedlora.identity.home import open_store
    from fedlora.server.dashboard.tokens import AccessTokens

    with open_store(home) as store:
        found = AccessTokens(store.database).all()
    now = datetime.now(UTC)
    if as_json:
        emit_json([{**vars(token), "role": token.role.word} | _times(vars(token)) for token in found])
        return
    table = Table("name", "role", "made", "good until", "last used", box=None, header_style="bold")
    for token in found:
        used = "never" if token.last_used is None else f"{age_text(now - token.last_used)} ago"
        until = "–" if token.expires_at is None else f"{token.expires_at:%Y-%m-%d}"
        table.add_row(plain(token.name), token.role.word, f"{token.created_at:%Y-%m-%d}", until, used)
    stdout().print(table if found else "no access tokens yet: `fedlora server access add` makes one")


@access_app.command("add")
def add_access(
    name: Person,
    home: HomeOption,
    role: Annotated[str, typer.Option(help="viewer (looks), operator (also acts) or admin (also says who may come).")],
    days: Annotated[int, typer.Option(help="How long the token is good for.")] = 365,
) -> None:
    """Make an access token for a person, and print it, once."""
    from fedlora.server.dashboard.tokens import AccessTokens

    with noted(home, "add access", f"access token {name}", f"role {role}, {days} days") as store:
        secret = AccessTokens(store.database).add(name, role, days)
    typer.echo(secret)
    _tell(f"the token of {name!r} is above: give it to that person in private; it logs in to the dashboard as {role}")


@access_app.command("rm")
def remove_access(name: Person, home: HomeOption) -> None:
    """Take an access token away; who has logged in with it is logged out."""
    from fedlora.server.dashboard.tokens import AccessTokens

    with noted(home, "remove access", f"access token {name}") as store:
        AccessTokens(store.database).remove(name)
    _tell(f"the access token {name!r} is gone")


def link(
    run: Annotated[str, typer.Argument(help="The run: `latest`, its id, name or folder.")],
    site: Annotated[str, typer.Argument(help="The client whose part is shown.")],
    home: HomeOption,
    days: Annotated[int, typer.Option(help="How long the link is good for.")] = 30,
    address: Annotated[
        str | None, typer.Option(help="https://HOST:PORT at which the site's people reach the dashboard.")
    ] = None,
) -> None:
    """Make a link that shows one site its own part in one run, to whoever has it; print it, once."""
    from fedlora.identity.home import open_store
    from fedlora.server.dashboard.actions import check_takes_part, link_address
    from fedlora.server.dashboard.links import Links

    where = address or _address(home)
    with open_store(home) as store:
        found = store.find(run)
    with noted(home, "add link", f"run {found.id}, site {site}", f"{days} days") as store:
        check_takes_part(found, site)
        made = Links(store.database).add(found.id, site, days, HERE)
    typer.echo(link_address(where.rstrip("/"), made.secret))
    _tell(f"the link is above: it shows {site!r} its own part in run {found.id} for {days} days")


def _address(home: Path) -> str:
    from fedlora.identity.home import server_facts
    from fedlora.server.dashboard.inviting import reached_at
    from fedlora.server.settings import read_settings

    return f"https://{reached_at(server_facts(home)['server']['hosts'], read_settings(home).operator)}"


def _times(facts: dict[str, object]) -> dict[str, str]:
    return {name: value.isoformat() for name, value in facts.items() if isinstance(value, datetime)}


def _tell(text: str) -> None:
    stderr().print(text, markup=False, soft_wrap=True)
