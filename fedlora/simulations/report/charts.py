"""Charts as inline SVG that takes its colours from the page, so that one picture suits light, dark and paper.

matplotlib draws in stand-in colours, each of which is replaced by a CSS variable of `style.css`. Text stays text: it
can be searched, read aloud and copied. Every chart carries its numbers as a table.
"""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fedlora.words import number

COLOURS = 8
"""How many series colours the style sheet has (`--s0` …)."""
DASHES = ("none", "6 3", "2 2", "8 3 2 3")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SIZE = (4.0, 2.45)  # inches: small, so that its text is still legible where a phone is as wide as one chart
_INK, _GRID, _SURFACE = "#01fe10", "#01fe11", "#01fe12"
_STAND_IN = re.compile(r"#01fe([0-9a-f]{2})")
_VARIABLES = {"10": "--ink-soft", "11": "--grid", "12": "--surface"} | {f"2{i}": f"--s{i}" for i in range(COLOURS)}
_SVG = re.compile(r'<svg\b[^>]*?\bviewBox="([^"]*)"[^>]*>(.*)</svg>', re.DOTALL)
_DROPPED = re.compile(
    r"<metadata>.*?</metadata>|<style\b.*?</style>", re.DOTALL
)  # a style would hold for the whole page
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')  # ids must be unique in the page
_MARKED = 40  # points up to which each one is marked
_LOG_SPAN = 50.0  # a log axis where the largest value is this many times the smallest
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedlora",
    "text.parse_math": False,  # a client's or label's name may hold a dollar sign
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Line:
    """A series: `x` and `y` of one length, NaN where there is no value. colour: any number ≥ 0; dash: 0 is solid.

    hollow: positions whose marker is drawn empty (estimates).
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0
    hollow: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Band:
    """The area between `low` and `high`, with the given opacity."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: int = 0
    opacity: float = 0.18


@dataclass(frozen=True)
class Key:
    """One entry of a legend. `kind` is line, dot (hollow marker), or area."""

    label: str
    kind: str
    colour: int
    dash: str = "none"
    opacity: float = 1.0


@dataclass(frozen=True)
class Table:
    """Numbers as text; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A drawn chart with what stands around it."""

    title: str
    svg: Markup
    keys: Sequence[Key]
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """What to draw: lines and bands over a common x axis. `whole_x` keeps ticks at whole numbers (rounds)."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    whole_x: bool = True
    note: str = ""
    keys: Sequence[Key] = field(default_factory=tuple)


def line_chart(plot: Plot) -> Chart:
    """Draws `plot`; the y axis is logarithmic where the positive values span a factor of 50 or more."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas()
        for band in plot.bands:
            axes.fill_between(band.x, band.low, band.high, color=_colour(band.colour), alpha=band.opacity, linewidth=0)
        for line in plot.lines:
            _draw_line(axes, line)
        log = _spans_decades(plot.lines)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(f"{plot.y_label} (log scale)" if log else plot.y_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=plot.whole_x))
        svg = _svg(figure, plot.title)
    return Chart(plot.title, svg, plot.keys or _keys(plot), _numbers(plot), plot.note)


