"""What a run's history says, as series to draw."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedlora.server.clock import VIRTUAL_SECONDS
from fedlora.server.records import Outcome, RoundRecord, RunHistory, RunInfo
from fedlora.simulations.report.charts import Band, Chart, Line, Plot, line_chart
from fedlora.words import byte_scale, spoken

_LOOP_METRICS = ("train_loss", "aggregation_error", "aggregation_error_estimated", "clients_units", VIRTUAL_SECONDS)
"""Metrics of a round that the loop itself reports; beside them and `validation_…`, the strategy's own are left."""


def metric_of(run: RunInfo, rounds: Sequence[RoundRecord]) -> str:
    """The task's metric, without a prefix: "accuracy", "token_accuracy", … ("loss" if nothing else was measured)."""
    keys = [*run.summary, *(key for record in rounds for key in record.metrics)]
    for prefix in ("test_", "validation_", "clients_"):
        for key in keys:
            if key.startswith(prefix) and not key.endswith("loss"):
                return key.removeprefix(prefix)
    return "loss"


def series(rounds: Sequence[RoundRecord], key: str) -> tuple[list[float], list[float]]:
    """The rounds that have `key`, and its values there."""
    found = [(float(record.round), float(record.metrics[key])) for record in rounds if key in record.metrics]
    return [x for x, _ in found], [y for _, y in found]


def line(rounds: Sequence[RoundRecord], key: str, label: str, colour: int = 0, dash: int = 0) -> list[Line]:
    """The series of `key` as a line; none if no round has it."""
    x, y = series(rounds, key)
    return [Line(label, x, y, colour, dash)] if x else []


def client_values(record: RoundRecord, key: str) -> list[float]:
    """What the clients that reported in a round measured as `key`."""
    rows = (row for row in record.roster if row.outcome is Outcome.REPORTED)
    return [float(row.metrics[key]) for row in rows if math.isfinite(row.metrics.get(key, math.nan))]


def spread(rounds: Sequence[RoundRecord], key: str, colour: int = 1) -> tuple[list[Line], list[Band]]:
    """The clients' own `key` in each round: mean line, quartile band, band from least to most."""
    found = [(float(r.round), values) for r in rounds if (values := client_values(r, key))]
    if not found:
        return [], []
    x = [number for number, _ in found]
    quantiles = np.array([np.quantile(values, [0, 0.25, 0.75, 1]) for _, values in found]).T.tolist()
    bands = [
        Band("clients, lowest to highest", x, quantiles[0], quantiles[3], colour, 0.14),
        Band("clients, middle half", x, quantiles[1], quantiles[2], colour, 0.26),
    ]
    return [Line("mean of the clients", x, [float(np.mean(v)) for _, v in found], colour, dash=1)], bands


def metric_chart(history: RunHistory) -> Chart | None:
    """The task's metric on the validation split, and on each client's own held-out rows."""
    metric = metric_of(history.run, history.rounds)
    lines = line(history.rounds, f"validation_{metric}", "global model, validation split")
    lines += line(history.rounds, f"clients_{metric}", "received model, all clients' held-out rows", 3, 2)
    mean, bands = spread(history.rounds, f"holdout_{metric}")
    name = spoken(metric)
    note = "Clients measure the model that they receive, before they train it, on rows that they keep from training."
    return _chart(Plot(f"{name.capitalize()} by round", "round", name, lines + mean, bands, note=note if bands else ""))


def loss_chart(history: RunHistory) -> Chart | None:
    """Validation loss, the clients' loss while training, and their spread on held-out rows or their first batch."""
    lines = line(history.rounds, "validation_loss", "global model, validation split")
    lines += line(history.rounds, "train_loss", "local training", 2, 2)
    mean, bands = spread(history.rounds, "holdout_loss")
    note = ""
    if not bands:
        mean, bands = spread(history.rounds, "first_loss")
        note = (
            "A client's loss is that of the model it receives, on the first batch that it trains on." if bands else ""
        )
    return _chart(Plot("Loss by round", "round", "loss (nats)", lines + mean, bands, note=note))


