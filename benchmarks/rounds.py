"""What a round costs that does nothing: over fedlora's link, beside Flower's deployment; and with many clients.

    python -m benchmarks.rounds                          # 3 clients, 40 rounds, 4 KiB each way; then 200 clients
    python -m benchmarks.rounds --many 200 1000 --skip-flower
    python -m benchmarks.rounds --payload 400000 --json

Everything is on this machine, over TLS on loopback. fedlora: a server as `fedlora server run` has it, without a run to
drive, and resident clients, each in a process of its own, with certificates of their own, that send the tensor back
at once; a round is `LinkGrid.send_and_receive`, and both sides have every answer on the disk. Flower: a SuperLink and
as many SuperNodes, whose ClientApp does the same and whose ServerApp takes the time of the same call; once as it comes,
then with what its source lets one set, for each of --flower-polls: so often the ServerApp looks for answers itself
(`send_and_receive`: each 3 s), and each node's SuperExec for tasks (FLWR_SUPEREXEC_TASK_POLL_INTERVAL: 1 s). Not to be
set are a SuperNode's sleep of 3 s when no message is there, its looks for an answer each 0.5 s, and a new process for
each message, which `--isolation process` starts by other means.

--real-round: what an empty round is compared with. 5 s is a round of the quick start as README.md shows it (59.2 s for
12 rounds of ten clients, five a round, on two cores).
--many: so many clients at one server process, hosted many to a process, which do not put their answers on a disk.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rounds_flower, rounds_link
from benchmarks.rounds_processes import BenchmarkError, allow_connections

LINK = "fedlora"
MOST_ROUNDS = 2000
"""A client that answers empty rounds at once says more than a server takes in a minute (`FRAMES_A_MINUTE`) in 3000."""

Figures = dict[str, Any]


def summary(seconds: Sequence[float], real_round: float) -> Figures:
    """Median and 95th percentile, seconds; the median's share of a real round."""
    median, high = np.quantile(seconds, [0.5, 0.95])
    return {"median": float(median), "p95": float(high), "share": float(median) / real_round, "rounds": len(seconds)}


def few(asked: argparse.Namespace, folder: Path) -> dict[str, Figures]:
    """An empty round of each kind, and how many times it takes as long as fedlora's."""
    measures: dict[str, Callable[[Path], Sequence[float]]] = {LINK: partial(_link, asked)}
    if not asked.skip_flower:
        for settings in (rounds_flower.DEFAULTS, *map(rounds_flower.polling, asked.flower_polls)):
            measures[settings.name] = partial(_flower, asked, settings)
    found = {}
    for number, (name, measure) in enumerate(measures.items()):
        print(f"measuring {name}", file=sys.stderr, flush=True)
        found[name] = summary(measure(folder / f"few-{number}"), asked.real_round) | {"load": os.getloadavg()[0]}
    for row in found.values():
        row["fedlora_ratio"] = found[LINK]["median"] / row["median"]
    return found


def _link(asked: argparse.Namespace, folder: Path) -> Sequence[float]:
    folder.mkdir()
    clients = rounds_link.Asked(asked.clients, asked.rounds, asked.payload)
    seconds: Sequence[float] = rounds_link.measure(clients, folder)["seconds"]
    return seconds


def _flower(asked: argparse.Namespace, settings: rounds_flower.Settings, folder: Path) -> Sequence[float]:
    return rounds_flower.measure(settings, folder, asked.clients, asked.flower_rounds or asked.rounds, asked.payload)


def many(count: int, asked: argparse.Namespace, folder: Path) -> Figures:
    """What `count` clients at one server need."""
    print(f"measuring {count} clients", file=sys.stderr, flush=True)
    folder.mkdir()
    hosted = min(count, rounds_link.HOSTED)
    clients = rounds_link.Asked(count, asked.many_rounds, asked.payload, hosted)
    found = rounds_link.measure(clients, folder)
    kib = (found["mib"] - found["empty_mib"]) * 1024 / count
    return found | summary(found.pop("seconds"), asked.real_round) | {"kib_a_client": kib, "load": os.getloadavg()[0]}


