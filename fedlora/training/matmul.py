"""Which of torch's float32 matmul precisions `train.matmul=auto` is on this machine: measured, never assumed.

`medium` lets the CPU take oneDNN's products in place of MKL's. On processors without AMX both compute in float32, and
oneDNN's were 1.0 to 2.3 times as fast on those that we saw; on processors with it, `medium` rounds to bfloat16. So it
is taken only where the error says float32 and the gain is large: a small one could be noise, and the choice decides
the last bits of every result. It is measured once and kept in the cache, so that a machine keeps its bits.
"""

import functools
import json
import platform
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from fedlora.config.schema import TrainConfig
from fedlora.data.cache import cache_dir
from fedlora.training.probe import Speed, products

GAIN = 1.5
"""How many times as fast as `highest` another precision must be to be taken."""

FILE = "arithmetic.json"


def matmul_precision(config: TrainConfig, device: torch.device) -> str:
    """The precision to set: the configured one, or what `auto` is here. On CUDA the lower ones round: highest."""
    if config.matmul != "auto":
        return config.matmul
    return "highest" if device.type == "cuda" else _measured_once(cache_dir() / FILE, _machine())


def verdict(highest: Speed, medium: Speed) -> str:
    """The faster one, if it is exact and much faster."""
    return "medium" if medium.exact and medium.gflops >= GAIN * highest.gflops else "highest"


@functools.cache
def _measured_once(file: Path, machine: str) -> str:
    known = _known(file)
    if machine not in known:
        known[machine] = verdict(*products(torch.device("cpu"), ("highest", "medium")))
        _keep(file, known)
    return known[machine]


def _machine() -> str:
    return " ".join((platform.machine(), _processor(), "torch", torch.__version__))


def _processor() -> str:
    """Its name; on Linux `platform.processor` often knows none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model\t", "CPU implementer", "CPU part")
    return ",".join(dict.fromkeys(line.partition(":")[2].strip() for line in lines if line.startswith(wanted)))


def _known(file: Path) -> dict[str, str]:
    """What is kept; a file that is not there or not ours says nothing."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: way for name, way in found.items() if way in ("highest", "medium")}


def _keep(file: Path, known: dict[str, str]) -> None:
    """Kept if it can be: without a cache it is measured again by the next process."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as draft:
            json.dump(known, draft, indent=1)
        Path(draft.name).replace(file)
