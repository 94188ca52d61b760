"""What may be wrong with an installation, and how to repair it. Each check is one small function in `CHECKS`."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedlora.errors import StrategyError

if TYPE_CHECKING:
    from fedlora.training.probe import Speed

PACKAGE = "fedlora"
_GB = 1e9
_LOW_DISK, _NO_DISK = 2 * _GB, 0.2 * _GB
_LOW_MEMORY = 2 * _GB
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Level(StrEnum):
    """How bad a finding is. Only a failure makes `fedlora doctor` end with a code that is not 0."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """What one check saw. `fix` says what to do about it, and is empty where nothing is wrong."""

    check: str
    level: Level
    message: str
    fix: str = ""


Check = Callable[[Path], Iterator[Finding]]
"""Takes the folder of the run store (which need not exist) and yields one finding or more."""


def examine(store: Path) -> list[Finding]:
    """The findings of every check, in order. A check that breaks is itself a failure; the others still run."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check(store)
        except Exception as error:  # noqa: BLE001 - an installation may be broken in any way; say so and go on
            name = check.__name__.replace("_", " ")
            message = f"cannot be examined: {type(error).__name__}: {error}"
            findings.append(Finding(name, Level.FAILURE, message, f"reinstall fedlora: pip install {PACKAGE}"))
    return findings


def python_version(store: Path) -> Iterator[Finding]:
    """Against `requires-python` of fedlora's metadata."""
    del store
    version = platform.python_version()
    wanted = SpecifierSet(importlib.metadata.metadata(PACKAGE)["Requires-Python"] or "")
    if wanted.contains(version, prereleases=True):
        yield Finding("python", Level.OK, f"{version} on {platform.system()} {platform.machine()}")
    else:
        yield Finding(
            "python", Level.FAILURE, f"{version} is not {wanted}", f"make a virtual environment with Python {wanted}"
        )


def packages(store: Path) -> Iterator[Finding]:
    """Every declared dependency against its range, and grpcio, which carries Flower's messages."""
    del store
    declared = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    needed = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in [*needed, Requirement("grpcio")]:
        yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    fix = f"pip install '{requirement}'"
    version = _version(requirement.name)
    if version is None:
        return Finding(requirement.name, Level.FAILURE, "is not installed", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, Level.FAILURE, f"{version} is outside {requirement.specifier}", fix)
    return Finding(requirement.name, Level.OK, version)


def ray(store: Path) -> Iterator[Finding]:
    """Whether Flower's own simulation can run."""
    del store
    version = _version("ray")
    missing = (
        "not installed; only engine=ray and `flwr run` on Flower's simulation need it (pip install 'fedlora[ray]')"
    )
    yield Finding("ray", Level.OK, version or missing)


def devices(store: Path) -> Iterator[Finding]:
    """The accelerators that torch sees."""
    del store
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield Finding("device", Level.OK, f"cuda:{index} {found.name}, {found.total_memory / _GB:.0f} GB")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "device",
            Level.WARNING,
            f"this machine has an NVIDIA driver, but torch {torch.__version__} sees no GPU",
            "install a CUDA build of torch that suits the driver, or set train.device=cpu to say that it is meant",
        )
    else:
        yield Finding("device", Level.OK, "CPU only")


def memory(store: Path) -> Iterator[Finding]:
    """Free main memory."""
    del store
    import psutil

    found = psutil.virtual_memory()
    message = f"{found.available / _GB:.1f} of {found.total / _GB:.1f} GB are free"
    if found.available < _LOW_MEMORY:
        fix = "end other programs, or take a smaller model and smaller batches; `fedlora plan` estimates the need"
        yield Finding("memory", Level.WARNING, message, fix)
    else:
        yield Finding("memory", Level.OK, message)


def threads(store: Path) -> Iterator[Finding]:
    """Whether torch runs as many threads as there are cores for it."""
    del store
    import torch

    cores, used = usable_cores(), torch.get_num_threads()
    setting = os.environ.get("OMP_NUM_THREADS")
    origin = f", from OMP_NUM_THREADS={setting}" if setting else ""
    message = f"torch uses {used} on {cores:g} usable cores{origin}"
    if used > max(1.0, cores):
        fix = f"set OMP_NUM_THREADS={max(1, int(cores))}, or train.threads in the configuration"
        yield Finding("threads", Level.WARNING, f"{message}: they hinder each other", fix)
    else:
        yield Finding("threads", Level.OK, message)


