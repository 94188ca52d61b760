"""The command line: one module a command, each with a `register`. Nothing heavy is imported before a command runs."""

from typing import Annotated

import click
import typer
from typer.core import TyperGroup

import fedlora
from fedlora.cli import doctor, export, ls, plan, report, runs, simulate, validate
from fedlora.cli.output import stdout

COMMANDS = (simulate, validate, plan, ls, runs, report, export, doctor)


class _PlainGroup(TyperGroup):
    """Writes the first help that anyone asks for without Rich, which alone would take a quarter of a second to load."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Command.format_help(self, ctx, formatter)


def make_app() -> typer.Typer:
    """The application with every command."""
    app = typer.Typer(
        name="fedlora",
        help=fedlora.__doc__,
        cls=_PlainGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for module in COMMANDS:
        module.register(app)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        stdout().print(f"fedlora {fedlora.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
]


# No docstring: Typer would show it in place of the application's help.
def _options(version: Version = False) -> None:
    del version
