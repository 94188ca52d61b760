"""`fedlora client`: a data owner's own side: what may leave, what left, and what the daemon does."""

import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout
from fedlora.cli.runs import plain
from fedlora.errors import PolicyError
from fedlora.words import bytes_text, counted

if TYPE_CHECKING:
    from fedlora.client.home import SiteHome
    from fedlora.client.sent import Sent

client_app = typer.Typer(
    name="client", help="A data owner's side: what may leave, what left, pause and approve.", no_args_is_help=True
)

Home = Annotated[Path, typer.Option("--home", envvar="FEDLORA_SITE", help="The site's home folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

DEFAULT_HOME = Path("site")


def register(app: typer.Typer) -> None:
    """Adds `client` with its commands."""
    app.add_typer(client_app)


@client_app.command("init")
def init(folder: Annotated[Path, typer.Argument(help="A new folder, or an empty one.")] = DEFAULT_HOME) -> None:
    """Make a home folder for this site, with a policy that allows nothing yet."""
    from fedlora.client.home import SiteHome

    home = SiteHome.create(folder)
    _say(f"made a home in {folder}, which only you may read")
    _say(f"next: name your data and models in {home.policy}, then check it: fedlora client policy --home {folder}")


@client_app.command("status")
def status(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Say what the daemon does, and what keeps it from working."""
    facts = status_facts(_open(home))
    if as_json:
        emit_json(facts)
        return
    _print_pairs((name.replace("_", " "), _value(value)) for name, value in facts.items())


@client_app.command("pause")
def pause(
    reason: Annotated[str, typer.Option(help="Why; the server's operator sees it.")] = "", home: Home = DEFAULT_HOME
) -> None:
    """Take no more work until `resume`. Work in hand is finished."""
    from fedlora.client.controls import pause as pause_home
    from fedlora.client.controls import paused

    opened = _open(home)
    pause_home(opened, reason)
    _say(f"paused: {paused(opened)}")


@client_app.command("resume")
def resume(home: Home = DEFAULT_HOME) -> None:
    """End a pause."""
    from fedlora.client.controls import resume as resume_home

    _say("resumed" if resume_home(_open(home)) else "there was no pause")


@client_app.command("waiting")
def waiting(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the runs that wait for your approval, and what each asks."""
    from fedlora.client.controls import waiting as waiting_runs

    runs = waiting_runs(_open(home))
    if as_json:
        emit_json([{"run": run.run, "since": run.since, "summary": run.summary} for run in runs])
        return
    for run in runs:
        stdout().print(Text(f"{run.run}, since {run.since}", style="bold"))
        _print_pairs((f"  {name}", _value(value)) for name, value in run.summary.items())
    _say("approve one with: fedlora client approve RUN" if runs else "no run waits")


@client_app.command("approve")
def approve(
    run: Annotated[str, typer.Argument(help="The run's whole id, as `fedlora client waiting` shows it.")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Approve a run that waits, as it is shown: if it later asks for something else, it waits again."""
    from fedlora.client.controls import approve as approve_run

    found = approve_run(_open(home), run)
    _say(f"approved {found.run}, which asks for:")
    _print_pairs((f"  {name}", _value(value)) for name, value in found.summary.items())


@client_app.command("sent")
def sent(
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
) -> None:
    """List every message that left. The whole record is checked first."""
    from fedlora.client import sent as record

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    entries = record.read(_open(home))
    if as_json:
        emit_json(record.as_json(entries))
    elif as_csv:
        sys.stdout.write(record.as_csv(entries))
    else:
        _print_sent(entries)


@client_app.command("policy")
def policy(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Check the policy and say in words what it allows."""
    from fedlora.client.home import joined
    from fedlora.client.policy_file import load_policy
    from fedlora.client.policy_words import in_words, missing, notes

    opened = _open(home)
    found = load_policy(opened.policy)
    problems = missing(found, opened.folder)
    if problems:
        raise PolicyError(opened.policy, problems)
    odd = notes(found, opened.policy)
    if as_json:
        emit_json({"policy": found.model_dump(mode="json"), "notes": odd})
        return
    _say(f"{opened.policy} has no mistakes. It allows:")
    _print_pairs(in_words(found, joined(opened)))
    for note in odd:
        stdout().print(plain(f"! {note}"), style="yellow", soft_wrap=True)


@client_app.command("bundle")
def bundle(
    out: Annotated[Path, typer.Option(help="The zip file to write; it must not exist.")], home: Home = DEFAULT_HOME
) -> None:
    """Write what you can hand to somebody who helps: logs, status and policy without data, keys, paths or ledgers."""
    from fedlora.client.bundle import bundle as write_bundle

    names = write_bundle(_open(home), out)
    _say(f"wrote {out} ({', '.join(names)}); look into it before you hand it on")


def status_facts(home: "SiteHome") -> dict[str, Any]:
    """How the site is, as JSON values."""
    from fedlora.client.controls import paused, read_status, waiting
    from fedlora.client.home import holder, joined

    who, said = holder(home), read_status(home)
    return {
        "home": str(home.folder),
        "joined": joined(home),
        "daemon": None if who is None else str(who),
        "connected": who is not None and said is not None and said.connected,
        "work": said.work or None if who is not None and said is not None else None,
        "last_error": said.last_error or None if said is not None else None,
        "updated_at": None if said is None else said.updated_at,
        "paused": paused(home),
        "told": said.told or None if who is not None and said is not None else None,
        "waiting_for_approval": [each.run for each in waiting(home)],
        **_obstacles(home),
    }


def _obstacles(home: "SiteHome") -> dict[str, Any]:
    """What the policy says of this moment."""
    from fedlora.client.hours import is_open
    from fedlora.client.introduction import introduction
    from fedlora.client.policy_file import load_policy
    from fedlora.client.resources import lacking

    try:
        found = load_policy(home.policy)
    except PolicyError as error:
        return {"policy": f"{counted(len(error.problems), 'mistake')}: see `fedlora client policy`"}
    within = is_open(found.hours, datetime.now())
    return {
        "policy": "no mistakes",
        "within_hours": within,
        "lacking": lacking(found.limits, home),
        "tells": introduction(found).shown(),
    }


def _open(folder: Path) -> "SiteHome":
    from fedlora.client.home import SiteHome

    return SiteHome.open(folder)


def _print_sent(entries: "list[Sent]") -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("time (UTC)", "server", "run", "round", "kind", "tensors", "bytes", "ε of the run", "SHA-256"):
        table.add_column(heading)
    for entry in entries:
        epsilon = "no DP" if entry.epsilon is None else f"{entry.epsilon:.3g}"
        facts = (entry.time.removesuffix("+00:00"), entry.server, entry.run, str(entry.round), entry.kind)
        sizes = (str(entry.tensors), bytes_text(entry.bytes), epsilon, f"{entry.sha256[:12]}…")
        table.add_row(*map(plain, (*facts, *sizes)))
    if entries:
        stdout().print(table)
    total = bytes_text(sum(entry.bytes for entry in entries))
    _say(f"{counted(len(entries), 'message')} left, {total} in all; every line follows from the one before")


def _print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in pairs:
        table.add_row(plain(name), plain(text))
    stdout().print(table)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return "; ".join(map(_value, value)) or "–"
    return "–" if value is None else str(value)


def _say(text: str) -> None:
    stdout().print(plain(text), soft_wrap=True)
