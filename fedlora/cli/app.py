"""The command line: one module a command, each with a `register`. Nothing heavy is imported before a command runs."""

import inspect
from typing import Annotated, get_args, get_type_hints

import click
import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo

import fedlora
from fedlora.cli import (
    audit,
    ca,
    client,
    client_daemon,
    dashboard,
    data,
    doctor,
    export,
    ledger,
    ls,
    plan,
    report,
    run,
    runs,
    server,
    server_access,
    server_daemon,
    server_store,
    simulate,
    validate,
)
from fedlora.cli.output import stdout

COMMANDS = (
    simulate,
    validate,
    plan,
    audit,
    ledger,
    ls,
    run,
    runs,
    report,
    dashboard,
    export,
    data,
    ca,
    server,
    server_access,
    server_daemon,
    server_store,
    client,
    client_daemon,
    doctor,
)


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


def make_command() -> click.Command:
    """The application as one click command, ready to be called or described."""
    command = typer.main.get_command(make_app())
    _restore_help(command)
    return command


def _restore_help(command: click.Command) -> None:
    """Gives the arguments their help back: click 8.5 writes None over what typer 0.20 has noted there."""
    for member in command.commands.values() if isinstance(command, click.Group) else ():
        _restore_help(member)
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True) if command.callback else {}
    for argument in arguments:
        declared = [part for part in get_args(hints.get(str(argument.name))) if isinstance(part, ArgumentInfo)]
        argument.help = declared[0].help if declared else argument.help


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
