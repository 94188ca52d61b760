"""`fedlora validate`: every mistake of a configuration, in a second, before anything heavy is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.output import emit_json, stdout
from fedlora.errors import ConfigError

if TYPE_CHECKING:
    from fedlora.config.schema import RunConfig


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("validate")(validate)


def validate(
    said: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE] [OVERRIDES]...", help="A YAML file, then KEY=VALUE overrides.")
    ] = None,
    config_dir: Annotated[Path | None, typer.Option(help="A folder with config groups of your own.")] = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="Check every run of a sweep.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Check a configuration and report all of its mistakes at once."""
    from fedlora.config.compose import compose, compose_sweep

    file, overrides = split_file(said or [])
    try:
        if multirun:
            configs = [config for _, config in compose_sweep(overrides, config_dir=config_dir, file=file)]
        else:
            configs = [compose(overrides, config_dir=config_dir, file=file)]
    except ConfigError as error:
        if not as_json:
            raise
        emit_json({"valid": False, "problems": error.problems})
        raise typer.Exit(error.exit_code) from error
    _show(configs, as_json)


def split_file(said: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file, if the first argument is one (it exists, or looks like YAML), and the overrides."""
    if said and "=" not in said[0] and (Path(said[0]).is_file() or said[0].endswith((".yaml", ".yml"))):
        return Path(said[0]), list(said[1:])
    return None, list(said)


def _show(configs: Sequence["RunConfig"], as_json: bool) -> None:
    if as_json:
        emit_json({"valid": True, "configs": [config.model_dump(mode="json") for config in configs]})
        return
    for config in configs:
        stdout().print(f"valid: {describe(config)}", markup=False, soft_wrap=True)


def describe(config: "RunConfig") -> str:
    """The experiment in one line."""
    federation, partition = config.federation, config.data.partition.name
    return (
        f"{config.strategy.name} (r {config.adapter.r}, learning rate {config.train.lr:g}): {config.model.name} learns"
        f" {config.data.name}, dealt by {partition} to {federation.clients} clients, {federation.cohort} a round,"
        f" {federation.rounds} rounds, seed {config.seed}"
    )