def print_few(rows: Mapping[str, Figures], asked: argparse.Namespace) -> None:
    """The first table."""
    print(f"\nan empty round, {asked.clients} clients, {asked.payload:,} bytes each way, TLS on loopback")
    print(
        f"{'':20} {'rounds':>6} {'median':>11} {'p95':>11} {f'of a {asked.real_round:g} s round':>16}"
        f" {'fedlora / this':>15} {'load':>5}"
    )
    for name, row in rows.items():
        print(
            f"{name:20} {row['rounds']:6} {1000 * row['median']:8,.1f} ms {1000 * row['p95']:8,.1f} ms"
            f" {row['share']:16.2%} {row['fedlora_ratio']:15.5f} {row['load']:5.1f}"
        )
    if len(rows) > 1:
        print(f"Flower {importlib.metadata.version('flwr')}; polls: of the ServerApp, and of each node for tasks")


def print_many(rows: Mapping[int, Figures]) -> None:
    """The second table: of the server's process, clients apart."""
    print("\nmany clients at one server process (memory, CPU and files are the server's)")
    print(
        f"{'clients':>7} {'connected in':>12} {'median round':>13} {'p95':>11} {'of a round':>10} {'CPU a round':>11}"
        f" {'resident':>9} {'peak':>9} {'a client':>9} {'files':>6} {'load':>5}"
    )
    for count, row in rows.items():
        print(
            f"{count:7} {row['connected_seconds']:10.2f} s {1000 * row['median']:10,.0f} ms"
            f" {1000 * row['p95']:8,.0f} ms"
            f" {row['share']:10.1%} {row['cpu_seconds']:9.2f} s {row['mib']:5,.0f} MiB {row['peak_mib']:5,.0f} MiB"
            f" {row['kib_a_client']:5,.0f} KiB {row['open_files']:6} {row['load']:5.1f}"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ends with a message if one cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40, help="that count; one more goes before them")
    parser.add_argument("--flower-rounds", type=int, help="fewer for Flower, whose rounds take seconds")
    parser.add_argument(
        "--flower-polls", type=float, nargs="*", default=[0.1, 0.5], metavar="SECONDS", help="measured beside defaults"
    )
    parser.add_argument("--payload", type=int, default=4096, metavar="BYTES", help="of the tensor, each way")
    parser.add_argument("--real-round", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--many", type=int, nargs="*", default=[200], metavar="N", help="clients; none: not measured")
    parser.add_argument("--many-rounds", type=int, default=10, metavar="ROUNDS")
    parser.add_argument("--skip-flower", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    counts = (asked.clients, asked.many_rounds, *asked.many, asked.payload // 4, asked.flower_rounds or 1)
    polls = all(0.01 <= seconds <= 60 for seconds in asked.flower_polls)  # what Flower takes
    if min(counts) < 1 or not polls or not 1 <= asked.rounds <= MOST_ROUNDS or asked.real_round <= 0:
        parser.error(
            f"numbers must be positive, --payload at least 4, --rounds at most {MOST_ROUNDS}, --flower-polls 0.01 to 60"
        )
    return asked


def main() -> None:
    """The command."""
    asked = parse()
    folder = Path(tempfile.mkdtemp(prefix="fedlora-rounds-"))
    try:
        allow_connections(max([asked.clients, *asked.many]))  # the server needs them: told before anything begins
        found = {"few": few(asked, folder)}
        lots = {count: many(count, asked, folder / f"many-{number}") for number, count in enumerate(asked.many)}
    except BenchmarkError as error:
        raise SystemExit(str(error)) from error
    finally:
        shutil.rmtree(folder)
    if asked.json:
        print(json.dumps(found | {"many": lots}, indent=2))
        return
    print_few(found["few"], asked)
    if lots:
        print_many(lots)


if __name__ == "__main__":
    main()
