"""What the dashboard costs: 20 open pages beside a live federation, over a run of 200 clients and 1,000 rounds.

    python -m benchmarks.dashboard
    python -m benchmarks.dashboard --pairs 20 --seconds 30 --json    # figures come as they are there, JSON at the end
    python -m benchmarks.dashboard --steps 100                       # rounds of half a second

A server and three clients are processes on loopback, over TLS; the model is tiny, and --steps is how long its rounds
are (600: about three seconds on two cores; the quick start's are longer). The store is filled with one run of
--clients × --rounds before; that run's page is what is painted first. Then the live run is watched by --pages pages,
each in a browser context of its own that has logged in. Windows of --seconds with and without the pages follow each
other; a pair of them gives one ratio of rounds per second, and printed is the median ratio with its 95 % interval
(bootstrap over the pairs). The browser works on the same cores as the federation, which on two cores alone is most of
what is seen. So the same is done with as many plain readers (`dashboard_readers`) in the pages' place, which ask the
server for what pages ask; and as people look from machines of their own, readers have only the processor time that the
federation leaves (SCHED_IDLE), but with --compete an equal share. The server's CPU is the share of one core that its
process took.

Delays are from an event's time in the log to when a page shows it (pages), or has read it (readers).
"""

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.dashboard_pages import Pages
from benchmarks.rounds_processes import Child, ended_at_last
from fedlora.server.operator.access import Access, find_access
from fedlora.server.operator.client import OperatorClient
from fedlora.server.store import RunStore
from tests.e2e.federation import Federation

Watch = Callable[[], None]
SETTLE = 2.0
"""Seconds of each window that do not count: pages are being opened, or closed."""


@dataclass
class Windows:
    """What was seen in windows of one kind. rates: rounds/s; shares: of one core, the server's; sizes: its MB."""

    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)


@dataclass
class Stage:
    """A federation with a run that goes on."""

    federation: Federation
    access: Access
    run: str
    huge: str

    def rate(self, since: float, until: float) -> float:
        """Rounds of the live run per second, from the first to the last commit in a time (seconds of the epoch)."""
        log = self.federation.home / "runs" / self.run / "events.jsonl"
        lines = (json.loads(line) for line in log.read_text().splitlines() if '"round_committed"' in line[:30])
        times = (datetime.fromisoformat(line["time"]).timestamp() for line in lines)
        within = [moment for moment in times if since <= moment < until]
        return (len(within) - 1) / (within[-1] - within[0]) if len(within) > 1 else float("nan")

    def look(self, seconds: float, windows: Windows, go_on: Callable[[float], None]) -> None:
        """One window. go_on: lets so many seconds pass."""
        server = psutil.Process(self.federation.processes["server"].pid)
        go_on(SETTLE)
        began, before = time.time(), sum(server.cpu_times()[:2])
        go_on(seconds)
        ended, after = time.time(), sum(server.cpu_times()[:2])
        windows.rates.append(self.rate(began, ended))
        windows.shares.append((after - before) / (ended - began))
        windows.sizes.append(server.memory_info().rss / 1e6)


@contextmanager
def staged(asked: argparse.Namespace, folder: Path) -> Iterator[Stage]:
    """Server, clients, the recorded run and the live one, for the block."""
    from tests.server.views.filling import fill
    from tests.tiny import build_bert, build_text_csv

    federation = Federation(folder, build_bert(folder / "model"), build_text_csv(folder / "texts.csv"))
    federation.prepare()
    with RunStore.open(federation.home / "runs") as store:
        huge = fill(store, asked.clients, asked.rounds).id
    try:
        federation.start()
        access = find_access(None, federation.home, {})
        with OperatorClient(access) as operator:
            live = federation.experiment("federation.rounds=100000", f"train.steps={asked.steps}", "name=live")
            run = str(operator.submit(secrets.token_hex(8), live, None)["id"])
            stage = Stage(federation, access, run, huge)
            federation.until(lambda: operator.shown(run)["run"]["rounds_done"] >= 2)
            yield stage
    finally:
        federation.stop()


