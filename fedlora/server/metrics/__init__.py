"""The server's metrics for Prometheus, in its text format. `docs/metrics.md` lists them.

They hold nothing that only the operator may see of a run under central DP: no counts, bytes or durations of its
rounds, and nothing of who took part.
"""

import threading
import time
from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from fedlora.identity.records import ClientRecord
from fedlora.server.metrics.collector import LinkState, ServerCollector
from fedlora.server.store import RunStore

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Of what `make_metrics` gives."""

PATH = "/metrics"
"""Where the operator's API has it."""

TOKEN = "metrics.token"  # noqa: S105 - a file's name
"""The file in a server's home with the token that opens `PATH`, and nothing else."""

FRESH = 1.0
"""Seconds for which a scrape is given out again."""


def make_metrics(
    store: RunStore, clients: Callable[[], Sequence[ClientRecord]], link: Callable[[], LinkState]
) -> Callable[[], bytes]:
    """What gives the metrics of a server, of `CONTENT_TYPE`; any thread may call it. It raises StoreError.

    clients: the registry's, e.g. `Registry.clients`. link: the link's state now. Both are called by each scrape.
    """
    return cached(ServerCollector(store, clients, link))


def cached(
    collector: Collector, fresh: float = FRESH, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bytes]:
    """The text of `collector` and of this process's own metrics; for `fresh` seconds the same. One scrape at a time."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    lock = threading.Lock()
    kept: list[tuple[float, bytes]] = []

    def text() -> bytes:
        with lock:
            if not kept or clock() - kept[0][0] >= fresh:
                kept[:] = [(clock(), generate_latest(registry))]
            return kept[0][1]

    return text
