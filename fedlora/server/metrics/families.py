"""Every metric that the server exports: name, type, labels, meaning. `docs/metrics.md` has the same table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

MAX_LABEL = 200
"""Characters of a label's value; what is longer is cut."""

RUN = ("run", "strategy")


@dataclass(frozen=True)
class Family:
    """One metric. kind: gauge or counter (its name ends in `_total`). labels: without `instance` and `job`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    def metric(self, samples: Mapping[tuple[str, ...], float]) -> Metric:
        """With `samples`: the labels' values → the value."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        found = make(self.name, self.help, labels=self.labels)
        for values, value in samples.items():
            found.add_metric(values, value)
        return found


def _gauge(name: str, *labels: str, tells: str) -> Family:
    return Family(f"fedlora_{name}", "gauge", labels, tells)


def _counter(name: str, *labels: str, tells: str) -> Family:
    return Family(f"fedlora_{name}_total", "counter", labels, tells)


FAMILIES: Sequence[Family] = (
    _gauge("build_info", "version", tells="1, with the version of the package"),
    _gauge("runs", "status", tells="Runs in the store"),
    _gauge("queue_length", tells="Runs that wait for their turn"),
    _gauge("run_info", *RUN, "name", "status", "privacy", tells="1, with what a run is and how it stands"),
    _gauge("run_round", *RUN, tells="The last committed round; 0 is the state before training"),
    _gauge("run_rounds", *RUN, tells="Rounds that the run has in all"),
    _gauge("run_last_commit_timestamp_seconds", *RUN, tells="When the last round was committed, since the epoch"),
    _gauge("run_last_round_seconds", *RUN, tells="How long the last committed round took"),
    _counter("run_updates", *RUN, "outcome", tells="What became of the clients asked, in committed rounds"),
    _counter("run_bytes", *RUN, "direction", tells="Bytes of tensors of committed rounds: up, down, once"),
    _gauge("run_metric", *RUN, "metric", tells="A figure of the last committed round"),
    _gauge("run_epsilon", *RUN, "view", tells="Epsilon spent so far, at most, at the run's delta"),
    _gauge("run_epsilon_limit", *RUN, "view", tells="Epsilon that the run has announced, at most"),
    _gauge("clients", "status", tells="Clients in the registry"),
    _gauge("client_connected", "client", tells="1 while the client is connected"),
    _gauge("client_paused", "client", tells="1 while the connected client takes no work"),
    _gauge("client_last_seen_timestamp_seconds", "client", tells="When the client was last there, since the epoch"),
    _gauge(
        "client_certificate_expiry_timestamp_seconds",
        "client",
        tells="When the client's certificate expires, since the epoch",
    ),
    _counter("client_updates", "client", "outcome", tells="What became of what the client was asked"),
    _counter("client_bytes", "client", "direction", tells="Bytes of tensors from (up) and to (down) the client"),
    _gauge("link_connected_clients", tells="Clients that are connected"),
    _gauge("link_open_works", tells="Answers that the server waits for"),
)


class Sheet:
    """Samples by family, as they are found. A name that is none of `FAMILIES`, or other labels, are a KeyError."""

    def __init__(self) -> None:
        self._families = {family.name: family for family in FAMILIES}
        self._samples: dict[str, dict[tuple[str, ...], float]] = {family.name: {} for family in FAMILIES}

    def add(self, name: str, value: float, /, **labels: str) -> None:
        """Adds a sample. Of two with the same labels, the later counts."""
        known = self._families[f"fedlora_{name}"]
        if labels.keys() != set(known.labels):
            raise KeyError(f"{known.name} has the labels {known.labels}, not {tuple(labels)}")
        self._samples[known.name][tuple(_label(labels[key]) for key in known.labels)] = value

    def metrics(self) -> Iterator[Metric]:
        """All families, in their order; those without a sample too."""
        for name, samples in self._samples.items():
            yield self._families[name].metric(samples)


def _label(text: str) -> str:
    """`text` as UTF-8 can hold it. The library escapes what the format needs escaped."""
    return text[:MAX_LABEL].encode("utf-8", "replace").decode()
