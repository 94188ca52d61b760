"""The page about the command line says what the commands say."""

from pathlib import Path

import click
import pytest

from fedlora.cli.__main__ import run
from fedlora.cli.app import make_command
from fedlora.cli.docs import main, render

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_current(tmp_path: Path) -> None:
    main([str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render()
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m fedlora.cli.docs"


def test_the_page_has_every_command_and_option() -> None:
    root = make_command()
    assert isinstance(root, click.Group)
    page = render()
    for path, command in leaves(root, "fedlora"):
        section = page.split(f"\n## {path}\n")[1].split("\n## ")[0]
        for param in command.params:
            word = param.opts[-1] if isinstance(param, click.Option) else param.make_metavar(click.Context(command))
            assert word.replace("|", "\\|") in section


def leaves(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        here = f"{path} {name}"
        found += leaves(command, here) if isinstance(command, click.Group) else [(here, command)]
    return found


def test_every_option_and_argument_says_what_it_is() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert [row for row in rows if row.rstrip(" |").endswith("`")] == []
    assert [row for row in rows if not row.split(" | ")[-1].strip(" |")] == []


def test_help_explains_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--help"]) == 0
    assert "KEY=VALUE or GROUP=OPTION" in capsys.readouterr().out