def cumulative_bytes(rounds: Sequence[RoundRecord]) -> dict[int, int]:
    """Round → all bytes that were sent, either way, up to and with it."""
    total, sums = 0, {}
    for record in rounds:
        total += record.bytes_up + record.bytes_down + record.bytes_once
        sums[record.round] = total
    return sums


def cumulative_seconds(rounds: Sequence[RoundRecord]) -> dict[int, float]:
    """Round → seconds up to and with it."""
    total, sums = 0.0, {}
    for record in rounds:
        total += record.seconds
        sums[record.round] = total
    return sums


def virtual_seconds(rounds: Sequence[RoundRecord]) -> dict[int, float]:
    """Round → virtual seconds from the run's start to its end; empty for a run without virtual time."""
    return {r.round: float(r.metrics[VIRTUAL_SECONDS]) for r in rounds if VIRTUAL_SECONDS in r.metrics}


def time_chart(history: RunHistory) -> Chart | None:
    """The task's metric against the virtual time, if the run has one."""
    metric, times = metric_of(history.run, history.rounds), virtual_seconds(history.rounds)
    rounds, y = series([r for r in history.rounds if r.round in times], f"validation_{metric}")
    lines = [Line("validation split", [times[int(r)] for r in rounds], y)] if rounds else []
    name, note = spoken(metric), "What the simulated clients took, as virtual.* says; the server takes no time."
    return _chart(
        Plot(f"{name.capitalize()} by virtual time", "virtual seconds", name, lines, whole_x=False, note=note)
    )


def bytes_chart(history: RunHistory) -> Chart | None:
    """The task's metric against what it cost to send."""
    metric = metric_of(history.run, history.rounds)
    sent = cumulative_bytes(history.rounds)
    factor, unit = byte_scale(max(sent.values(), default=0))
    rounds, y = series(history.rounds, f"validation_{metric}")
    lines = [Line("validation split", [sent[int(r)] / factor for r in rounds], y)] if rounds else []
    name, note = spoken(metric), "Bytes of tensors, up and down and sent once, over all clients."
    x_label = f"sent so far ({unit})"
    return _chart(Plot(f"{name.capitalize()} by bytes sent", x_label, name, lines, whole_x=False, note=note))


def error_line(rounds: Sequence[RoundRecord], label: str, colour: int = 0, dash: int = 0) -> list[Line]:
    """The aggregation error, estimates marked."""
    found = [r for r in rounds if "aggregation_error" in r.metrics]
    estimated = frozenset(i for i, r in enumerate(found) if r.metrics.get("aggregation_error_estimated"))
    x, y = series(found, "aggregation_error")
    return [Line(label, x, y, colour, dash, estimated)] if x else []


def error_chart(history: RunHistory) -> Chart | None:
    """How far the aggregate is from the mean of the clients' updates."""
    lines = error_line(history.rounds, "aggregation error")
    note = "‖ΔW* − aggregate‖ / ‖ΔW*‖, where ΔW* is the weighted mean of the clients’ updates; 0 is exact."
    if any(drawn.hollow for drawn in lines):
        note += " Hollow marks are estimates from a fixed-seed sketch."
    return _chart(Plot("Aggregation error by round", "round", "relative error", lines, note=note))


def strategy_charts(history: RunHistory) -> list[Chart]:
    """One chart for each metric that only the strategy reports."""
    keys = dict.fromkeys(key for record in history.rounds for key in record.metrics)
    own = [key for key in keys if key not in _LOOP_METRICS and not key.startswith("validation_")]
    plots = (Plot(f"{spoken(k)} by round", "round", spoken(k), line(history.rounds, k, spoken(k))) for k in own)
    return [line_chart(plot) for plot in plots]


def run_charts(history: RunHistory) -> list[Chart]:
    """All charts of one run for which it has numbers."""
    makers: list[Callable[[RunHistory], Chart | None]] = [
        metric_chart,
        loss_chart,
        bytes_chart,
        time_chart,
        error_chart,
    ]
    return [chart for make in makers if (chart := make(history))] + strategy_charts(history)


def _chart(plot: Plot) -> Chart | None:
    return line_chart(plot) if plot.lines or plot.bands else None
