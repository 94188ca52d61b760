"""`docs/cli.md`, made from the commands themselves.

python -m fedlora.cli.docs [FILE]
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from fedlora.cli.app import make_command

_INTRODUCTION = """\
# The command line

Made by `python -m fedlora.cli.docs`; change the commands, not this page.

`fedlora COMMAND --help` shows the same in a terminal; `-h` is short for `--help`. `fedlora --version` prints the
version, `fedlora --install-completion` teaches your shell to complete commands with the Tab key.

- A configuration is given as `GROUP=OPTION` and `KEY=VALUE`: see [configuration.md](configuration.md). In a shell, put
  an override in single quotes if it holds spaces, brackets, `$` or `*`.
- Where a command asks for a RUN, say `latest`, the run's id or how it begins, its name if only one run has it, or its
  folder.
- `--json` prints one JSON document on standard output, also for an error; progress then goes to standard error.
- Every command ends with one of the [exit codes](exit-codes.md).
"""

_NOTES: Mapping[str, str] = {
    "simulate": """\
`fedlora simulate --help` also lists the config groups, the common keys and Hydra's flags. With `--resume`, only
`federation.rounds` and `store` may be set. [research.md](research.md) goes by task.""",
    "validate": "Loads no model and reads no data: what only those can show to be wrong, `plan` finds.",
    "plan": "[research.md](research.md#look-before-you-run) says what each figure means.",
}


def render() -> str:
    """The whole page as Markdown."""
    found = list(_commands("fedlora", make_command()))
    contents = [f"- [`{path}`](#{path.replace(' ', '-')}): {_first_line(command)}" for path, command in found]
    sections = [line for path, command in found for line in _section(path, command)]
    return "\n".join([_INTRODUCTION, *contents, "", *sections])


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by the words it is called with; groups are only walked through."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, member in command.commands.items():
        yield from _commands(f"{path} {name}", member)


def _first_line(command: click.Command) -> str:
    return (command.help or "").splitlines()[0]


def _section(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    words = " ".join([path, "[OPTIONS]", *(param.make_metavar(context) for param in arguments)])
    yield f"## {path}\n\n```\n{words}\n```\n\n{command.help or ''}\n"
    yield from _table([_row(param, context) for param in command.params])
    note = _NOTES.get(path.removeprefix("fedlora "), "")
    if note:
        yield f"{note}\n"


def _row(param: click.Parameter, context: click.Context) -> tuple[str, str, str]:
    default = "" if param.default in (None, False) else f"`{param.default}`"
    return _spelling(param, context), default, str(getattr(param, "help", None) or "")


def _spelling(param: click.Parameter, context: click.Context) -> str:
    metavar = param.make_metavar(context)
    if isinstance(param, click.Argument):
        return f"`{metavar}`"
    value = "" if getattr(param, "is_flag", False) else f" {metavar}"
    return ", ".join(f"`{name}{value}`" for name in param.opts)


def _table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    lines = [("option", "default", "meaning"), ("---", "---", "---"), *rows]
    for line in lines:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
    yield ""


def main(arguments: Sequence[str]) -> None:
    """Writes the page to the file that is named, by default `docs/cli.md`."""
    Path(arguments[0] if arguments else "docs/cli.md").write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