def watch_pages(stage: Stage, asked: argparse.Namespace) -> dict[str, Any]:
    """First paints of the recorded run's page; then windows with the live run's pages open, and without."""
    with Pages(stage.access.url, stage.access.token, asked.pages) as pages:
        paints = pages.paints(f"/runs/{stage.huge}")
        alone, watched = Windows(), Windows()
        for _ in range(asked.browser_pairs):
            pages.leave()
            stage.look(asked.seconds, alone, pages.wait)
            pages.open(f"/runs/{stage.run}")
            stage.look(asked.seconds, watched, pages.wait)
        delays = pages.delays()
    return {
        "first_paint": quantiles([paint for paint, _ in paints]),
        "numbers_there": quantiles([whole for _, whole in paints]),
        **judged(alone, watched, delays),
    }


def watch_readers(stage: Stage, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same with readers."""
    order = {
        "base": stage.access.url,
        "token": stage.access.token,
        "authority": str(stage.access.authority),
        "run": stage.run,
        "readers": asked.pages,
        "aside": not asked.compete,
    }
    alone, watched, delays = Windows(), Windows(), []
    for number in range(asked.pairs):
        stage.look(asked.seconds, alone, time.sleep)
        readers = Child("benchmarks.dashboard_readers", folder / f"readers-{number}.log", order)
        with ended_at_last([readers]):
            readers.hear()
            stage.look(asked.seconds, watched, time.sleep)
            readers.say("enough")
            delays += readers.hear()
    return judged(alone, watched, delays)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, and of how many."""
    median, high = np.quantile(values, [0.5, 0.95]) if len(values) else (float("nan"), float("nan"))
    return {"median": float(median), "p95": float(high), "n": len(values)}


def judged(alone: Windows, watched: Windows, delays: Sequence[float]) -> dict[str, Any]:
    """Rates, their ratio with its interval, CPU and memory."""
    ratios = np.array(watched.rates) / np.array(alone.rates)
    draw = np.random.default_rng(0)
    low, high = np.quantile(np.median(draw.choice(ratios, (2000, len(ratios))), axis=1), [0.025, 0.975])
    return {
        "event_delay": quantiles(delays),
        "rounds_per_second": [float(np.median(alone.rates)), float(np.median(watched.rates))],
        "ratio": {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "pairs": len(ratios)},
        "server_cores": [float(np.median(alone.shares)), float(np.median(watched.shares))],
        "server_megabytes": [max(alone.sizes), max(watched.sizes)],
    }


def told(name: str, found: Mapping[str, Any]) -> str:
    """Lines for people."""
    lines = [f"{name}:"]
    for key, words in (
        ("first_paint", "first paint"),
        ("numbers_there", "all numbers there"),
        ("event_delay", "delay"),
    ):
        if key in found:
            figures = found[key]
            lines.append(
                f"  {words:<18} median {figures['median']:.3f} s, 95 % within {figures['p95']:.3f} s (n={figures['n']})"
            )
    ratio = found["ratio"]
    rates, cores, sizes = (found[key] for key in ("rounds_per_second", "server_cores", "server_megabytes"))
    share = 100 * (cores[1] - cores[0]) / (os.cpu_count() or 1)
    lines += [
        f"  rounds per second  {rates[0]:.3f} alone, {rates[1]:.3f} watched",
        f"  ratio              {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}], {ratio['pairs']} pairs",
        f"  server's CPU       {cores[0]:.3f} cores alone, {cores[1]:.3f} watched: {share:.1f} % of this machine more",
        f"  server's memory    {sizes[0]:.0f} MB alone, {sizes[1]:.0f} MB watched",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--clients", type=int, default=200, help="of the recorded run")
    parser.add_argument("--rounds", type=int, default=1000, help="of the recorded run")
    parser.add_argument("--steps", type=int, default=600, help="of each client in a live round: how long rounds are")
    parser.add_argument("--pairs", type=int, default=6, help="of windows")
    parser.add_argument(
        "--browser-pairs", type=int, default=3, help="of windows with the browser: opening pages is slow"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of a window")
    parser.add_argument("--compete", action="store_true", help="readers have an equal share of the processor")
    parser.add_argument("--skip-browser", action="store_true", help="readers alone")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="fedlora-dashboard-") as name, staged(asked, Path(name)) as stage:
        found["readers"] = watch_readers(stage, asked, Path(name))
        print(told(f"{asked.pages} readers", found["readers"]), file=sys.stderr, flush=True)
        if not asked.skip_browser:
            found["pages"] = watch_pages(stage, asked)
            print(told(f"{asked.pages} pages", found["pages"]), file=sys.stderr, flush=True)
    found["load_after"] = os.getloadavg()[0]
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['cores']} cores, load {found['load_before']:.1f} before and {found['load_after']:.1f} after")


if __name__ == "__main__":
    main()
