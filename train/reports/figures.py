"""Charts drawn by matplotlib: as SVG in the colours of the page around them, and of several runs as PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from train.errors import UserError
from train.reports.charts import Chart, Line
from train.reports.curves import Columns, Curve, curve, smoothed, smoothing_window, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable on white and on nearly black.
PALETTE = ("#2f7de1", "#e8730c", "#1f9d61", "#9b5de5", "#d6409f", "#0f9bb4", "#a2704a", "#8a9a17", "#e5484d", "#7d7f8c")
_STYLES = ("-", "--", ":", "-.")
_MARK_COLOURS = ("#e5484d", "#9b5de5", "#0f9bb4", "#8a9a17", "#a2704a", "#d6409f", "#7d7f8c")
_MARKS = ((0, (1, 1.5)), (0, (4, 2)), (0, (4, 1.5, 1, 1.5)))  # dashes of incidents
_INK, _GRID = "#010203", "#040506"  # stand for what the page says
_FEW = 60  # points that are marked
_SMOOTH_FROM = 10  # points
_WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "SimHei")
_LONGEST_LABEL = 40
_MOST = (1, 99)  # percentiles: what lies between them has to be in the chart
_COMPARED = (
    ("Training loss", "loss", "step", "loss (nats)"),
    ("Validation loss", "validation_loss", "step", "loss (nats)"),
    ("Learning rate", "learning_rate", "step", "learning rate"),
    ("Training loss by tokens", "loss", "tokens_seen", "loss (nats)"),
    ("Validation loss by tokens", "validation_loss", "tokens_seen", "loss (nats)"),
    ("Speed", "tokens_per_second", "step", "tokens/s"),
)
_NOISY = ("loss", "tokens_per_second")
_X_LABELS = {"step": "step", "tokens_seen": "tokens seen"}


def require_matplotlib() -> None:
    """Raises UserError with the command that installs it."""
    if find_spec("matplotlib") is None:
        raise UserError("reports are drawn by matplotlib, which is not installed: pip install -e '.[report]'")


def svg(chart: Chart, columns: Columns, incidents: Sequence[Mapping[str, Any]] = ()) -> str:
    """An <svg> element whose text and lines have the page's colours (currentColor, --grid) and ids of its own.

    The curve of a column is the element NAME-curve-COLUMN; the marks of the n-th kind of incidents NAME-incidents-n.
    """
    ink: dict[str, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    )
    ink |= {"grid.color": _GRID, "figure.facecolor": "none", "axes.facecolor": "none", "axes.titlesize": 11}
    with _drawing(ink | {"svg.fonttype": "none", "svg.hashsalt": chart.name, "font.size": 9}):
        figure = _figure(6.4, 3.4)
        axes = figure.subplots()
        shown = [_draw(axes, curve(columns, line.column), line, i) for i, line in enumerate(chart.lines)]
        if chart.has_incidents:
            _mark(axes, incidents)
        _finish(axes, chart.title, "step", chart.y_label, _limits(shown, chart.is_log))
        if chart.is_log:
            _log(axes)
        _legend(figure, axes, columns=3)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue(), chart)


def png(runs: Mapping[str, Columns]) -> bytes:
    """Runs by their names, with a curve of each in every chart."""
    with _drawing({"font.size": 10, "axes.titlesize": 12, "grid.color": "#dddddd"}):
        figure = _figure(16, 9)
        grid = figure.subplots(2, 3).flat
        for axes, (title, column, by, y_label) in zip(grid, _COMPARED, strict=True):
            lines = [Line(column, name, column in _NOISY, column in _NOISY) for name in runs]
            widths = [_width(column, above) for above in reversed(range(len(runs)))]
            of_each = enumerate(zip(lines, runs.values(), widths, strict=True))
            shown = [_draw(axes, curve(each, column, by), line, i, width) for i, (line, each, width) in of_each]
            _finish(axes, title, _X_LABELS[by], y_label, _limits(shown, is_log=False))
        _legend(figure, figure.axes[0], columns=4)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


@contextmanager
def _drawing(settings: Mapping[str, Any]) -> Iterator[None]:
    """matplotlib's settings for what is made and saved within; before and after they are the caller's."""
    import matplotlib
    from matplotlib import font_manager

    there = set(font_manager.fontManager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in there)]
    plain: dict[str, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.linewidth": 0.6,
    }
    plain |= {"font.family": fonts, "legend.frameon": False}
    with matplotlib.rc_context(plain | dict(settings)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it is a box then
        yield


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw(axes: Axes, points: Curve, line: Line, number: int, width: float = 1.5) -> np.ndarray:
    """One curve; values between which the chart has to reach."""
    colour, style = PALETTE[number % len(PALETTE)], _STYLES[number // len(PALETTE) % len(_STYLES)]
    raw = thinned(points)
    main = raw
    if line.is_smoothed and len(points.x_N) >= _SMOOTH_FROM:
        main = thinned(Curve(points.x_N, smoothed(points.y_N, smoothing_window(len(points.x_N)))))
        if line.has_points_behind:
            axes.plot(raw.x_B, raw.y_B, color=colour, alpha=0.3, linewidth=0.6)
            if len(raw.x_B) < len(points.x_N):
                axes.fill_between(raw.x_B, raw.low_B, raw.high_B, color=colour, alpha=0.12, linewidth=0)
    marker = "o" if main is raw and len(main.x_B) <= _FEW else None
    axes.plot(
        *(main.x_B, main.y_B, style),
        color=colour,
        linewidth=width,
        marker=marker,
        markersize=3,
        label=_label(line.label),
    )
    axes.lines[-1].set_gid(f"curve-{line.column}")
    return np.concatenate([main.y_B, np.percentile(raw.y_B, _MOST) if len(raw.y_B) else []])


def _mark(axes: Axes, incidents: Sequence[Mapping[str, Any]]) -> None:
    """A line through the chart at each incident, kinds apart by colour and dashes."""
    steps: dict[str, list[int]] = {}
    for record in incidents:
        steps.setdefault(str(record["kind"]), []).append(record["step"])
    for i, (kind, at) in enumerate(steps.items()):
        colour, dashes = _MARK_COLOURS[i % len(_MARK_COLOURS)], _MARKS[i % len(_MARKS)]
        transform, label = axes.get_xaxis_transform(), _label(f"{kind} ({len(at)})")
        marks = axes.vlines(
            sorted(set(at)), 0, 1, transform=transform, color=colour, linestyle=dashes, linewidth=1, label=label
        )
        marks.set_gid(f"incidents-{i}")


def _width(column: str, above: int) -> float:
    """Learning rates are often the same: those below are seen beside the `above` ones that are drawn over them."""
    return 1.5 + 1.5 * min(above, 6) if column == "learning_rate" else 1.5


def _label(text: str) -> str:
    """What may stand in a legend: printable, not too long, and without the _ that matplotlib takes for hidden."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    short = printable if len(printable) <= _LONGEST_LABEL else f"...{printable[-_LONGEST_LABEL:]}"
    return f"\N{WORD JOINER}{short}" if short.startswith("_") else short


def _limits(shown: Sequence[np.ndarray], is_log: bool) -> tuple[float, float] | None:
    """Room for the curves that count: one spike behind a smoothed one may leave the chart."""
    values = np.concatenate(shown)
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if is_log and low > 0:
        return low / 1.6, high * 1.6
    room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if 0 <= low <= 0.1 * (high + room) else low - room), high + room


def _finish(axes: Axes, title: str, x_label: str, y_label: str, limits: tuple[float, float] | None) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter

    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    small = limits is None or limits[1] < 10_000
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}") if small else EngFormatter(sep=""))
    axes.margins(x=0.01)
    if limits:
        axes.set_ylim(*limits)
    else:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center")


def _log(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes.get_ylim()[0] <= 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Below the charts, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    shown = figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))
    for text in shown.get_texts():
        text.set_parse_math(False)


def _inline(document: str, chart: Chart) -> str:
    """The element alone, with short numbers, the page's colours and ids that no other chart has."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # it would hold for the whole page
    element = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]).replace("\n", ""), element)
    element = re.sub(r' id="| xlink:href="#|url\(#', lambda start: f"{start[0]}{chart.name}-", element)
    element = element.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    return re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', element, count=1)
