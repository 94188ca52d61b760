"""Runs beside each other."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from fedlora.server.records import RunHistory, RunInfo
from fedlora.server.views.metrics import finite
from fedlora.server.views.model import Column, Comparison, Curve, Figure, Group, RunRow, Series
from fedlora.simulations import compare as runs_beside
from fedlora.simulations.compare import Summary

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def comparison(runs: Sequence[RunInfo], rows: Sequence[RunRow], series: Mapping[str, Series]) -> Comparison:
    """Of the runs, with their rows and columns."""
    groups = runs_beside.group_runs([RunHistory(run, ()) for run in runs])
    metric = _shared_metric(rows)
    figures = dict.fromkeys(name for run in runs for name in run.summary)
    labels = {name: words for found in series.values() for name, words in found.labels.items()}
    units = {name: words for found in series.values() for name, words in found.units.items()}
    return Comparison(
        rows=rows,
        series=series,
        groups=[_group(group, series, figures, metric) for group in groups],
        figures=list(figures),
        metric=metric,
        labels=labels,
        units=units,
    )


def as_csv(found: Comparison) -> str:
    """One line for each run and round, with every column that one of them has; RFC 4180, UTF-8.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    columns = list(dict.fromkeys(name for series in found.series.values() for name in series.columns))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["run", "name", "strategy", "seed", *map(_text, columns)])
    for row in found.rows:
        who = [_text(row.id), _text(row.name), _text(row.strategy), row.seed]
        writer.writerows([*who, *values] for values in _lines(found.series[row.id], columns))
    return out.getvalue()


def _lines(series: Series, columns: Sequence[str]) -> Iterator[Sequence[float | int | str | None]]:
    length = len(series.columns.get("round", ()))
    empty: Column = [None] * length
    return zip(*(series.columns.get(name, empty) for name in columns), strict=True)


def _text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _shared_metric(rows: Sequence[RunRow]) -> str:
    """The main metric that most of the runs have."""
    names = [row.metric_name for row in rows]
    return max(dict.fromkeys(names), key=names.count, default="")


def _group(group: runs_beside.Group, series: Mapping[str, Series], figures: Mapping[str, None], metric: str) -> Group:
    found = {name: summary for name in figures if (summary := group.summary(name)) is not None}
    return Group(
        label=group.label,
        runs=[history.run.id for history in group.runs],
        seeds=[history.run.seed for history in group.runs],
        figures={name: _figure(summary) for name, summary in found.items()},
        curve=_curve([series[history.run.id] for history in group.runs], metric),
    )


def _figure(summary: Summary) -> Figure:
    return Figure(summary.mean, None if summary.sd is None else finite(summary.sd), summary.n)


def _curve(series: Sequence[Series], metric: str) -> Curve:
    curves = [({n: float(n) for n in by_round}, by_round) for by_round in (_by_round(one, metric) for one in series)]
    rounds, summaries = runs_beside.mean_curve(curves)
    return Curve([int(number) for number in rounds], [one.mean for one in summaries], [one.sd for one in summaries])


def _by_round(series: Series, metric: str) -> Mapping[int, float]:
    rounds, values = series.columns["round"], series.columns.get(metric, ())
    pairs = zip(rounds, values, strict=False)
    return {int(number): float(value) for number, value in pairs if number is not None and value is not None}
