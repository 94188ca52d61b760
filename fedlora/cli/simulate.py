"""`fedlora simulate`: one run, a sweep, or a run that goes on, on virtual clients of this machine."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer
from rich.console import Console
from typer.core import TyperCommand

from fedlora.cli.output import emit_json, stderr, stdout
from fedlora.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from fedlora.config.schema import RunConfig
    from fedlora.server.records import RunHistory


class _WithReference(TyperCommand):
    """Adds the groups, keys and flags to the help, looked up only when the help is asked for."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from fedlora.cli.reference import write_reference

        super().format_help(ctx, formatter)
        write_reference(formatter)


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("simulate", cls=_WithReference)(simulate)


def simulate(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE or GROUP=OPTION, as in Hydra.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings; overrides win over it.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help="A folder with config groups of your own.")] = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="Run a sweep: one run for each value.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="With --multirun: runs at a time.")] = 1,
    cfg: Annotated[Literal["job"] | None, typer.Option(help="Print the composed configuration and stop.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run: `latest`, its id, name or folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> int:
    """Run a federated fine-tuning experiment on virtual clients."""
    from fedlora.config.compose import compose, compose_sweep

    said = overrides or []
    progress = Console(quiet=True) if quiet else stderr() if as_json else stdout()
    if resume is not None:
        _require_alone(multirun=multirun, config=config, config_dir=config_dir, cfg=cfg)
        return _resume(resume, said, progress, as_json)
    if jobs > 1 and not multirun:
        raise ConfigError([f"--jobs is for --multirun: one run has no {jobs} jobs; add --multirun or drop it"])
    if multirun:
        configs = [found for _, found in compose_sweep(said, config_dir=config_dir, file=config)]
    else:
        configs = [compose(said, config_dir=config_dir, file=config)]
    if cfg:
        return _print_configs(configs, as_json)
    return _sweep(configs, jobs, progress, as_json) if multirun else _single(configs[0], progress, as_json)


def _require_alone(**options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise ConfigError([f"{', '.join(given)} with --resume: a resumed run keeps its own configuration; drop it"])


def _resume(name: str, overrides: Sequence[str], progress: Console, as_json: bool) -> int:
    """A resumed run may get more rounds; all else stays as it was, or it would not be the same run."""
    from fedlora.config.compose import compose

    said = {override.partition("=")[0] for override in overrides}
    other = sorted(said - {"federation.rounds", "store"})
    if other:
        raise ConfigError(
            [f"{key} with --resume: only federation.rounds (and store) can be set, the rest stays" for key in other]
        )
    config = compose(overrides)
    rounds = config.federation.rounds if "federation.rounds" in said else None
    from fedlora.simulations.command import resume_one  # after the checks: it loads torch

    return _finish([resume_one(config.store, name, rounds, progress)], progress, as_json)


def _single(config: "RunConfig", progress: Console, as_json: bool) -> int:
    from fedlora.simulations.command import simulate_one

    return _finish([simulate_one(config, progress)], progress, as_json)


def _sweep(configs: Sequence["RunConfig"], jobs: int, progress: Console, as_json: bool) -> int:
    from fedlora.simulations.command import as_json as plain
    from fedlora.simulations.command import simulate_sweep

    sweep = f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    histories = simulate_sweep(configs, sweep, jobs, progress)
    if as_json:
        emit_json({"sweep": sweep, "runs": [plain(history) for history in histories]})
    return _exit_code(histories)


def _finish(histories: Sequence["RunHistory"], progress: Console, as_json: bool) -> int:
    from fedlora.simulations.command import as_json as plain
    from fedlora.simulations.command import show_summary

    for history in histories:
        if as_json:
            emit_json(plain(history))
        else:
            show_summary(history, progress)
    return _exit_code(histories)


def _exit_code(histories: Sequence["RunHistory"]) -> ExitCode:
    """A run that was stopped by Ctrl-C after a checkpoint ends as interrupted."""
    from fedlora.server.records import RunStatus

    stopped = any(history.run.status is RunStatus.STOPPED for history in histories)
    return ExitCode.INTERRUPTED if stopped else ExitCode.OK


def _print_configs(configs: Sequence["RunConfig"], as_json: bool) -> int:
    import yaml

    plain = [config.model_dump(mode="json") for config in configs]
    if as_json:
        emit_json(plain if len(plain) > 1 else plain[0])
    else:
        text = yaml.safe_dump_all(plain, sort_keys=False, allow_unicode=True)
        stdout().print(text, end="", markup=False, soft_wrap=True)
    return ExitCode.OK
