"""Renders a run as one self-contained page of charts, tables and images, with nothing to fetch.

In: a `RunReport`. Out: HTML that contains its data, its style and Bokeh. Captions, keys and settings are untrusted text: the
template escapes all of it, data is JSON that cannot end a script, and the page's content security policy allows neither other
scripts nor requests.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.reporting.charts import (
    POINTS,
    Chart,
    Curve,
    as_json,
    draw_curves,
    draw_distribution,
    draw_shares,
    draw_similarity,
    thin,
)
from jobs.reporting.run_data import RunReport
from training.evaluation.figures import notes_of

TEMPLATES = Path(__file__).parent / "assets"
EVALUATIONS_SHOWN = 40
PREFIXES = ("evaluation/", "evaluation_bounds/")
BOUND = re.compile(r"(?P<name>.+?)_(?:ci_?)?(?P<side>low|high|lower|upper|chance)$")
"""Keys that hold the interval or the chance level of another key."""


@dataclass(frozen=True)
class Figure:
    """One evaluation metric over the steps.

    Attributes:
        chance: the chance level as text; empty if unknown.
        last, best: (step, value, interval as text or empty).
    """

    name: str
    chance: str
    last: tuple[int, str, str]
    best: tuple[int, str, str]


def render(report: RunReport) -> str:
    """Renders the page."""
    charts = draw_all(report)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"time": _time, "count": lambda value: f"{value:,}", "duration": _duration}
    bokeh = Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw
    return environment.get_template("report.html").render(
        report=report,
        charts=charts,
        charts_json=_script_json(as_json(charts)),
        bokeh=Markup("\n".join(bokeh)),
        nonce=secrets.token_urlsafe(16),
        summary=list(_summary(report)),
        state=_state(report),
        thinned=_thinned(report),
        figures=figures_of(report),
        notes=notes_of(report.evaluations[-1] if report.evaluations else {}),
        evaluations=_evaluation_table(report),
        gallery=list(_gallery(report)),
        settings=list(_flat(_settings(report))),
        versions=_versions(report),
        spent=_spent(report),
        made=datetime.now(UTC).timestamp(),
    )


def draw_all(report: RunReport) -> dict[str, Chart]:
    """Draws every chart for which the record has data, by name."""
    charts = dict(_step_charts(report))
    for group, curves in _evaluation_curves(report).items():
        charts[f"evaluation/{group}"] = draw_curves(curves, scale="from zero", form="0.[000]", dots=len(curves[0].step) < 60)
    if report.spent is not None:
        charts["spent"] = draw_shares(_spent(report))
    if report.looks and report.pairs is not None:
        captions = [report.pairs["captions"][place] for place in report.pairs["shown"]]
        looks = {"last": report.looks[-1]} | ({"first": report.looks[0]} if len(report.looks) > 1 else {})
        charts |= {f"similarity/{name}": draw_similarity(look["similarity"], captions) for name, look in looks.items()}
    for number, data in enumerate(report.data):
        if len(data.sides_px):
            charts[f"sides/{number}"] = draw_distribution(data.sides_px, "shorter side, px")
        if len(data.tokens):
            charts[f"tokens/{number}"] = draw_distribution(data.tokens, "tokens of a caption", data.context_length)
    return charts


STEP_CHARTS: tuple[tuple[str, dict[str, str], dict[str, Any]], ...] = (
    ("loss", {"loss": "loss", "loss_image_to_text": "image to text", "loss_text_to_image": "text to image"}, {}),
    ("temperature", {"temperature": "temperature"}, {}),
    ("learning_rate", {"learning_rate": "learning rate"}, {}),
    (
        "grad_norm",
        {"grad_norm": "all", "grad_norm_image": "image encoder", "grad_norm_text": "text encoder",
         "grad_norm_logit_scale": "logit_scale"},
        {"scale": "log"},
    ),
    ("samples_per_s", {"samples_per_s": "samples a second"}, {"form": "0,0.[0]", "scale": "from zero"}),
    ("step_time", {"compute_s": "computing", "data_wait_s": "waiting for data", "communication_s": "waiting for others"},
     {"scale": "from zero"}),
    ("goodput", {"goodput": "goodput"}, {"form": "0%", "scale": "from zero"}),
    (
        "batch_accuracy",
        {"batch_accuracy_image_to_text": "image to text", "batch_accuracy_text_to_image": "text to image"},
        {"form": "0%", "scale": "from zero"},
    ),
    ("repeated_captions", {"repeated_caption_share": "repeated captions"}, {"form": "0%", "scale": "from zero"}),
)  # fmt: skip
"""Name, keys of the record with their labels, and options of the chart."""


def _step_charts(report: RunReport) -> Iterator[tuple[str, Chart]]:
    steps = report.steps["step"]
    marks = sorted({start["step"] for start in report.starts if start["step"]})
    for name, labels, options in STEP_CHARTS:
        values = {label: report.steps[key] for key, label in labels.items()}
        if options.get("scale") == "log":
            values = {label: np.where(column > 0, column, np.nan) for label, column in values.items()}
        curves = [thin(label, steps, column) for label, column in values.items() if np.isfinite(column).any()]
        if curves:
            yield name, draw_curves(curves, marks, **options)


# ----------------------------------------------------------------------------------------------------------- evaluations


def evaluation_values(report: RunReport) -> dict[str, dict[int, float]]:
    """All numbers of evaluations: name -> step -> value, including the ends of intervals."""
    found: dict[str, dict[int, float]] = {}
    for row in report.evaluations:
        for key, value in row.items():
            if key.startswith(PREFIXES) and isinstance(value, int | float):
                found.setdefault(key.partition("/")[2], {})[row["step"]] = float(value)
    return found


def bounds_of(values: dict[str, dict[int, float]]) -> dict[str, dict[str, dict[int, float]]]:
    """Known bounds: name -> low, high or chance -> step -> value."""
    bounds: dict[str, dict[str, dict[int, float]]] = {}
    for key in values:
        match = BOUND.match(key)
        if match and match["name"] in values:
            side = {"lower": "low", "upper": "high"}.get(match["side"]) or match["side"]
            bounds.setdefault(match["name"], {})[side] = values[key]
    return bounds


def _ends(bounds: dict[str, dict[str, dict[int, float]]], name: str, step: int) -> tuple[float, float] | None:
    """The interval of a metric at a step."""
    sides = [bounds[name][side] if name in bounds and side in bounds[name] else {} for side in ("low", "high")]
    return (sides[0][step], sides[1][step]) if all(step in side for side in sides) else None


def _own_names(values: dict[str, dict[int, float]]) -> list[str]:
    """Names of metrics, without those that hold bounds."""
    return [name for name in values if not ((match := BOUND.match(name)) and match["name"] in values)]


def _evaluation_curves(report: RunReport) -> dict[str, list[Curve]]:
    """Curves by chart: metrics of one scale whose names start alike, such as r1, r5 and r10, share a chart."""
    values = evaluation_values(report)
    bounds, groups = bounds_of(values), dict[str, list[Curve]]()
    for name in _own_names(values):
        group, last = _place(name)
        steps = np.array(sorted(values[name]), dtype=np.float64)
        middle = np.array([values[name][int(step)] for step in steps])
        ends = np.array([_ends(bounds, name, int(step)) or (np.nan, np.nan) for step in steps])
        known = np.isfinite(ends).any()
        curve = Curve(last, steps, middle, ends[:, 0], ends[:, 1]) if known else thin(last, steps, middle)
        groups.setdefault(group, []).append(curve)
    return groups


def _place(name: str) -> tuple[str, str]:
    """(chart, curve) of a metric."""
    for end in ("median_rank", "log10_lambda"):  # on a scale of their own
        if name.endswith(f"_{end}"):
            return end, name.removesuffix(f"_{end}").replace("_", " ")
    if name.endswith("_mean_per_class"):
        return name.removesuffix("_mean_per_class"), "mean per class"
    group, _, last = name.rpartition("_")
    return group or name, last or name


def figures_of(report: RunReport) -> list[Figure]:
    """The last and the best value of each metric; lower is better for ranks and losses."""
    values = evaluation_values(report)
    bounds = bounds_of(values)

    def cell(name: str, step: int) -> tuple[int, str, str]:
        ends = _ends(bounds, name, step)
        return step, _number(values[name][step]), "" if ends is None else " – ".join(map(_number, ends))

    found = []
    for name in _own_names(values):
        course = values[name]
        best = min(course, key=course.__getitem__) if re.search(r"rank|loss", name) else max(course, key=course.__getitem__)
        chances = bounds[name]["chance"] if name in bounds and "chance" in bounds[name] else {}
        chance = _number(chances[max(chances)]) if chances else ""
        found.append(Figure(name, chance, cell(name, max(course)), cell(name, best)))
    return found


def _evaluation_table(report: RunReport) -> dict[str, Any]:
    """Names, rows of text and the count of evaluations; if there are many, evenly spaced ones and the last."""
    values = evaluation_values(report)
    names = _own_names(values)
    steps = sorted({step for course in values.values() for step in course})
    shown = sorted({*steps[:: max(1, -(-len(steps) // EVALUATIONS_SHOWN))], *steps[-1:]})
    rows = [[_number(values[name][step]) if step in values[name] else "" for name in names] for step in shown]
    return {"names": names, "rows": list(zip(shown, rows, strict=True)), "count": len(steps)}


# -------------------------------------------------------------------------------------------------- texts, tables, images


def _summary(report: RunReport) -> Iterator[tuple[str, str]]:
    """The most important (name, value) pairs."""
    if report.steps.count:
        last = report.steps.last
        yield "samples seen", f"{last['samples_seen']:,}"
        yield "loss", "non-finite" if last["loss"] is None else f"{last['loss']:.4f}"
        yield "temperature", "non-finite" if last["temperature"] is None else f"{last['temperature']:.4f}"
        rate = report.steps["samples_per_s"]
        if np.isfinite(rate).any():
            yield "samples/s", f"{np.nanmedian(rate):,.0f}"
        wait = report.steps["data_wait_share"]
        if np.isfinite(wait).any():
            yield "waiting for data", f"{np.nanmean(wait):.1%}"
    if report.spent is not None:
        yield "goodput", f"{report.spent.goodput:.1%}"
        yield "time", _duration(report.spent.elapsed_s)
    for figure in figures_of(report):
        if re.search(r"_r1$|_top1$", figure.name):
            yield figure.name.replace("_", " "), figure.last[1]


def _state(report: RunReport) -> str:
    """State of the run: finished or not, and its step."""
    step = report.steps.last["step"] if report.steps.count else 0
    of = f" of {report.total_steps:,}" if report.total_steps else ""
    if report.result is not None:
        return f"finished: {report.result['step']:,} steps"
    heard = [start["ready"] for start in report.starts[-1:]]
    if "time" in report.steps.last:
        heard.append(report.steps.last["time"])
    when = f", last heard of on {_time(max(heard))}" if heard else ""
    return f"not finished: {step:,}{of} steps{when}"


def _thinned(report: RunReport) -> int:
    """Steps per point of a curve."""
    return -(-report.steps.count // POINTS)


def _gallery(report: RunReport) -> Iterator[dict[str, Any]]:
    """Captions, and the images that the model finds for them."""
    if report.pairs is None or not report.looks:
        return
    pairs, look = report.pairs, report.looks[-1]
    captions = pairs["captions"]
    for query, found, rank in zip(pairs["queries"], look["found"], look["rank"], strict=True):
        images = [{"jpeg": pairs["thumbnails"][place], "right": place == query, "caption": captions[place]} for place in found]
        yield {"caption": captions[query], "rank": rank + 1, "pictures": images}


def _spent(report: RunReport) -> list[tuple[str, float]]:
    spent = report.spent
    if spent is None:
        return []
    return [
        ("training", spent.training_s),
        ("evaluation", spent.evaluation_s),
        ("checkpoints", spent.checkpoints_s),
        ("lost steps", spent.lost_s),
        ("start-up", spent.start_up_s),
        ("waiting for workers", spent.waiting_s),
    ]


def _settings(report: RunReport) -> Any:
    try:
        return yaml.safe_load(report.config_text) if report.config_text else {}
    except yaml.YAMLError:
        return {}


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, value) for every setting."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, json.dumps(tree, ensure_ascii=False, default=str)


def _versions(report: RunReport) -> list[tuple[str, str, list[str]]]:
    """(package, version at the last start, other versions at earlier starts)."""
    noted = [start["packages"] for start in report.starts if "packages" in start]
    if not noted:
        return []
    return [
        (name, version, sorted({one[name] for one in noted if name in one and one[name] != version}))
        for name, version in noted[-1].items()
    ]


def _script_json(content: Any) -> Markup:
    """JSON that is safe in a script element: it can neither end the element nor start a comment."""
    text = json.dumps(content, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 2 else f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{seconds:.1f} s"