def arithmetic(store: Path) -> Iterator[Finding]:
    """How fast matrices are multiplied, and what `train.matmul` means on this machine."""
    del store
    import torch

    from fedlora.adapters.prepacked import possible
    from fedlora.training import probe

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield Finding("products", Level.OK, _products(probe.products(device), probe.halved(device)))
    if device.type == "cpu" and possible():
        plain, prepacked = probe.prepacked_products(torch.float32)
        text = f"{prepacked.gflops / plain.gflops:.2f} × the plain products' speed (error {prepacked.error:.0e})"
        yield Finding("train.prepack", Level.OK, text)
    ways = {name: f"{1000 * seconds:.2f} ms" for name, seconds in probe.attentions(device).items()}
    text = f"forward and backward over 64 tokens: {ways['eager']} as plain products, {ways['sdpa']} fused"
    yield Finding("attention", Level.OK, text)


def _products(found: "Sequence[Speed]", half: "Speed") -> str:
    highest, *others = found
    told = [f"float32 {highest.gflops:.0f} GFLOPS"]
    for other in others:
        kind = "float32 too" if other.exact else f"rounded: error {other.error:.0e}"
        told.append(f"train.matmul={other.way} {other.gflops / highest.gflops:.2f} × ({kind})")
    return ", ".join([*told, f"train.precision=bfloat16 {half.gflops / highest.gflops:.2f} × (error {half.error:.0e})"])


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and a container's quota where there is one."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    if not _CPU_QUOTA.exists():
        return cores
    quota, period = _CPU_QUOTA.read_text().split()
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def disk(store: Path) -> Iterator[Finding]:
    """Free space where downloads and runs go."""
    from fedlora.data.cache import CACHE_VARIABLE, cache_dir

    places = ("cache", cache_dir(), f"set {CACHE_VARIABLE} to"), ("store", store, "give --store")
    for name, folder, verb in places:
        free = shutil.disk_usage(existing(folder)).free
        level = Level.FAILURE if free < _NO_DISK else Level.WARNING if free < _LOW_DISK else Level.OK
        fix = "" if level is Level.OK else f"free some space, or {verb} a folder on another disk"
        yield Finding(f"disk of the {name}", level, f"{free / _GB:.1f} GB are free at {folder}", fix)


def writable(store: Path) -> Iterator[Finding]:
    """Whether downloads and runs can be written."""
    from fedlora.data.cache import CACHE_VARIABLE, cache_dir

    places = ("cache", cache_dir(), f"set {CACHE_VARIABLE} to"), ("store", store, "give --store")
    for name, folder, verb in places:
        try:
            with tempfile.TemporaryFile(dir=existing(folder)):
                pass
        except OSError as error:
            fix = f"give this user write permission there, or {verb} another folder"
            yield Finding(name, Level.FAILURE, f"cannot write at {folder}: {error}", fix)
        else:
            yield Finding(name, Level.OK, f"{folder} can be written")


def assets(store: Path) -> Iterator[Finding]:
    """The models and data sets in the cache, every byte of them."""
    del store
    from fedlora.data.assets import asset_dir, is_fetched, verify
    from fedlora.data.catalog import datasets, models

    known = [*models().values(), *datasets().values()]
    problems = {asset.name: verify(asset) for asset in known}
    here = [asset.name for asset in known if not problems[asset.name] and is_fetched(asset)]
    listed = f": {', '.join(here)}" if here else "; they are fetched at first use"
    yield Finding("assets", Level.OK, f"{len(here)} of {len(known)} are here and whole{listed}")
    for asset in known:
        for problem in problems[asset.name]:
            yield Finding("assets", Level.FAILURE, problem, f"rm -r {asset_dir(asset)}")


def methods(store: Path) -> Iterator[Finding]:
    """The strategies, those of installed packages too."""
    del store
    from fedlora.strategies.registry import strategies

    try:
        yield Finding("strategies", Level.OK, ", ".join(strategies()))
    except StrategyError as error:
        yield Finding("strategies", Level.FAILURE, str(error), "repair or uninstall that package")


def hub(store: Path) -> Iterator[Finding]:
    """Whether Hugging Face names can be fetched."""
    del store
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    said = "HF_HUB_OFFLINE is set: only hub models and data that are in the Hugging Face cache load"
    yield Finding("hub", Level.OK, said if offline else "HF_HUB_OFFLINE is not set: source=hub may download")


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS: tuple[Check, ...] = (
    python_version,
    packages,
    ray,
    devices,
    memory,
    threads,
    arithmetic,
    disk,
    writable,
    assets,
    methods,
    hub,
)
