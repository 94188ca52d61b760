"""The repository's own checks find planted faults and pass the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_tool(name: str, root: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), str(root)], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout


def forbidden(tmp_path: Path, code: str) -> tuple[int, str]:
    package = tmp_path / "fedlora"
    package.mkdir()
    (package / "planted.py").write_text(code, encoding="utf-8")
    return run_tool("check_forbidden.py", tmp_path)


@pytest.mark.parametrize("tool", ["check_forbidden.py", "check_links.py"])
def test_repository_is_clean(tool: str) -> None:
    assert run_tool(tool, ROOT)[0] == 0, run_tool(tool, ROOT)[1]


@pytest.mark.parametrize(
    ("code", "line", "word"),
    [
        ("import pickle\n", 1, "imports pickle"),
        ("def f():\n    from dill import loads\n", 2, "imports dill"),
        ("import torch\ntorch.save({}, 'x')\n", 2, "uses torch.save"),
        ("import torch as t\nread = t.load\n", 2, "uses torch.load"),
        ("from torch import load as read\nread('x')\n", 2, "uses torch.load"),
        ("import yaml\nyaml.load('a: 1', yaml.FullLoader)\n", 2, "uses yaml.load"),
        ("from yaml import unsafe_load\nunsafe_load('a')\n", 2, "uses yaml.unsafe_load"),
        ("eval('1')\n", 1, "uses eval"),
        ("import builtins\nbuiltins.exec('1')\n", 2, "uses builtins.exec"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)\n", 2, "passes allow_pickle"),
        ("def f(m, on):\n    return m.from_pretrained('x', trust_remote_code=on)\n", 2, "passes trust_remote_code"),
        ("def f(x):\n    assert x\n", 2, "assert vanishes"),
        ("x = 1\n" * 301, 301, "301 lines"),
        ("x = (\n    'every step'\n    'of a round'\n)\n", 3, "no space between"),
        ("n = 1\nx = (\n    f'seen {n} rows.'  # why\n    f'Then {n} more'\n)\n", 4, "no space between"),
    ],
)
def test_forbidden_code_is_found(tmp_path: Path, code: str, line: int, word: str) -> None:
    status, output = forbidden(tmp_path, code)
    assert status == 1
    assert output.startswith(f"fedlora/planted.py:{line}: {word}"), output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    [
        "def f(model):\n    return model.eval()\n",
        "import numpy as np\nnp.load('x', allow_pickle=False)\n",
        "import yaml\nyaml.safe_load('a: 1')\n",
        "from json import load\nload\n",
        "import json\njson.load\n",
        "x = 1\n" * 300,
        "x = (\n    'every step '\n    'of a round'\n)\n",
        "x = (\n    'a text with a path/'\n    'that goes on'\n)\n",
        "x = (\n    'one line\\n'\n    'and the next'\n)\n",
        "digest = (\n    '0a1b2c'\n    'd3e4f5'\n)\n",
        "x = ['every step', 'of a round']\n",
    ],
)
def test_allowed_code_passes(tmp_path: Path, code: str) -> None:
    assert forbidden(tmp_path, code) == (0, "")


def test_long_function_is_a_remark(tmp_path: Path) -> None:
    status, output = forbidden(tmp_path, "def long():\n" + "    x = 1\n" * 60)
    assert (status, output) == (0, "fedlora/planted.py:1: remark: long has 61 lines\n")


def test_generated_code_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fedlora").mkdir()
    (tmp_path / "fedlora" / "planted_pb2.py").write_text("import pickle\n")
    assert run_tool("check_forbidden.py", tmp_path) == (0, "")


def write_pages(root: Path, pages: dict[str, str]) -> None:
    for name, text in pages.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


GOOD = {
    "README.md": "# Top\n[a](docs/a.md#second-part-it-works) ![p](pic.svg) [up](#top)\n<a href='docs/'>x</a> [x](y:)\n",
    "docs/README.md": "[b][ref]\n\n[ref]: <b c.md>\n",
    "docs/a.md": (
        "# A\n## Second part: *it* `works`!\n## Twice\n## Twice\n[again](#twice-1)\n"
        "```\n[no](no.md)\n```\n`[no](no.md)`\n"
    ),
    "docs/b c.md": '<a id="here"></a>\n[home](../README.md "Home") [root](/pic.svg) [here](#here)\n',
    "pic.svg": "<svg/>",
    ".venv/pkg/README.md": "[no](no.md)\n",
}


def test_good_links_pass(tmp_path: Path) -> None:
    write_pages(tmp_path, GOOD)
    assert run_tool("check_links.py", tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("page", "text", "fault"),
    [
        ("docs/a.md", "# A\n\n[x](missing.md)\n## Second part it works\n", "docs/a.md:3: missing.md does not exist"),
        ("docs/a.md", "# A\n", "README.md:2: docs/a.md#second-part-it-works: no heading makes the anchor"),
        ("docs/b c.md", "[x](#not-here)\n", "docs/b c.md:1: #not-here: no heading makes the anchor #not-here"),
        ("docs/b c.md", "[x](../../other)\n", "docs/b c.md:1: ../../other leaves the repository"),
        ("docs/b c.md", "~~~\n```\n~~~\n[x]: gone.md\n", "docs/b c.md:4: gone.md does not exist"),
        ("docs/b c.md", "<img src='gone.png'>\n", "docs/b c.md:1: gone.png does not exist"),
        ("docs/deep/lost.md", "# Lost\n", "docs/deep/lost.md:1: no chain of links from README.md leads here"),
    ],
)
def test_bad_links_are_found(tmp_path: Path, page: str, text: str, fault: str) -> None:
    write_pages(tmp_path, GOOD | {page: text})
    status, output = run_tool("check_links.py", tmp_path)
    assert status == 1
    assert output.startswith(fault), output
    assert output.count("\n") == 1


def test_pre_commit_runs_what_make_lint_runs() -> None:
    import yaml

    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0].replace("$(BIN)", ".venv/bin")
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in recipe.splitlines()[1:]]
