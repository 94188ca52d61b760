"""`benchmarks.rounds` measures what it says, leaves nothing behind, and refuses what cannot be."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import rounds, rounds_flower, rounds_processes

ROOT = Path(__file__).resolve().parents[1]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.rounds", *arguments],
        cwd=ROOT,
        env=rounds_processes.environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def working_for(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_empty_rounds_are_timed_with_few_and_with_many_clients(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--rounds", "2", "--clients", "2", "--many", "4", "--many-rounds", "2", "--skip-flower", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    few, many = found["few"], found["many"]["4"]
    assert set(few) == {"fedlora"}
    assert few["fedlora"]["rounds"] == many["rounds"] == 2
    for row in (few["fedlora"], many):
        assert 0 < row["median"] <= row["p95"] < 60
        assert row["share"] == pytest.approx(row["median"] / 5.0)
    assert many["connected_seconds"] > 0
    assert many["cpu_seconds"] > 0
    assert many["mib"] >= many["empty_mib"] > 20
    assert many["open_files"] > 4
    assert not list(tmp_path.iterdir())
    assert not working_for(tmp_path)


def test_the_table_has_ratios_and_shares(capsys: pytest.CaptureFixture[str]) -> None:
    asked = rounds.parse(["--clients", "3"])
    found = {
        name: rounds.summary([seconds] * 3, 5.0) | {"load": 1.0, "fedlora_ratio": 0.01 / seconds}
        for name, seconds in (("fedlora", 0.01), (rounds_flower.DEFAULTS.name, 6.0))
    }
    rounds.print_few(found, asked)
    text = capsys.readouterr().out
    assert "0.20%" in text
    assert "120.00%" in text
    assert "0.00167" in text
    assert "Flower, defaults" in text


@pytest.mark.parametrize(
    "wrong", [["--rounds", "3000"], ["--clients", "0"], ["--many", "0"], ["--real-round", "0"], ["--flower-polls", "0"]]
)
def test_numbers_that_cannot_be_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rounds.parse(wrong)
    assert "must be positive" in capsys.readouterr().err


def test_too_few_open_files_are_a_clear_error() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 900))\n"
        "from benchmarks.rounds_processes import allow_connections\n"
        "allow_connections(300)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "allow_connections(1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "800\n"
    assert "1000 clients at one server need about 2200 open files in its process, and 900 are allowed" in done.stderr


def test_a_child_that_ends_early_is_told_with_its_log(tmp_path: Path) -> None:
    child = rounds_processes.Child("benchmarks.rounds_server", tmp_path / "server.log", {"sites": []})
    with (
        rounds_processes.ended_at_last([child]),
        pytest.raises(rounds_processes.BenchmarkError, match="KeyError: 'link'"),
    ):
        child.hear(60.0)
    assert not psutil.pid_exists(child.popen.pid)


@pytest.mark.slow
def test_flowers_deployment_takes_the_same_rounds(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--rounds", "2", "--flower-rounds", "1", "--flower-polls", "0.2", "--clients", "2", "--many", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["many"] == {}
    names = [rounds_flower.DEFAULTS.name, rounds_flower.polling(0.2).name]
    assert list(found["few"]) == ["fedlora", *names]
    for name in names:
        assert found["few"][name]["rounds"] == 1
        assert found["few"][name]["fedlora_ratio"] == found["few"]["fedlora"]["median"] / found["few"][name]["median"]
    assert not list(tmp_path.iterdir())
    assert not working_for(tmp_path)
