"""What this machine computes with, in a few words for the server's operator. Reads a few small files; loads nothing."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_MODEL = "Model:"
_GIB = 1 << 30


def device_words(gpus: Path = _NVIDIA) -> str:
    """E.g. "2 CPU cores, 24 GiB, no GPU", or "16 CPU cores, 128 GiB, 2 × NVIDIA L4". Memory is rounded to GiB.

    Cores are those that this process may use; memory is the machine's. gpus: the folder where NVIDIA's driver lists its
    devices; training uses no others. No driver is asked and no context is made, which would take memory of the device.
    """
    cores = usable_cores()
    memory = round(psutil.virtual_memory().total / _GIB)
    return f"{cores} CPU {'core' if cores == 1 else 'cores'}, {max(1, memory)} GiB, {_gpus(gpus)}"


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(folder: Path) -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "no GPU"
    found = Counter(_models(folder))
    named = [name if count == 1 else f"{count} × {name}" for name, count in sorted(found.items())]
    return ", ".join(named) or "no GPU"


def _models(folder: Path) -> Iterator[str]:
    """The name of each device that can be read; what cannot be read is no reason not to work."""
    with suppress(OSError):
        for path in sorted(folder.glob("*/information")):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (line.removeprefix(_MODEL).strip() for line in text.splitlines() if line.startswith(_MODEL))
