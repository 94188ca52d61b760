"""`fedlora plan`: what a run would train, send and need, without running it."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout
from fedlora.words import bytes_text

if TYPE_CHECKING:
    from fedlora.simulations.plan import Plan

MOST_CLIENTS = 20


def register(app: typer.Typer) -> None:
    """Adds `plan` to the command line."""
    app.command("plan")(plan)


def plan(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE or GROUP=OPTION, as in Hydra.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings; overrides win over it.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help="A folder with config groups of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show what an experiment would train, send, need and guarantee. Reads the data, trains nothing."""
    from fedlora.config.compose import compose
    from fedlora.simulations.plan import make_plan

    made = make_plan(compose(overrides or [], config_dir=config_dir, file=config), MOST_CLIENTS)
    if as_json:
        emit_json(plain(made))
    else:
        _show(made, stdout())


def plain(plan: "Plan") -> dict[str, Any]:
    """The plan for a script."""
    found = asdict(plan)
    holders = plan.holders
    found["config"] = plan.config.model_dump(mode="json")
    found["holders"] = {
        "clients": holders.clients,
        "rows": holders.rows.tolist(),
        "labels": holders.labels,
        "counts": None if holders.counts is None else holders.counts.tolist(),
    }
    found["memory"]["total"] = plan.memory.total
    return found


def _show(plan: "Plan", console: Console) -> None:
    federation, traffic, memory = plan.config.federation, plan.traffic, plan.memory
    share = plan.trained_parameters / plan.base_parameters
    once = f"{bytes_text(traffic.once)} to each client" if traffic.once else "nothing"
    facts = {
        "strategy": f"{plan.config.strategy.name}, rank {plan.config.adapter.r}, s = {plan.config.adapter.s:g}",
        "base model": f"{plan.config.model.name}, {plan.base_parameters:,} parameters, frozen",
        "trained": f"{plan.trained_parameters:,} in {len(plan.modules)} modules ({share:.2%} of the base)"
        f" and {plan.trained_head_parameters:,} in the head",
        "up, a client and round": _apart(traffic.up, traffic.up_head),
        "down, a client and round": _apart(traffic.down, traffic.down_head),
        "sent once": once,
        "in all": f"{bytes_text(plan.total_bytes)} over {federation.rounds} rounds of {federation.cohort} clients",
        "steps": f"{plan.steps:,} of {plan.config.train.batch} records; each client takes part in"
        f" {plan.participations:.1f} rounds on average",
        **_privacy(plan),
        "memory": f"about {bytes_text(memory.total)}: base {bytes_text(memory.base)},"
        + (f" and for each of {memory.workers} workers:" if memory.workers > 1 else "")
        + f" adapter {bytes_text(memory.adapter)}, activations up to {bytes_text(memory.activations)}"
        " (Python, torch and data: 0.6 GB more)",
        "rows": ", ".join(f"{count:,} {name}" for name, count in plan.rows.items()),
    }
    console.print(_facts(facts))
    console.print(_holders(plan))
    console.print(_guarantees(plan))


def _privacy(plan: "Plan") -> dict[str, str]:
    """The mechanism and what it takes, under DP. What it promises is among what holds."""
    said, local = plan.privacy, plan.config.privacy.local
    if said.figures is None:
        return {}
    figures, mean = said.figures, plan.rows["train"] / plan.config.federation.clients
    rounds = f"at most {figures.participations} rounds"
    facts = {
        "privacy": f"{said.mode}: σ = {figures.noise_multiplier:.4g}, C = {figures.clip:g}, q = {figures.rate:g},"
        + (f" {figures.steps} steps in each of {rounds}" if local else f" {rounds}"),
        "sums": f"divided by {figures.divisor:g}"
        + (f"; a step draws {figures.rate * mean:.0f} of a client's {mean:.0f} rows on average" if local else ""),
        "unit": figures.unit,
        "trusted": said.trusted,
    }
    return facts | ({"careful": "; ".join(plan.cautions)} if plan.cautions else {})


def _apart(total: int, head: int) -> str:
    return f"{bytes_text(total - head)} adapter, {bytes_text(head)} head"


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _holders(plan: "Plan") -> Table:
    holders = plan.holders
    more = holders.clients - len(holders.rows)
    caption = f"and {more:,} more clients" if more else None
    table = Table(title="Who holds what", title_justify="left", caption=caption, caption_justify="left")
    for heading in ("client", "rows", *(holders.labels or ())):
        table.add_column(heading, justify="right")
    for client, rows in enumerate(holders.rows):
        counts: Iterable[int] = () if holders.counts is None else holders.counts[client]
        table.add_row(str(client), f"{rows:,}", *(str(count) for count in counts))
    return table


def _guarantees(plan: "Plan") -> Table:
    table = Table(box=None, show_header=False, title="What holds", title_justify="left", padding=(0, 1))
    for promise in plan.guarantees:
        sign = Text("✓", style="green") if promise.holds else Text("✗", style="yellow")
        table.add_row(sign, Text(promise.name), Text(promise.why))
    return table
