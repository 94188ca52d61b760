"""`fedlora server backup`, `restore` and `expire`: a server's home copied, put back, and what is old in it deleted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fedlora.cli.output import stderr, stdout
from fedlora.cli.server import HomeOption, server_app

if TYPE_CHECKING:
    from fedlora.server.restore import Restored


def register(app: typer.Typer) -> None:
    """Adds the commands to `fedlora server`."""
    del app
    server_app.command("backup")(backup)
    server_app.command("restore")(restore)
    server_app.command("expire")(expire)


def backup(
    home: HomeOption,
    out: Annotated[Path, typer.Option(help="A new file for the copy, e.g. server.tar (mode 0600).")],
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="Copy the keys, too: who has them can pose as the server and as any client."),
    ] = False,
) -> None:
    """Copy a server's home into one file, while the server runs: database, settings, and all committed rounds."""
    from fedlora.server.backup import back_up
    from fedlora.words import bytes_text

    done = back_up(home, out, keys=with_keys)
    _say(f"copied {done.runs} runs with {done.rounds} committed rounds to {out} ({bytes_text(out.stat().st_size)})")
    for told in done.left_out:
        _warn(f"left out: {told}")
    if not with_keys:
        _warn("no keys are in it: keep ca/ca.key and receipt.key elsewhere, or no restored server can go on")


def restore(
    source: Annotated[Path, typer.Option("--from", help="The copy that `fedlora server backup` made; one you trust.")],
    home: Annotated[Path, typer.Option("--home", help="The new server's home: a folder that is empty or not there.")],
) -> None:
    """Make a server's home from a copy. A copy of PostgreSQL goes into the empty database in FEDLORA_DATABASE."""
    from fedlora.server.restore import restore as make

    found = make(source, home)
    when = f"{found.created_at:%Y-%m-%d %H:%M} UTC"
    _say(f"restored {found.runs} runs with {found.rounds} committed rounds to {home}, as they were on {when}")
    for told in _consequences(found, when):
        _warn(told)


def expire(
    home: HomeOption,
    days: Annotated[int, typer.Option(help="Days since a run's end; 0: all runs that have ended.")],
) -> None:
    """Delete now what tells of single clients in runs that ended so long ago: rosters, reasons, figures, events."""
    from fedlora.identity.home import open_store
    from fedlora.server.erase import expire as delete

    with open_store(home) as store:
        gone = delete(store, days=days)
    _say(f"deleted from {len(gone)} runs{': ' if gone else ''}{', '.join(gone)}")


def _consequences(found: "Restored", when: str) -> list[str]:
    """What an operator must know of a server that has gone back in time."""
    keys = [] if found.keys else ["put ca/ca.key and receipt.key back (mode 0600) before you start the server"]
    tokens = [f"{found.withdrawn} open tokens were withdrawn: give out new ones"] if found.withdrawn else []
    access = (
        [f"{found.access} access tokens and links of the dashboard were withdrawn: log in with the new operator.token"]
        if found.access
        else []
    )
    since = (
        f"what happened after {when} is not in it. Clients that joined or renewed their certificate since then are not"
        " on record and say so: `fedlora server enroll NAME --again`. Clients that were revoked since then may connect"
        " again: revoke them again. What sites have had erased since then is back: ask them to erase it again"
    )
    twin = "stop the old server for good: two with one identity would give out different models"
    return [*keys, *tokens, *access, since, twin]


def _say(text: str) -> None:
    stdout().print(Text(text), soft_wrap=True)


def _warn(text: str) -> None:
    stderr().print(Text(text), soft_wrap=True)
