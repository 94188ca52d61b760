"""`fedlora doctor`: is this installation sound?"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedlora.cli.output import emit_json, stdout
from fedlora.errors import ExitCode

if TYPE_CHECKING:
    from fedlora.doctor import Finding

_LOOK = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red")}


def register(app: typer.Typer) -> None:
    """Adds `doctor` to the command line."""
    app.command("doctor")(doctor)


def doctor(
    store: Annotated[Path, typer.Option(help="The folder of the run store.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Examine the installation: versions, devices, threads, arithmetic, disks, caches. Each problem comes with its fix.

    Ends with 40 if something is broken; warnings alone end with 0.
    """
    from fedlora.doctor import Level, examine

    findings = examine(store)
    failed = any(finding.level is Level.FAILURE for finding in findings)
    if as_json:
        emit_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    if failed:
        raise typer.Exit(ExitCode.PROBLEMS_FOUND)


def _show(findings: "Sequence[Finding]") -> None:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        sign, style = _LOOK[finding.level]
        text = Text(finding.message)
        if finding.fix:
            text.append(f"\nfix: {finding.fix}", style=style)
        table.add_row(Text(sign, style=style), Text(finding.check), text)
    console = stdout()
    console.print(table)
    console.print(_verdict(findings))


def _verdict(findings: "Sequence[Finding]") -> Text:
    levels = [str(finding.level) for finding in findings]
    failures, warnings = levels.count("failure"), levels.count("warning")
    if failures:
        return Text(f"broken: {failures} to repair, {warnings} to look at", style="red")
    if warnings:
        return Text(f"sound, with {warnings} to look at", style="yellow")
    return Text("sound", style="green")
