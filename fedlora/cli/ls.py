"""`fedlora ls`: the strategies, models, data sets, experiments and keys that there are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedlora.cli.output import emit_json, stdout

if TYPE_CHECKING:
    from fedlora.data.catalog import Asset

ls_app = typer.Typer(name="ls", help="List what can be chosen.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Row = Mapping[str, Any]


def register(app: typer.Typer) -> None:
    """Adds `ls` to `app`."""
    app.add_typer(ls_app)


@ls_app.command("strategies")
def list_strategies(as_json: Json = False) -> None:
    """The methods for strategy=NAME, those of installed packages too."""
    from fedlora.strategies.registry import strategies

    _show(
        [
            {
                "name": name,
                "summary": method.summary,
                "exact": method.exact,
                "buffered": method.buffered,
                "paper": method.paper,
            }
            for name, method in strategies().items()
        ],
        as_json,
    )


@ls_app.command("models")
def list_models(as_json: Json = False) -> None:
    """The models that need no model hub, for model.source=asset."""
    from fedlora.data.catalog import models

    _show(_assets(models()), as_json)


@ls_app.command("data")
def list_data(as_json: Json = False) -> None:
    """The data sets that need no hub, for data.source=asset."""
    from fedlora.data.catalog import datasets

    _show(_assets(datasets()), as_json)


@ls_app.command("experiments")
def list_experiments(as_json: Json = False) -> None:
    """The ready experiments, for experiment=NAME."""
    from fedlora.config.groups import shipped
    from fedlora.config.headers import read_header

    files = {path.split("/")[1]: text for path, text in shipped().items() if path.startswith("experiment/")}
    headers = {name: read_header(text) for name, text in files.items()}
    _show(
        [{"name": name, "summary": header.summary, "command": header.command} for name, header in headers.items()],
        as_json,
    )


@ls_app.command("keys")
def list_keys(as_json: Json = False) -> None:
    """Every key of a configuration, for KEY=VALUE."""
    from fedlora.config.keys import keys

    _show(
        [
            {"key": key.name, "type": key.type, "default": key.default, "description": key.description}
            for key in keys().values()
        ],
        as_json,
    )


def _assets(assets: Mapping[str, "Asset"]) -> list[Row]:
    from fedlora.data.assets import asset_dir

    return [
        {
            "name": name,
            "summary": asset.summary,
            "licence": asset.licence,
            "megabytes": asset.megabytes,
            "folder": str(asset_dir(asset)) if asset_dir(asset).is_dir() else None,
        }
        for name, asset in assets.items()
    ]


def _show(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        emit_json(list(rows))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in rows[0]:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "key"))
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    stdout().print(table, markup=False)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
