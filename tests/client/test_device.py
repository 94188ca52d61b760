"""What a client says of its machine."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedlora.client import device
from fedlora.client.device import device_words, usable_cores

PARTS = ("torch", "transformers", "flwr")


def gpu(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "information").write_text(text)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 25_200_000_000})())


@pytest.mark.usefixtures("machine")
def test_without_a_gpu(tmp_path: Path) -> None:
    assert device_words(tmp_path / "nowhere") == "2 CPU cores, 23 GiB, no GPU"


@pytest.mark.usefixtures("machine")
def test_gpus_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(tmp_path, "0000:01:00.0", "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 42\nGPU UUID: \t GPU-secret\n")
    assert device_words(tmp_path) == "2 CPU cores, 23 GiB, NVIDIA H100 80GB HBM3"
    gpu(tmp_path, "0000:02:00.0", "Model: NVIDIA H100 80GB HBM3\n")
    gpu(tmp_path, "0000:03:00.0", "Model: NVIDIA L4\n")
    assert device_words(tmp_path) == "2 CPU cores, 23 GiB, 2 × NVIDIA H100 80GB HBM3, NVIDIA L4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_words(tmp_path).endswith(", no GPU")


@pytest.mark.usefixtures("machine")
def test_what_cannot_be_read_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0" / "information").mkdir(parents=True)
    assert device_words(tmp_path).endswith(", no GPU")


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= (psutil.cpu_count() or 1)
    assert device_words().startswith(f"{usable_cores()} CPU core")


def test_nothing_heavy_is_loaded_for_it() -> None:
    program = (
        "import sys; from fedlora.client.introduction import device_words; device_words();"
        f"print([name for name in {PARTS!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
