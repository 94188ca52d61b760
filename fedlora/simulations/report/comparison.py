"""Several runs beside each other: the figures of each configuration, and a page that overlays their curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import StoreError
from fedlora.server.records import RoundRecord, RunHistory
from fedlora.simulations.compare import Group, Summary, group_runs, mean_curve, privacy_together, tie
from fedlora.simulations.report.charts import COLOURS, DASHES, Band, Chart, Key, Line, Plot, line_chart
from fedlora.simulations.report.curves import cumulative_bytes, cumulative_seconds, metric_of, virtual_seconds
from fedlora.simulations.report.render import render
from fedlora.words import byte_scale, bytes_text, number, seconds_text, spoken

Sums = Callable[[Sequence[RoundRecord]], Mapping[int, float]]


@dataclass(frozen=True)
class Standing:
    """One configuration's figures. quality: of the test split if all groups have it, else the last validation value.

    standing: "best", "tie" (with the best), "behind", or "not judged" where there is no standard deviation.
    bytes: up, down and sent once, of a whole run.
    virtual_seconds: of a whole run, in virtual time. error: mean aggregation error over a run's rounds.
    """

    label: str
    seeds: Sequence[int]
    runs: Sequence[str]
    quality: Summary | None
    bytes: Summary | None
    seconds: Summary | None
    error: Summary | None
    standing: str
    virtual_seconds: Summary | None = None


@dataclass(frozen=True)
class Comparison:
    """All configurations' figures, in the order of the groups, and what `quality` is."""

    quality: str
    standings: Sequence[Standing]


@dataclass(frozen=True)
class Row:
    """A line of the page's table; `cells` are quality, bytes, seconds and error as text."""

    label: str
    key: Key
    seeds: Sequence[int]
    standing: str
    cells: Sequence[str]


def summary_text(summary: Summary | None, write: Callable[[float], str]) -> str:
    """E.g. "36.7 MB ± 1.2 MB"; without ± for a single value, "–" for none."""
    if summary is None:
        return "–"
    return write(summary.mean) if summary.sd is None else f"{write(summary.mean)} ± {write(summary.sd)}"


def figure_texts(standing: Standing) -> list[str]:
    """Quality, bytes, seconds and error of a configuration as text.

    Quality has four decimals: a metric of a few thousand rows has no more. In virtual time, that is told too.
    """
    seconds = summary_text(standing.seconds, seconds_text)
    if standing.virtual_seconds is not None:
        seconds += f" (virtual: {summary_text(standing.virtual_seconds, seconds_text)})"
    return [
        summary_text(standing.quality, "{:.4f}".format),
        summary_text(standing.bytes, bytes_text),
        seconds,
        summary_text(standing.error, number),
    ]


def compare(groups: Sequence[Group], metric: str) -> Comparison:
    """The figures of each group. `metric` without a prefix, e.g. "accuracy"; loss is better when smaller."""
    tested = all(f"test_{metric}" in run.run.summary for group in groups for run in group.runs)
    qualities = [
        group.summary(f"test_{metric}") if tested else group.over(_last_values(group, f"validation_{metric}"))
        for group in groups
    ]
    words = _standings(qualities, smaller_is_better=metric.endswith("loss"))
    standings = [
        Standing(
            label=group.label,
            seeds=[run.run.seed for run in group.runs],
            runs=[run.run.id for run in group.runs],
            quality=quality,
            bytes=group.over([float(_total_bytes(run.rounds)) for run in group.runs]),
            seconds=group.over([sum(record.seconds for record in run.rounds) for run in group.runs]),
            error=group.over(_mean_errors(group)),
            standing=word,
            virtual_seconds=group.over(_virtual_times(group)),
        )
        for group, quality, word in zip(groups, qualities, words, strict=True)
    ]
    return Comparison(f"{'test' if tested else 'last validation'} {spoken(metric)}", standings)


def write_comparison(histories: Sequence[RunHistory], path: Path) -> Path:
    """Writes one self-contained page that overlays the runs, repeated seeds as mean ± sd; returns `path`.

    Raises StoreError if the page cannot be written or a run's configuration is no JSON.
    """
    groups = group_runs(histories)
    metric = shared_metric(histories)
    comparison = compare(groups, metric)
    try:
        return render(
            "comparison.html",
            path,
            quality=comparison.quality,
            rows=[_row(i, standing) for i, standing in enumerate(comparison.standings)],
            charts=comparison_charts(groups, metric),
            runs=[history.run for history in histories],
            privacy=privacy_together(histories),
        )
    except OSError as error:
        raise StoreError(f"cannot write the page {path}: {error}; free some space, or name another file") from error


