"""`fedlora simulate` as a real process: a run, Ctrl-C, resume, a sweep, a third party's strategy, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fedlora.errors import ExitCode
from tests.e2e.conftest import Fedlora

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(tiny_bert: Path, tiny_text_csv: Path) -> list[str]:
    """Overrides for a run of seconds."""
    return [
        "model=local",
        f"model.path={tiny_bert}",
        "data=local",
        f"data.path={tiny_text_csv}",
        "data.text=text",
        "data.label=label",
        "data/partition=iid",
        "adapter.r=2",
        "train.batch=8",
        "train.steps=2",
        "train.threads=1",
        "federation.clients=4",
        "federation.cohort=2",
        "federation.rounds=2",
    ]


def test_a_run_shows_its_rounds_and_leaves_its_results(fedlora: Fedlora, tiny: list[str], tmp_path: Path) -> None:
    done = fedlora("simulate", *tiny, "output=here")
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    for text in ("0/2", "1/2", "2/2", "finished", "test", "adapter", "report.html"):
        assert text in done.stdout
    assert (tmp_path / "here" / "adapter" / "adapter_model.safetensors").is_file()


def test_json_is_the_only_thing_on_stdout(fedlora: Fedlora, tiny: list[str]) -> None:
    done = fedlora("simulate", *tiny, "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    said = json.loads(done.stdout)
    assert said["status"] == "finished"
    assert [record["round"] for record in said["history"]] == [0, 1, 2]


def test_ctrl_c_stops_after_a_checkpoint_and_resume_goes_on(fedlora: Fedlora, tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedlora.cli", "simulate", *tiny, "federation.rounds=400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_for_round(process, tmp_path, 1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert "stopping after this round" in said
    assert "fedlora simulate --resume" in said
    shown = json.loads(fedlora("runs", "ls", "--json").stdout)
    (listed,) = shown if isinstance(shown, list) else shown["runs"]
    done = listed["rounds_done"]
    assert 1 <= done < 400
    resumed = fedlora("simulate", "--resume", "latest", f"federation.rounds={done + 1}", "--json")
    assert resumed.returncode == ExitCode.OK, resumed.stderr
    assert json.loads(resumed.stdout)["rounds_done"] == done + 1


def wait_for_round(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"runs/*/checkpoints/round-{number:04d}")):
        assert process.poll() is None, f"it ended with status {process.returncode}"
        assert time.monotonic() < deadline, "no round was committed"
        time.sleep(0.05)


def test_ctrl_c_stops_a_sweep(fedlora: Fedlora, tiny: list[str], tmp_path: Path) -> None:
    sweep = ["simulate", "-m", "--jobs", "2", *tiny, "federation.rounds=400", "seed=range(0,6)"]
    command = [sys.executable, "-m", "fedlora.cli", *sweep]
    # A shell that was told to work in the background ignores Ctrl-C, and so would all that it starts.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, preexec_fn=listening) as process:
        wait_for_round(process, tmp_path, 1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
        assert process.wait(timeout=120) == ExitCode.INTERRUPTED
    shown = json.loads(fedlora("runs", "ls", "--json").stdout)
    listed = shown if isinstance(shown, list) else shown["runs"]
    assert [run["status"] for run in listed] in (["stopped"], ["stopped"] * 2)


def test_a_sweep_puts_its_runs_into_the_store(fedlora: Fedlora, tiny: list[str]) -> None:
    done = fedlora("simulate", "--multirun", "--jobs", 2, *tiny, "strategy=ffa_lora,fed_sb", "seed=0,1", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    said = json.loads(done.stdout)
    assert [(run["strategy"], run["seed"]) for run in said["runs"]] == [
        ("ffa_lora", 0),
        ("ffa_lora", 1),
        ("fed_sb", 0),
        ("fed_sb", 1),
    ]
    compared = fedlora("runs", "compare", *[run["id"] for run in said["runs"]], "--json")
    assert compared.returncode == ExitCode.OK, compared.stderr
    assert json.loads(compared.stdout)


def test_a_third_partys_strategy_runs_without_touching_fedlora(
    fedlora: Fedlora, tiny: list[str], example_package: Path
) -> None:
    place = {"PYTHONPATH": str(example_package)}
    done = fedlora("simulate", *tiny, "strategy=fedsa_lora", "--json", **place)
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.loads(done.stdout)["strategy"] == "fedsa_lora"
    assert "fedsa_lora" in fedlora("ls", "strategies", **place).stdout
    unknown = fedlora("simulate", *tiny, "strategy=fedsa_lora")
    assert unknown.returncode == ExitCode.CONFIG
    assert "fedsa_lora" in unknown.stderr


@pytest.mark.parametrize(
    ("override", "code", "text"),
    [
        ("federation.clients=0", ExitCode.CONFIG, "federation.clients"),
        ("federation.clints=3", ExitCode.CONFIG, "federation.clients"),
        ("adapter.r=33", ExitCode.STRATEGY, "32"),
        ("federation.clients=1000", ExitCode.DATA, "1000"),
        ("data.label=labl", ExitCode.DATA, "labl"),
        ("model.path=nowhere", ExitCode.MODEL, "nowhere"),
    ],
)
def test_bad_input_is_a_clear_error_with_its_exit_code(
    fedlora: Fedlora, tiny: list[str], override: str, code: ExitCode, text: str
) -> None:
    done = fedlora("simulate", *tiny, "strategy=fed_sb", override)
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
