"""`fedlora data`: files for sites."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout

if TYPE_CHECKING:
    from fedlora.data.deal import Dealt

MOST_CLIENTS = 20

data_app = typer.Typer(name="data", help="Files for sites.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds `data` with its commands."""
    app.add_typer(data_app)


# Typer leaves out a group's name if the group has one command and no callback.
@data_app.callback()
def _group() -> None:
    pass


@data_app.command("deal")
def deal(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to; it must be new or empty.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE or GROUP=OPTION, as in Hydra.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings; overrides win over it.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help="A folder with config groups of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Write the rows that an experiment deals to its virtual clients as files, one for each."""
    from fedlora.config.compose import compose
    from fedlora.data.deal import LABELS
    from fedlora.data.deal import deal as write

    dealt = write(compose(overrides or [], config_dir=config_dir, file=config), out)
    if as_json:
        files = [{"client": d.client, "file": str(d.path), "rows": d.rows, "labels": dict(d.counts)} for d in dealt]
        emit_json({"folder": str(out), "labels": str(out / LABELS), "files": files})
    else:
        stdout().print(_table(dealt))
        stdout().print(f"wrote {len(dealt)} files and {LABELS} to {out}", markup=False, soft_wrap=True)


def _table(dealt: Sequence["Dealt"]) -> Table:
    more = len(dealt) - MOST_CLIENTS
    caption = f"and {more:,} more files" if more > 0 else None
    table = Table(title="Who holds what", title_justify="left", caption=caption, caption_justify="left")
    labels = sorted({label for each in dealt for label in each.counts})
    for heading in ("client", "file", "rows", *labels):
        table.add_column(Text(heading), justify="left" if heading == "file" else "right")
    for each in dealt[:MOST_CLIENTS]:
        counts = (f"{each.counts.get(label, 0):,}" for label in labels)
        table.add_row(str(each.client), each.path.name, f"{each.rows:,}", *counts)
    return table