def shared_metric(histories: Sequence[RunHistory]) -> str:
    """The one metric that all runs measured.

    Raises StoreError if the runs' tasks measure different things.
    """
    metrics = {metric_of(history.run, history.rounds): history.run.id for history in histories}
    if len(metrics) > 1:
        listed = ", ".join(f"{spoken(metric)} (run {run})" for metric, run in metrics.items())
        raise StoreError(
            f"these runs cannot be compared, they measure different things: {listed}; name runs of one task"
        )
    return next(iter(metrics))


def comparison_charts(groups: Sequence[Group], metric: str) -> list[Chart]:
    """The metric against rounds, bytes, seconds and virtual seconds, and the aggregation error."""
    key, name = f"validation_{metric}", spoken(metric)
    largest = max((_total_bytes(run.rounds) for group in groups for run in group.runs), default=0)
    factor, unit = byte_scale(largest)

    def sent(rounds: Sequence[RoundRecord]) -> Mapping[int, float]:
        return {number: total / factor for number, total in cumulative_bytes(rounds).items()}

    plots = [
        _overlay(groups, key, _round_numbers, Plot(f"{name} by round", "round", name, ())),
        _overlay(groups, key, sent, Plot(f"{name} by bytes sent", f"sent so far ({unit})", name, (), whole_x=False)),
        _overlay(groups, key, cumulative_seconds, Plot(f"{name} by time", "seconds", name, (), whole_x=False)),
        _overlay(
            groups, key, virtual_seconds, Plot(f"{name} by virtual time", "virtual seconds", name, (), whole_x=False)
        ),
        _overlay(
            groups,
            "aggregation_error",
            _round_numbers,
            Plot("aggregation error by round", "round", "relative error", ()),
        ),
    ]
    return [line_chart(plot) for plot in plots if plot.lines]


def _overlay(groups: Sequence[Group], key: str, x_of: Sums, frame: Plot) -> Plot:
    """`frame` with one mean line and, for repeated seeds, one ±sd band a group."""
    lines: list[Line] = []
    bands: list[Band] = []
    for index, group in enumerate(groups):
        curves = [(x_of(run.rounds), _values(run.rounds, key)) for run in group.runs]
        x, found = mean_curve([curve for curve in curves if curve[1]])
        if not x:
            continue
        lines.append(Line(group.label, x, [s.mean for s in found], index, _dash(index)))
        if any(s.sd for s in found):
            low, high = [s.mean - (s.sd or 0) for s in found], [s.mean + (s.sd or 0) for s in found]
            bands.append(Band(f"{group.label}, ± sd", x, low, high, index, 0.15))
    return Plot(frame.title, frame.x_label, frame.y_label, lines, bands, frame.whole_x)


def _values(rounds: Sequence[RoundRecord], key: str) -> dict[int, float]:
    return {record.round: float(record.metrics[key]) for record in rounds if key in record.metrics}


def _round_numbers(rounds: Sequence[RoundRecord]) -> Mapping[int, float]:
    return {record.round: float(record.round) for record in rounds}


def _last_values(group: Group, key: str) -> list[float]:
    seen = [list(_values(run.rounds, key).values()) for run in group.runs]
    return [values[-1] for values in seen if values]


def _mean_errors(group: Group) -> list[float]:
    seen = [list(_values(run.rounds, "aggregation_error").values()) for run in group.runs]
    return [sum(values) / len(values) for values in seen if values]


def _virtual_times(group: Group) -> list[float]:
    seen = [virtual_seconds(run.rounds) for run in group.runs]
    return [max(times.values()) for times in seen if times]


def _total_bytes(rounds: Sequence[RoundRecord]) -> int:
    return sum(record.bytes_up + record.bytes_down + record.bytes_once for record in rounds)


def _standings(qualities: Sequence[Summary | None], *, smaller_is_better: bool) -> list[str]:
    known = [quality for quality in qualities if quality is not None]
    if not known:
        return ["not judged"] * len(qualities)
    best = (min if smaller_is_better else max)(known, key=lambda quality: quality.mean)
    return [_standing(quality, best) for quality in qualities]


def _standing(quality: Summary | None, best: Summary) -> str:
    if quality is best:
        return "best"
    tied = None if quality is None else tie(quality, best)
    return "not judged" if tied is None else "tie" if tied else "behind"


def _dash(index: int) -> int:
    return index // COLOURS % len(DASHES)


def _row(index: int, standing: Standing) -> Row:
    key = Key(standing.label, "line", index % COLOURS, DASHES[_dash(index)])
    return Row(standing.label, key, standing.seeds, standing.standing, figure_texts(standing))
