"""`fedlora ledger`: the data owner's record of privacy spent: make one, look at it, change its limits."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout

if TYPE_CHECKING:
    from fedlora.privacy.ledger import Ledger

ledger_app = typer.Typer(
    name="ledger", help="A data owner's privacy ledger: create, show, change limits.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="The ledger's folder.")]
Epsilon = Annotated[float, typer.Option(help="What all runs together may spend, at most.")]
RunEpsilon = Annotated[float | None, typer.Option(help="What one run may spend, at most.")]
MonthEpsilon = Annotated[float | None, typer.Option(help="What the runs of one calendar month (UTC) may spend.")]


def register(app: typer.Typer) -> None:
    """Adds `ledger` with its commands."""
    app.add_typer(ledger_app)


@ledger_app.command("create")
def create(
    folder: Folder,
    data: Annotated[str, typer.Option(help="The data set's name: stable, whatever its version.")],
    epsilon: Epsilon,
    delta: Annotated[float, typer.Option(help="The owner's δ, at which every limit is kept.")] = 1e-5,
    run_epsilon: RunEpsilon = None,
    month_epsilon: MonthEpsilon = None,
) -> None:
    """Open a new ledger. Data sets that may hold the same people belong in one."""
    from fedlora.privacy.ledger import create_ledger

    create_ledger(folder, data, epsilon, delta, run_epsilon=run_epsilon, month_epsilon=month_epsilon)
    stdout().print(f"opened the ledger of {data!r} in {folder}", markup=False, soft_wrap=True)


@ledger_app.command("limits")
def limits(
    folder: Folder, epsilon: Epsilon, run_epsilon: RunEpsilon = None, month_epsilon: MonthEpsilon = None
) -> None:
    """Set all limits anew; one that is not given is none. Lower ones hold at once, also for open runs."""
    from fedlora.privacy.ledger import open_ledger

    with open_ledger(folder) as ledger:
        ledger.set_limits(epsilon, run_epsilon=run_epsilon, month_epsilon=month_epsilon)
        _print(ledger)


@ledger_app.command("show")
def show(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """What was spent, by which run, and what is left. Every hash is checked first."""
    from fedlora.privacy.ledger import open_ledger

    with open_ledger(folder) as ledger:
        if as_json:
            emit_json(plain(ledger))
        else:
            _print(ledger)


def plain(ledger: "Ledger") -> dict[str, Any]:
    """The ledger for a script; every ε is at the ceiling's δ."""
    bounds, month = ledger.limits, f"{datetime.now(UTC):%Y-%m}"
    return {
        "ledger": ledger.identity,
        "data": ledger.data,
        "versions": len(ledger.versions),
        "entries": ledger.head.length,
        "head": ledger.head.digest,
        "delta": bounds.total.delta,
        "epsilon": bounds.total.epsilon,
        "run_epsilon": None if bounds.run is None else bounds.run.epsilon,
        "month_epsilon": None if bounds.month is None else bounds.month.epsilon,
        "spent": ledger.spent(),
        "spent_this_month": ledger.spent(month=month),
        "runs": [
            {
                "run": name,
                "server": run.schedule.server,
                "month": run.month,
                "open": not run.closed,
                "rounds": run.participated(),
                "rounds_announced": run.schedule.participations,
                "epsilon": ledger.ceiling.epsilon_of(run.counted()),
            }
            for name, run in ledger.runs.items()
        ],
    }


def _print(ledger: "Ledger") -> None:
    facts = plain(ledger)
    console = stdout()
    console.print(Text(f"{facts['data']}: ledger {facts['ledger']}, {facts['entries']} entries, all hashes right"))
    console.print(_bounds(facts))
    if facts["runs"]:
        console.print(_runs(facts["runs"]))


def _bounds(facts: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=f"ε at δ = {facts['delta']:g}")
    for heading in ("", "at most", "spent or reserved"):
        table.add_column(heading)
    table.add_row("all runs", _limit(facts["epsilon"]), f"{facts['spent']:.3g}")
    table.add_row("this month", _limit(facts["month_epsilon"]), f"{facts['spent_this_month']:.3g}")
    table.add_row("one run", _limit(facts["run_epsilon"]), "")
    return table


def _limit(epsilon: float | None) -> str:
    return "no limit" if epsilon is None else f"{epsilon:g}"


def _runs(runs: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "server", "month", "rounds", "announced", "ε by itself", ""):
        table.add_column(heading)
    for run in runs:
        state = "open" if run["open"] else "closed"
        cells = (str(run["rounds"]), str(run["rounds_announced"]), f"{run['epsilon']:.3g}", state)
        table.add_row(Text(run["run"]), Text(run["server"]), run["month"], *cells)
    return table
