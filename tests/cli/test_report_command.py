"""`fedlora report` and `fedlora runs compare` on a real store."""

import csv
import io
import json
from pathlib import Path

import pytest

from fedlora.cli.__main__ import run
from fedlora.errors import ExitCode
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore
from tests.simulations.histories import make_history
from tests.tiny import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two seeds of each of two strategies."""
    with RunStore.open(tmp_path / "runs") as store:
        for strategy, level in (("fedavg", 0.85), ("ffa_lora", 0.91)):
            for seed in (0, 1):
                updates = {"seed": seed, "strategy.name": strategy}
                config = tiny_config(tmp_path / "bert", tmp_path / "text.csv", **updates)
                info = store.create(config, name=f"{strategy} {seed}", run_id=f"{strategy}-{seed}")
                history = make_history(strategy, seed, level=level)
                for record in history.rounds:
                    store.commit_round(info, record)
                store.finish(info, RunStatus.FINISHED, history.run.summary)
    return tmp_path / "runs"


def test_report_goes_into_the_runs_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "fedavg-0", "--store", str(folder), "--json"]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert found == {"run": "fedavg-0", "report": str(folder / "fedavg-0" / "report.html")}
    assert "fedavg finished" in Path(found["report"]).read_text()


def test_report_goes_where_it_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "page.html"
    assert run(["report", "latest", "--store", str(folder), "--output", str(target)]) == ExitCode.OK
    assert str(target) in capsys.readouterr().out
    assert target.stat().st_size > 10_000


def test_report_of_an_unknown_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "fedavv-0", "--store", str(folder)]) == ExitCode.UNKNOWN_RUN
    assert "fedavv-0" in capsys.readouterr().err


RUNS = ["fedavg-0", "fedavg-1", "ffa_lora-0", "ffa_lora-1"]


def test_compare_as_json_with_a_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "compare.html"
    code = run(["runs", "compare", *RUNS, RUNS[0], "--store", str(folder), "--json", "--output", str(page)])
    assert code == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert [(s["label"], s["seeds"], s["standing"]) for s in found["standings"]] == [
        ("fedavg", [0, 1], "behind"),
        ("ffa_lora", [0, 1], "best"),
    ]
    values = [make_history("fedavg", seed, level=0.85).run.summary["test_accuracy"] for seed in (0, 1)]
    assert found["standings"][0]["quality"]["mean"] == pytest.approx(sum(values) / 2)
    assert found["standings"][0]["quality"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "4 runs compared" in page.read_text()


def test_compare_as_csv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "compare", "fedavg-0", "ffa_lora-0", "--store", str(folder), "--csv"]) == ExitCode.OK
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["configuration"], row["quality_sd"], row["standing"]) for row in rows] == [
        ("fedavg", "", "not judged"),
        ("ffa_lora", "", "best"),
    ]
    assert float(rows[0]["bytes_mean"]) == 12 * 3_050_000 + 73_728


def test_compare_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "compare", *RUNS, "--store", str(folder)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert "behind" in out
    assert "36.7 MB ± 0 B" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["fedavg-0"], "name two runs or more"), ([*RUNS, "--csv", "--json"], "exclude each other")],
)
def test_compare_misused(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "compare", *arguments, "--store", str(folder)]) == ExitCode.CONFIG
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
