"""The pages about configuration and exit codes say what the code says."""

import re
import subprocess
import sys
from pathlib import Path

from fedlora.config.docs import main, render
from fedlora.errors import ExitCode

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_page_is_current(tmp_path: Path) -> None:
    main([str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render()
    current = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert current == render(), "run: python -m fedlora.config.docs"


def test_every_exit_code_is_explained() -> None:
    text = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+?) \|", text, re.MULTILINE)
    assert {(int(number), name) for number, name, _ in rows} == {(int(code), code.name) for code in ExitCode}


def test_the_schema_and_methods_load_nothing_heavy() -> None:
    code = (
        "import sys, fedlora.config.compose, fedlora.config.docs, fedlora.strategies.registry as r; r.strategies();"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
