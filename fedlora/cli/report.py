"""`fedlora report` and `fedlora runs compare`: pages about runs, and their figures beside each other."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout
from fedlora.cli.runs import plain, runs_app
from fedlora.cli.stores import open_store

if TYPE_CHECKING:  # heavy: matplotlib
    from fedlora.server.records import RunHistory
    from fedlora.simulations.report.comparison import Comparison

Store = Annotated[Path, typer.Option(help="The folder of the run store.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
_FIGURES = ("quality", "bytes", "seconds", "error", "virtual_seconds")


def register(app: typer.Typer) -> None:
    """Adds `report` to the command line; `runs compare` comes with `runs`."""
    app.command("report")(report)


def report(
    run: Annotated[str, typer.Argument(help="The run: `latest`, its id, name or folder.")],
    output: Annotated[Path | None, typer.Option(help="The file; by default report.html in the run's folder.")] = None,
    store: Store = Path("runs"),
    as_json: Json = False,
) -> None:
    """Write the HTML page of a run: one file that needs nothing else."""
    from fedlora.simulations.report import write_report

    (history,) = _histories(store, [run])
    path = write_report(history, output or history.run.folder / "report.html")
    _wrote(path, as_json, {"run": history.run.id, "report": str(path)})


@runs_app.command("compare")
def compare_runs(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more: ids, names or folders.", metavar="RUN RUN...")],
    output: Annotated[Path | None, typer.Option(help="Write an HTML page that overlays the runs' curves.")] = None,
    store: Store = Path("runs"),
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line for each configuration.")] = False,
) -> None:
    """Put runs beside each other; those that differ only in their seed become mean ± standard deviation."""
    from fedlora.simulations.compare import group_runs, privacy_together
    from fedlora.simulations.report import write_comparison
    from fedlora.simulations.report.comparison import compare, shared_metric

    if len(runs) < 2:
        raise typer.BadParameter(f"only {runs[0]!r} is named: name two runs or more", param_hint="RUN RUN...")
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other: give one of them", param_hint="--csv")
    histories = _histories(store, runs)
    comparison = compare(group_runs(histories), shared_metric(histories))
    page = write_comparison(histories, output) if output else None
    together = privacy_together(histories)
    if as_json:
        emit_json({**asdict(comparison), "page": str(page) if page else None, "privacy": together})
    elif as_csv:
        _write_csv(comparison)
    else:
        stdout().print(_table(comparison))
        if together:
            stdout().print(together, markup=False)
        if page:
            _wrote(page, False, {})


def _histories(store: Path, texts: Sequence[str]) -> "list[RunHistory]":
    """The runs that are meant, each once."""
    with open_store(store) as opened:
        found = {info.id: info for info in map(opened.find, texts)}
        return [opened.history(info) for info in found.values()]


def _wrote(path: Path, as_json: bool, facts: dict[str, Any]) -> None:
    if as_json:
        emit_json(facts)
    else:
        stdout().print(f"Wrote {path}", soft_wrap=True, markup=False)


def _write_csv(comparison: "Comparison") -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    spreads = [f"{name}_{part}" for name in _FIGURES for part in ("mean", "sd")]
    writer.writerow(["configuration", "seeds", "measure", "standing", *spreads])
    for standing in comparison.standings:
        seeds = " ".join(map(str, standing.seeds))
        writer.writerow([standing.label, seeds, comparison.quality, standing.standing, *_csv_figures(standing)])


def _csv_figures(standing: Any) -> Iterator[float | str]:
    for name in _FIGURES:
        summary = getattr(standing, name)
        yield "" if summary is None else summary.mean
        yield "" if summary is None or summary.sd is None else summary.sd


def _table(comparison: "Comparison") -> Table:
    from fedlora.simulations.report.comparison import figure_texts

    titles = (comparison.quality, "against the best", "bytes", "time", "aggregation error")
    table = Table("configuration", "seeds", box=None, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for standing in comparison.standings:
        quality, *others = figure_texts(standing)
        seeds = ", ".join(map(str, standing.seeds))
        style = "bold" if standing.standing == "best" else None
        table.add_row(plain(standing.label), Text(seeds), quality, standing.standing, *others, style=style)
    return table