def stacked_bars(title: str, rows: Sequence[str], parts: Sequence[str], counts: Sequence[Sequence[float]]) -> Chart:
    """One horizontal bar a row, with a segment a part. counts: [len(rows)][len(parts)], each ≥ 0."""
    height = 0.75 + 0.21 * len(rows)
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(height)
        left = [0.0] * len(rows)
        for part in range(len(parts)):
            widths = [float(row[part]) for row in counts]
            axes.barh(
                range(len(rows)), widths, left=left, height=0.78, color=_colour(part), edgecolor=_SURFACE, linewidth=0.6
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("rows")
        axes.set_ylabel("client")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        svg = _svg(figure, title)
    keys = [Key(name, "area", i % COLOURS) for i, name in enumerate(parts)]
    body = [[name, *(number(n) for n in row), number(sum(row))] for name, row in zip(rows, counts, strict=True)]
    return Chart(title, svg, keys, Table(["client", *parts, "rows"], body))


def _canvas(height: float = _SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_line(axes: Axes, line: Line) -> None:
    values = [v if math.isfinite(v) else math.nan for v in line.y]
    colour = _colour(line.colour)
    style = "-" if DASHES[line.dash] == "none" else (0, tuple(float(n) / 1.5 for n in DASHES[line.dash].split()))
    axes.plot(line.x, values, color=colour, linestyle=style, linewidth=1.6)
    for hollow in (False, True):
        at = [i for i in range(len(values)) if (i in line.hollow) is hollow]
        if len(values) > _MARKED:
            # Marks would touch. Estimates are still marked, here and there.
            at = at[:: max(1, len(at) // 10)] if hollow else []
        axes.plot(
            [line.x[i] for i in at],
            [values[i] for i in at],
            linestyle="none",
            marker=_MARKERS[line.colour % COLOURS],
            markersize=3.6,
            color=colour,
            markerfacecolor=_SURFACE if hollow else colour,
        )


def _spans_decades(lines: Sequence[Line]) -> bool:
    """Whether a log axis shows more. Zeros cannot be drawn on one, so they forbid it."""
    values = [v for line in lines for v in line.y if math.isfinite(v)]
    return bool(values) and min(values) > 0 and max(values) / min(values) >= _LOG_SPAN


def _colour(index: int) -> str:
    return f"#01fe2{index % COLOURS}"


def _keys(plot: Plot) -> list[Key]:
    keys = [Key(line.label, "line", line.colour % COLOURS, DASHES[line.dash]) for line in plot.lines]
    keys += [Key(f"{line.label}, estimate", "dot", line.colour % COLOURS) for line in plot.lines if line.hollow]
    return keys + [Key(band.label, "area", band.colour % COLOURS, opacity=band.opacity * 2) for band in plot.bands]


def _numbers(plot: Plot) -> Table:
    """One row for each x that any series has."""
    columns: list[tuple[str, dict[float, str]]] = []
    for line in plot.lines:
        marks = [" (estimate)" if i in line.hollow else "" for i in range(len(line.x))]
        cells = {x: number(y) + mark for x, y, mark in zip(line.x, line.y, marks, strict=True)}
        columns.append((line.label, cells))
    for band in plot.bands:
        spans = zip(band.x, band.low, band.high, strict=True)
        columns.append((band.label, {x: f"{number(low)} to {number(high)}" for x, low, high in spans}))
    places = sorted({x for _, cells in columns for x in cells})
    rows = [[number(x), *(cells.get(x, "–") for _, cells in columns)] for x in places]
    return Table([plot.x_label, *(label for label, _ in columns)], rows)


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an `<svg>` element whose ids are unique in the page and whose colours are CSS variables."""
    buffer = StringIO()
    engine = figure.get_layout_engine()
    with warnings.catch_warnings():
        # Text stays text and the reader's own fonts draw it, so a glyph that matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if engine is not None:  # laid out once here: savefig would draw everything twice
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    prefix = "c" + re.sub(r"[^a-z0-9]+", "-", title.lower())
    drawing = buffer.getvalue()
    view_box, body = _SVG.search(drawing).groups()  # type: ignore[union-attr]  # matplotlib always writes one
    body = _DROPPED.sub("", body)
    body = _STAND_IN.sub(lambda found: f"var({_VARIABLES[found.group(1)]})", body)
    body = _REFERENCE.sub(lambda found: f"{found.group(1)}{prefix}-", body)
    opening = Markup('<svg role="img" aria-label="{}" viewBox="{}">').format(title, view_box)
    return opening + Markup(body) + Markup("</svg>")  # noqa: S704 -- matplotlib escapes the texts in its SVG
