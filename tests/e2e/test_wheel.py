"""The wheel, not the checkout: what is in it, and that it runs from a folder of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedlora.errors import ExitCode

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATA_SUFFIXES = {".yaml", ".html", ".css", ".mako", ".md", ".typed", ".proto", ".pyi", ".js", ".json", ".svg", ".txt"}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def clone(folder: Path) -> Path:
    """What a clone of the working tree holds: the files that git knows, links as links, nothing that was built here."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    assert listed.returncode == 0, listed.stderr
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, folder / name
        if os.path.lexists(source):  # a file that was deleted but not committed yet is still listed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = clone(folder / "source")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the wheel into; its dependencies come from the environment of the tests."""
    target = tmp_path_factory.mktemp("installed")
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    done = run(sys.executable, "-m", "pip", "install", *offline, "--target", target, wheel)
    assert done.returncode == 0, done.stderr
    return target


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    held = contents(wheel)
    package = [path for path in (ROOT / "fedlora").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in package if path.suffix in DATA_SUFFIXES | {".py"}}
    for name in (
        "fedlora/py.typed",
        "fedlora/config/conf/config.yaml",
        "fedlora/simulations/report/templates/run.html",
        "fedlora/server/store/migrations/script.py.mako",
        "fedlora/server/dashboard/frontend/package-lock.json",
        "fedlora/server/dashboard/static/vendor/uPlot.iife.min.js",
    ):
        assert name in expected
    assert {name for name in held if name.startswith("fedlora/")} == expected
    others = {name.split("/")[0] for name in held} - {"fedlora"}
    assert all(name.startswith("fedlora-") and name.endswith(".dist-info") for name in others), others


def test_the_package_lacks_no_kind_of_file_that_it_needs() -> None:
    held = {path.suffix for path in (ROOT / "fedlora").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert held <= DATA_SUFFIXES | {".py"}, "name the new kind of file in pyproject.toml's package-data, and here"


def test_the_wheel_runs_outside_the_checkout(
    installed: Path, tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def python(*arguments: object) -> str:
        done = run(sys.executable, "-P", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == ExitCode.OK, done.stdout + done.stderr
        return done.stdout

    assert Path(python("-c", "import fedlora; print(fedlora.__file__)").strip()) == installed / "fedlora/__init__.py"
    cli = ["-m", "fedlora.cli"]
    assert "0." in python(*cli, "--version")
    assert "lora_fair" in python(*cli, "ls", "strategies")
    python(*cli, "validate", "strategy=fed_sb")
    tiny = [
        "model=local",
        f"model.path={tiny_bert}",
        "data=local",
        f"data.path={tiny_text_csv}",
        "data.text=text",
        "data.label=label",
        "adapter.r=2",
        "train.batch=8",
        "train.steps=1",
        "train.threads=1",
        "federation.clients=2",
        "federation.cohort=2",
        "federation.rounds=1",
    ]
    assert "finished" in python(*cli, "simulate", "strategy=fed_sb", *tiny, "output=here")
    assert (tmp_path / "here" / "report.html").is_file()
    assert (tmp_path / "here" / "adapter" / "adapter_model.safetensors").is_file()
