"""The benchmarks of cohorts count what they say they count."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bound, dp_cohort, memory
from benchmarks.__main__ import NAMES
from benchmarks.cohort import Cohort
from benchmarks.peers.workload import Shape, Workload

SHAPE = Shape(clients=3, steps=2, batch=2, tokens=8, layers=2, width=64)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return Workload.build(tmp_path_factory.mktemp("workload"), SHAPE)


def test_the_products_are_those_of_frozen_layers_above_the_first_adapter(workload: Workload, tmp_path: Path) -> None:
    found = bound.products_of(Cohort.of(workload, tmp_path / "mean", ["model.head=mean"]))
    assert [each.back for each in found] == [False] * 3 + [True] * 9  # query, key, value of the first layer
    assert {each.rows for each in found} == {SHAPE.batch * SHAPE.tokens}
    each_layer = 4 * 64 * 64 + 2 * 64 * 256
    forward, back = 2 * each_layer, 2 * each_layer - 3 * 64 * 64
    operations = sum(each.operations(2) for each in found)
    assert operations == 2 * 2 * SHAPE.batch * SHAPE.tokens * (forward + back)
    shorter = bound.products_of(Cohort.of(workload, tmp_path / "stock", ["model.head=stock"]))
    assert sum(each.operations(2) for each in shorter) < operations


def test_the_products_alone_have_the_steps_layout(workload: Workload, tmp_path: Path) -> None:
    for prepack in ("true", "false"):
        found = bound.products_of(Cohort.of(workload, tmp_path / prepack, [f"train.prepack={prepack}"]))
        assert all((each.blocks is not None) is (prepack == "true") for each in found)
        bound.products_alone(found, 2, 1)()


def test_every_benchmark_that_is_named_is_there() -> None:
    root = Path(__file__).parents[1]
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("benchmarks/*.py")]
    named = {name for page in pages for name in re.findall(r"python -m benchmarks ([a-z_]+)", page.read_text())}
    assert {"simulation", "precision"} <= named <= set(NAMES)
    assert all("\ndef main(" in (root / "benchmarks" / f"{name}.py").read_text() for name in NAMES)


def test_a_step_is_measured_beside_its_products(workload: Workload, tmp_path: Path) -> None:
    found = bound.measured(bound.Case(2, "highest", "wall", 2), workload, tmp_path)
    row = bound.row(bound.Case(2, "highest", "wall", 2), [found, found], SHAPE.steps)
    assert 0 < row["share"] < 1
    assert row["gflops_step"] < row["gflops_products"]
    assert row["clients_a_second"] == pytest.approx(2 / (row["step_seconds"] * SHAPE.steps))


@pytest.mark.parametrize("name", ["open", "private"])
def test_both_sides_train_and_count_the_records(workload: Workload, tmp_path: Path, name: str) -> None:
    asked = argparse.Namespace(matmul="highest", group=2)
    side = dp_cohort.sides(workload, tmp_path, asked)[name]
    seconds, records = side.round(2, dp_cohort.CLOCKS["wall"])
    again = side.round(2, dp_cohort.CLOCKS["wall"])
    assert seconds > 0
    if name == "open":
        assert records == again[1] == 2 * SHAPE.steps * SHAPE.batch
    else:
        assert side.cohort.config.privacy.noise == "system"
        assert (tmp_path / "private" / "ledgers").is_dir()
        assert 0 <= records <= 2 * SHAPE.steps * SHAPE.rows


def test_dps_cost_is_by_record() -> None:
    found = dp_cohort.result({"open": [(1.0, 10)] * 5, "private": [(1.0, 8)] * 5})
    assert found["a record"]["ratio"] == pytest.approx(1.25)
    assert found["a round"]["ratio"] == pytest.approx(1.0)
    assert "| no |" in dp_cohort.told("W", found)


ROOT = Path(__file__).parents[1]
PEAK = """
import subprocess, sys
from benchmarks import memory
command = [sys.executable, "-c", "import time; kept = bytearray(150 * 2**20); time.sleep(1)"]
peak = memory.peak_of(lambda: subprocess.run(command, check=True))
print(peak.own, peak.all, peak.processes)
"""


def test_the_peak_is_that_of_the_processes_below() -> None:
    """In a process of its own: this one may have children of other tests."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    own, in_all, processes = map(float, done.stdout.split())
    assert 150 < own < 250
    assert in_all >= own
    assert processes == 1


def test_cohorts_grow_with_the_same_workers() -> None:
    asked = argparse.Namespace(only="groups of 4", workload="W", cohorts=[10, 40], growing=[memory.ENGINES[3]])
    assert [shape.clients for _, shape in memory.cases(asked)] == [20, 10, 40]
