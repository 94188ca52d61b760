"""Whether this machine has what its owner wants to be free before work begins."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from fedlora.client.home import SiteHome
from fedlora.client.policy import Limits
from fedlora.server.durable import free_bytes

LOOK = 0.5
"""Seconds for which the load of the processors is looked at."""

_MB = 1e6


@dataclass(frozen=True)
class Free:
    """What there is. memory_mb, disk_mb: MB (10⁶ bytes). cpu_busy: percent of all cores that others use, 0 to 100."""

    memory_mb: float
    disk_mb: float
    cpu_busy: float


def lacking(limits: Limits, home: SiteHome, free: Free | None = None) -> list[str]:
    """One sentence for each thing of which less is free than the policy asks; empty if work may begin.

    free: what there is; None: it is measured, which takes `LOOK` seconds if the policy has `limits.cpu_busy_most`.
    """
    return list(_lacking(limits, measured(limits, home) if free is None else free))


def measured(limits: Limits, home: SiteHome) -> Free:
    """What is free now; the load of the processors only if `limits` has a say in it, else 0."""
    return Free(
        memory_mb=psutil.virtual_memory().available / _MB,
        disk_mb=free_bytes(home.folder) / _MB,
        cpu_busy=0.0 if limits.cpu_busy_most is None else busy_by_others(LOOK),
    )


def busy_by_others(seconds: float) -> float:
    """Percent of all cores that processes other than this one and its children use in the next `seconds`."""
    began, own = time.monotonic(), _own_seconds()
    busy = psutil.cpu_percent(interval=seconds)
    spent = (_own_seconds() - own) / (time.monotonic() - began) / (psutil.cpu_count() or 1)
    return min(100.0, max(0.0, busy - 100 * spent))


def _own_seconds() -> float:
    this = psutil.Process()
    return sum(_seconds(process) for process in (this, *this.children(recursive=True)))


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended meanwhile
        return 0.0
    return float(times.user + times.system)


def _lacking(limits: Limits, free: Free) -> Iterator[str]:
    for key, least, there, what in (
        ("memory_mb_free_least", limits.memory_mb_free_least, free.memory_mb, "of memory"),
        ("disk_mb_free_least", limits.disk_mb_free_least, free.disk_mb, "on the home folder's disk"),
    ):
        if least is not None and there < least:
            yield f"limits.{key} = {least:g}, and {there:,.0f} MB {what} are free."
    most = limits.cpu_busy_most
    if most is not None and free.cpu_busy > most:
        yield f"limits.cpu_busy_most = {most:g}, and others use {free.cpu_busy:.0f} % of the processors."
