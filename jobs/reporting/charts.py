"""Charts of the report, with Bokeh: curves over steps, shares of the time, distributions, and similarities.

In: numbers. Out: Bokeh figures. Text and axes take their colours from the page's style sheet (`--bk-...`), so that one chart
works in the light and the dark scheme; the colours of curves stand out on both.

A curve of more than POINTS logged steps is thinned: equal runs of steps become one point each, their mean, within a band from
their minimum to their maximum. No peak is lost, and the page stays small even for a long run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    DataRange1d,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
    PrintfTickFormatter,
)
from bokeh.models.annotations import Span
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from numpy.typing import NDArray

POINTS = 800
COLOURS = ("#3b82f6", "#e8710a", "#16a34a", "#a855f7", "#e5484d", "#0891b2", "#b7791f", "#8b949e")
HEIGHT_PX = 260
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Chart:
    """A figure and its legend of (label, colour), which the page shows above it."""

    plot: figure
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Curve:
    """One line of a chart over steps. `low` and `high` are the band around it; NaN is a gap."""

    label: str
    step: Numbers
    value: Numbers
    low: Numbers
    high: Numbers


def thin(label: str, step: Numbers, value: Numbers, points: int = POINTS) -> Curve:
    """Thins a curve to at most `points` points, each the mean, minimum and maximum of an equal run of values.

    Args:
        value: NaN where a value is missing; it is ignored, and a run without values is a gap.
    """
    run = max(1, -(-len(value) // points))
    missing = -len(value) % run
    runs = np.ma.masked_invalid(np.append(value, np.full(missing, np.nan)).reshape(-1, run))
    middle = np.ma.masked_invalid(np.append(step, np.full(missing, np.nan)).reshape(-1, run)).mean(axis=1)
    mean, low, high = (_plain(part) for part in (runs.mean(axis=1), runs.min(axis=1), runs.max(axis=1)))
    return Curve(label, _plain(middle), mean, low, high)


def _plain(values: Any) -> Numbers:
    return np.asarray(np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan))


def draw_curves(
    curves: Sequence[Curve],
    marks: Sequence[int] = (),
    scale: Literal["linear", "log", "from zero"] = "linear",
    form: str = "",
    dots: bool = False,
) -> Chart:
    """Draws curves over steps, with vertical lines where workers were restarted.

    Args:
        form: format of numbers on the axis and in the tooltip (Bokeh's NumeralTickFormatter); empty: four digits.
        dots: mark each point.
    """
    range_ = DataRange1d(start=0) if scale == "from zero" else DataRange1d()
    plot = _empty_chart(y_axis_type="log" if scale == "log" else "linear", y_range=range_)
    plot.xaxis.axis_label = "step"
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    if scale != "log":
        plot.yaxis.formatter = NumeralTickFormatter(format=form) if form else PrintfTickFormatter(format="%.4g")
    legend, told = [], list[_Told]()
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        shared = next((one for one in told if np.array_equal(one.step, curve.step)), None)
        if shared is None:
            shared = _Told(curve.step, ColumnDataSource({"step": curve.step.astype(np.float32)}))
            told.append(shared)
        column = shared.add(plot, curve, colour)
        if dots or np.isfinite(curve.value).sum() == 1:  # a line through one point is invisible
            plot.scatter("step", column, source=shared.source, color=colour, size=7)
        legend.append((curve.label, colour))
    for one in told:
        plot.add_tools(one.hover(form))
    for step in marks:
        plot.add_layout(Span(location=step, dimension="height", line_color="#8b949e", line_dash="dashed", line_width=1))
    return Chart(plot, tuple(legend) if len(legend) > 1 else ())


@dataclass
class _Told:
    """Curves over the same steps, which share a data source and a tooltip."""

    step: Numbers
    source: ColumnDataSource
    lines: list[Any] = field(default_factory=list)
    labels: list[tuple[str, str, bool]] = field(default_factory=list)

    def add(self, plot: figure, curve: Curve, colour: str) -> str:
        """Draws a curve and its band, if any. Returns the column of its values."""
        name = f"value{len(self.lines)}"
        banded = not np.array_equal(curve.low, curve.high, equal_nan=True)
        columns = {name: curve.value, **({f"{name}_low": curve.low, f"{name}_high": curve.high} if banded else {})}
        for key, column in columns.items():
            self.source.data[key] = column.astype(np.float32)
        self.lines.append(plot.line("step", name, source=self.source, color=colour, line_width=2))
        if banded:
            plot.varea("step", f"{name}_low", f"{name}_high", source=self.source, fill_color=colour, fill_alpha=0.22)
        self.labels.append((name, curve.label, banded))
        return name

    def hover(self, form: str) -> HoverTool:
        """The tooltip: the value of each curve at the step under the pointer."""
        written, formatter = (form, "numeral") if form else ("%.4g", "printf")
        tips, formatters = [("step", "@step{0,0}")], dict[str, Any]()
        for name, label, banded in self.labels:
            band = f" (@{name}_low{{{written}}} … @{name}_high{{{written}}})" if banded else ""
            tips.append((label, f"@{name}{{{written}}}{band}"))
            formatters |= dict.fromkeys((f"@{name}", f"@{name}_low", f"@{name}_high"), formatter)
        return HoverTool(renderers=self.lines[:1], tooltips=tips, formatters=formatters, mode="vline", visible=False)


def draw_shares(parts: Sequence[tuple[str, float]]) -> Chart:
    """Draws one bar, divided into the parts by their shares."""
    total = sum(seconds for _, seconds in parts) or 1.0
    plot = _empty_chart(y_range=[""], height=90, x_range=(0, 1))
    plot.xaxis.formatter = NumeralTickFormatter(format="0%")
    plot.ygrid.visible = plot.yaxis.visible = False
    left, legend = 0.0, []
    for number, (name, seconds) in enumerate(parts):
        values = {"left": [left], "right": [left + seconds / total], "y": [""], "name": [name], "seconds": [seconds]}
        source = ColumnDataSource(values | {"share": [seconds / total]})
        bar = plot.hbar("y", left="left", right="right", height=0.7, source=source, color=COLOURS[number % len(COLOURS)])
        tips = [("", "@name"), ("seconds", "@seconds{0,0.0}"), ("share", "@share{0.0%}")]
        plot.add_tools(HoverTool(renderers=[bar], tooltips=tips, visible=False))
        legend.append((f"{name} {seconds / total:.1%}", COLOURS[number % len(COLOURS)]))
        left += seconds / total
    return Chart(plot, tuple(legend))


def draw_distribution(values: NDArray[Any], label: str, mark: float | None = None) -> Chart:
    """Draws a histogram; `mark` is a vertical line."""
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer) and high - low < 40
    edges = np.arange(low - 0.5, high + 1.5) if whole else np.linspace(low - (low == high), high + (low == high), 41)
    counts, edges = np.histogram(values, bins=edges)
    plot = _empty_chart(height=220, y_range=DataRange1d(start=0))
    plot.xaxis.axis_label, plot.xaxis.formatter = label, NumeralTickFormatter(format="0,0")
    plot.xaxis.ticker = plot.yaxis.ticker = BasicTicker(min_interval=1)
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    source = ColumnDataSource({"left": edges[:-1], "right": edges[1:], "top": counts})
    bars = plot.quad("left", "right", "top", 0, source=source, fill_color=COLOURS[0], line_color=None)
    tips = [(label, "@left{0,0.[0]} … @right{0,0.[0]}"), ("samples", "@top{0,0}")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips, visible=False))
    if mark is not None:
        plot.add_layout(Span(location=mark, dimension="height", line_color=COLOURS[4], line_dash="dashed", line_width=2))
    return Chart(plot)


def draw_similarity(cells: Sequence[Sequence[float | None]], captions: Sequence[str]) -> Chart:
    """Draws the cosines of images (rows) and captions (columns); the diagonal holds the pairs."""
    count = len(cells)
    places = [(row, column) for row in range(count) for column in range(count)]
    values = [cells[row][column] for row, column in places]
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    colours = LinearColorMapper(palette=Viridis256, low=low, high=high, nan_color=COLOURS[-1])
    source = ColumnDataSource(
        {
            "x": [column + 1 for _, column in places],
            "y": [row + 1 for row, _ in places],
            "value": np.array([np.nan if value is None else value for value in values], dtype=np.float32),
            "picture": [captions[row][:80] for row, _ in places],
            "caption": [captions[column][:80] for _, column in places],
        }
    )
    plot = _empty_chart(x_range=(0.5, count + 0.5), y_range=(count + 0.5, 0.5), height=None, aspect_ratio=1.0, max_width=520)
    cell = plot.rect("x", "y", 1, 1, source=source, color={"field": "value", "transform": colours})
    tips = [("cosine", "@value{0.000}"), ("picture of", "@picture"), ("caption", "@caption")]
    plot.add_tools(HoverTool(renderers=[cell], tooltips=tips, visible=False))
    plot.xaxis.axis_label, plot.yaxis.axis_label = "caption", "picture"
    plot.xaxis.ticker = plot.yaxis.ticker = FixedTicker(ticks=list(range(1, count + 1)))
    plot.grid.visible = False
    scale = ((low, Viridis256[0]), ((low + high) / 2, Viridis256[127]), (high, Viridis256[-1]))
    return Chart(plot, tuple((f"{round(value, 2) + 0.0:.2f}", colour) for value, colour in scale))


def _empty_chart(**options: Any) -> figure:
    """An empty chart of full width. Its tools are inactive at first, so that a finger scrolls the page."""
    settings: dict[str, Any] = {"height": HEIGHT_PX, "sizing_mode": "stretch_width", "toolbar_location": "above"}
    plot = figure(tools="xbox_zoom,reset,save", active_drag=None, active_scroll=None, **settings | options)
    plot.toolbar.logo = None
    plot.toolbar.autohide = plot.toolbar_inner = True  # shown over the chart on hover, so it needs no space
    plot.toolbar.styles = {"background-color": "transparent"}
    plot.min_border_right = 24
    plot.axis.major_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.minor_tick_line_color = None
    plot.outline_line_color = None
    return plot


def as_json(charts: Mapping[str, Chart]) -> dict[str, Any]:
    """Content for Bokeh's embed_item, by name of the chart."""
    from bokeh.embed import json_item

    return {name: json_item(chart.plot) for name, chart in charts.items()}
