"""Each problem that `fedlora doctor` knows, made to happen."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedlora import doctor
from fedlora.cli.__main__ import run
from fedlora.data import assets
from fedlora.data.catalog import models
from fedlora.doctor import Finding, Level, examine
from fedlora.errors import ExitCode


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bad(findings: Iterator[Finding] | list[Finding], level: Level = Level.FAILURE) -> list[Finding]:
    found = [finding for finding in findings if finding.level is level]
    assert all(finding.fix for finding in found)
    return found


def test_sound_installation(tmp_path: Path) -> None:
    findings = examine(tmp_path / "runs")
    assert bad(findings) == []
    versions = {finding.check: finding.message for finding in findings}
    for name in ("torch", "flwr", "transformers", "peft", "opacus", "grpcio"):
        assert versions[name] == importlib.metadata.version(name)
    assert "fed_sb" in versions["strategies"]
    assert versions["assets"].startswith("0 of ")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()


def test_package_out_of_range_or_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs = ["numpy>=999", "no-such-package-x>=1", "torch>=2", "ray>=999; extra == 'ray'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    found = bad(doctor.packages(tmp_path))
    assert [(f.check, f.fix) for f in found] == [
        ("numpy", "pip install 'numpy>=999'"),
        ("no-such-package-x", "pip install 'no-such-package-x>=1'"),
    ]
    assert "outside >=999" in found[0].message


def test_python_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    (found,) = bad(doctor.python_version(tmp_path))
    assert "3.10.4 is not >=3.11" in found.message


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    (found,) = bad(doctor.threads(tmp_path), Level.WARNING)
    assert "8 on 1 usable cores, from OMP_NUM_THREADS=8" in found.message
    assert "OMP_NUM_THREADS=1" in found.fix


def test_container_quota_limits_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(doctor, "_CPU_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    quota.write_text("150000 100000\n")
    assert doctor.usable_cores() == 1.5
    quota.write_text("max 100000\n")
    assert doctor.usable_cores() == 4


@pytest.mark.parametrize(("free", "level"), [(1e8, Level.FAILURE), (1e9, Level.WARNING), (1e10, Level.OK)])
def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, level: Level) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    findings = list(doctor.disk(tmp_path / "runs"))
    assert [finding.level for finding in findings] == [level, level]
    assert all(bool(finding.fix) == (level is not Level.OK) for finding in findings)


def test_store_that_cannot_be_written() -> None:
    # /proc refuses new files, also to root.
    (found,) = bad(doctor.writable(Path("/proc/runs")))
    assert found.check == "store"
    assert "cannot write at /proc/runs" in found.message


def test_damaged_asset(cache: Path, tmp_path: Path) -> None:
    asset = next(iter(models().values()))
    assets.asset_dir(asset).mkdir(parents=True)
    (found,) = bad(doctor.assets(tmp_path))
    assert asset.requirement in found.message
    assert found.fix == f"rm -r {assets.asset_dir(asset)}"
    assert found.fix.startswith(f"rm -r {cache}")


def test_broken_plug_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = importlib.metadata.EntryPoint("broken", "no_such_module_x:Thing", "fedlora.strategies")
    monkeypatch.setattr("fedlora.strategies.registry.entry_points", lambda **_: [entry])
    (found,) = bad(doctor.methods(tmp_path))
    assert "'broken'" in found.message
    assert "no_such_module_x" in found.message


def test_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (found,) = bad(doctor.devices(tmp_path), Level.WARNING)
    assert "sees no GPU" in found.message


@pytest.mark.parametrize(("value", "words"), [("1", "is set: only hub"), ("0", "is not set")])
def test_offline_hub_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, words: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    (found,) = doctor.hub(tmp_path)
    assert words in found.message


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken_check(store: Path) -> Iterator[Finding]:
        raise OSError("libfoo.so is missing")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken_check, doctor.hub))
    findings = examine(tmp_path)
    assert [finding.level for finding in findings] == [Level.FAILURE, Level.OK]
    assert "OSError: libfoo.so is missing" in findings[0].message


@pytest.mark.parametrize(
    ("level", "code", "verdict"),
    [
        (Level.OK, ExitCode.OK, "sound"),
        (Level.WARNING, ExitCode.OK, "sound, with 1 to look at"),
        (Level.FAILURE, ExitCode.PROBLEMS_FOUND, "broken: 1 to repair, 0 to look at"),
    ],
)
def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: Level, code: ExitCode, verdict: str
) -> None:
    finding = Finding("disk", level, "1 GB [is] free", "" if level is Level.OK else "free some space")
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: iter([finding]),))
    assert run(["doctor"]) == code
    out = capsys.readouterr().out
    assert out.rstrip().endswith(verdict)
    assert "1 GB [is] free" in out
    assert ("fix: free some space" in out) == (level is not Level.OK)
    assert run(["doctor", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (level is not Level.FAILURE)
    assert found["findings"][0]["level"] == level
