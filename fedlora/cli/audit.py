"""`fedlora audit`: attacks the private mechanism of an experiment, and holds what it finds against the claimed ε."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout
from fedlora.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from fedlora.config.schema import RunConfig
    from fedlora.privacy.audit import Audit
    from fedlora.privacy.dp_sgd import DpSgd

LIMITS = (
    "An audit can show that a mechanism leaks more than it claims; it cannot show that it does not. Attacked were this"
    " program's own sampling, clipping and noise, with the worst gradients there are; how a record's gradient is made,"
    " the model and the network were not. One step finds noise that is a few per cent too small, a whole run only gross"
    " mistakes."
)


def register(app: typer.Typer) -> None:
    """Adds `audit` to the command line."""
    app.command("audit")(audit)


def audit(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE or GROUP=OPTION, as in Hydra.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings; overrides win over it.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help="A folder with config groups of your own.")] = None,
    canaries: Annotated[
        int, typer.Option(help="Made-up units that the attack looks for in one step; a fiftieth of them in the run.")
    ] = 500_000,
    confidence: Annotated[float, typer.Option(help="Probability with which all lower bounds hold together.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Attack the DP-SGD of an experiment and compare what leaks with the epsilon it claims. Needs no model, no data.

    Ends with 40 if more leaks than is claimed.
    """
    from fedlora.config.compose import compose
    from fedlora.privacy.audit import audit as run_audit

    settled = _settled(compose(overrides or [], config_dir=config_dir, file=config))
    mechanism, privacy = _mechanism(settled), settled.privacy
    found = run_audit(mechanism, privacy.delta, accountant=privacy.accountant, canaries=canaries, confidence=confidence)
    if as_json:
        emit_json(plain(mechanism, found))
    else:
        _show(mechanism, found)
    if found.contradicted:
        raise typer.Exit(ExitCode.PROBLEMS_FOUND)


def _settled(config: "RunConfig") -> "RunConfig":
    """`config` with its noise. Raises ConfigError unless clients train with DP-SGD."""
    from fedlora.privacy.schedule import settle_privacy

    if not config.privacy.local:
        problem = (
            f"privacy.name = {config.privacy.name} leaves nothing to audit: an audit attacks DP-SGD at the clients; set"
            " 'privacy=dp', and 'privacy.epsilon=3' or 'privacy.noise_multiplier=1'"
        )
        raise ConfigError([problem])
    return settle_privacy(config)


def _mechanism(config: "RunConfig") -> "DpSgd":
    """All noised steps of one client in a run of `config`, a sketch before round 1 included, as one mechanism."""
    from fedlora.privacy.schedule import run_releases, training_mechanism

    training, releases = training_mechanism(config), run_releases(config)
    sketches = sum(release.steps for release in releases.once)
    return replace(training, steps=training.steps * releases.participations + sketches)


def plain(mechanism: "DpSgd", found: "Audit") -> dict[str, Any]:
    """The result for a script."""
    bounds = [{**asdict(bound), "contradicted": bound.contradicted} for bound in found.bounds]
    return {"contradicted": found.contradicted, "mechanism": asdict(mechanism), **asdict(found), "bounds": bounds}


def _show(mechanism: "DpSgd", found: "Audit") -> None:
    table = Table(
        title=f"DP-SGD with noise multiplier {mechanism.noise_multiplier:.4g}, sampling rate {mechanism.rate:g},"
        f" {mechanism.steps:,} steps; epsilon at delta = {found.delta:g}",
        title_justify="left",
    )
    table.add_column("attack on")
    for heading in ("canaries", "claimed ε, at most", "shown ε, at least"):
        table.add_column(heading, justify="right")
    for bound in found.bounds:
        style = "red" if bound.contradicted else ""
        table.add_row(
            bound.name, f"{bound.canaries:,}", f"{bound.claimed:.3f}", Text(f"{bound.lower:.3f}", style=style)
        )
    console = stdout()
    console.print(table)
    console.print(_verdict(found))
    console.print(Text(LIMITS, style="dim"))


def _verdict(found: "Audit") -> Text:
    sure = f"(confidence {found.confidence:.4g})"
    if found.contradicted:
        return Text(f"CONTRADICTED: the mechanism leaks more than it claims {sure}", style="red")
    return Text(f"no contradiction found {sure}", style="green")
