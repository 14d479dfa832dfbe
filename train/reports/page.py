"""`python -m train report RUN`: one HTML page on a run that needs no network and no other file.

Whatever comes from files of the run is escaped; charts are inline SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.durable import write_whole
from train.checkpoint_folder import STATE, committed
from train.monitor.events import when
from train.monitor.samples import Sample, score
from train.provenance import provenance
from train.reports.charts import Chart, charts
from train.reports.curves import MOST_POINTS, SMOOTHED_OVER, Columns, heads
from train.reports.figures import require_matplotlib, svg
from train.reports.run_files import RunFiles, read_run
from train.reports.samples import as_html, read_samples
from train.reports.style import CSS
from train.reports.summary import LAST_STEPS, NONE, summary
from train.status import read_object, told

PAGE = "report.html"
_MOST_INCIDENTS = 500  # rows of the table
_VALIDATIONS_SHOWN = 5  # with their samples
_NOT_WORDS = {"time", "step", "kind", "words", "rows", "suspects"}  # fields of an incident with a column, or too long


def report(path: Path, output: Path | None = None) -> str:
    """Write the page, to RUN/report.html unless elsewhere; a sentence on it.

    Raises UserError for what is no run, or has no step yet, and where the page cannot be written.
    """
    require_matplotlib()
    run = read_run(path)
    output = output or path / PAGE
    content = "".join(_page(run)).encode("utf-8", "replace")
    write_whole(output, content)
    return f"{output}: {len(content) / 1e6:.1f} MB, one file that any browser opens"


def _page(run: RunFiles) -> Iterator[str]:
    name = escape(run.path.resolve().name)
    sections = {
        "At a glance": _headline(run),
        "Curves": _curves(run),
        "Incidents": _incidents(run.incidents),
        "Samples": _samples(run.path / "samples.jsonl"),
        "Environment": _environment(run),
        "Configuration": _files(run.path),
    }
    shown = {title: html for title, parts in sections.items() if (html := "".join(parts))}
    yield f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n"
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield f'<p class="soft">{escape(str(run.path.resolve()))}, as it was at {now}</p>\n<nav>'
    yield from (f'<a href="#{_id(title)}">{title}</a>' for title in shown)
    yield "</nav>\n"
    for title, html in shown.items():
        yield f'<section id="{_id(title)}">\n<h2>{title}</h2>\n{html}</section>\n'
    yield "</main>\n</body>\n</html>\n"


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _headline(run: RunFiles) -> Iterator[str]:
    numbers = {name: value for name, value in summary(run, heads(run.columns)).items() if value != NONE}
    cards = (f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in numbers.items())
    yield f'<div class="cards">{"".join(cards)}</div>\n'
    yield f'<p class="soft">Training loss: {LAST_STEPS}. Accuracies are held out. '
    yield "tokens/s and MFU: median of all steps.</p>\n"
    yield _table((), ((name, words) for name, words in told(run.path).items()))


def _curves(run: RunFiles) -> Iterator[str]:
    share = f"{SMOOTHED_OVER:.0%}"
    yield f'<p class="soft">Strong lines of training curves are means over {share} of the steps; pale behind them is '
    yield f"what they smooth, from lowest to highest where more than {MOST_POINTS:,} points were put together. "
    yield "Upright lines are incidents.</p>\n"
    figures = (_figure(chart, run) for chart in charts(run.columns))
    yield f'<div class="charts">\n{"".join(figures)}</div>\n'


def _figure(chart: Chart, run: RunFiles) -> str:
    missing = _not_finite(chart, run.columns)
    caption = f"<figcaption>{escape(missing)}</figcaption>" if missing else ""
    return f"<figure>{svg(chart, run.columns, run.incidents)}{caption}</figure>\n"


def _not_finite(chart: Chart, columns: Columns) -> str:
    counts = {line.label: int(np.isinf(columns[line.column]).sum()) for line in chart.lines}
    return "; ".join(
        f"{label}: {count:,} values are not finite and left out" for label, count in counts.items() if count
    )


def _incidents(incidents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not incidents:
        yield "<p>None is recorded.</p>\n"
        return
    shown = incidents[-_MOST_INCIDENTS:]
    if len(shown) < len(incidents):
        yield f'<p class="soft">The last {len(shown):,} of {len(incidents):,}.</p>\n'
    rows = ((f"{each['step']:,}", str(each["kind"]), when(each), _words(each)) for each in reversed(shown))
    yield _table(("step", "kind", "time", "what happened"), rows)


def _words(incident: Mapping[str, Any]) -> str:
    if "words" in incident:
        return str(incident["words"])
    others = {name: value for name, value in incident.items() if name not in _NOT_WORDS}
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in others.items())


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _samples(path: Path) -> Iterator[str]:
    """The last validation, and before it a few others at equal distances, closed."""
    found = read_samples(path)
    if not found:
        return
    yield '<p class="soft">Predictions for held-out documents that are always the same: <span class="text">'
    yield "<ins>right</ins>, <del>guess</del><b>truth</b>, <i>not seen</i></span>.</p>\n"
    places = np.unique(np.linspace(0, len(found) - 1, min(_VALIDATIONS_SHOWN, len(found))).round().astype(int))
    for i in reversed(places.tolist()):
        step, documents = found[i]
        yield f"<details{' open' if i == len(found) - 1 else ''}><summary>step {step:,}</summary>\n"
        yield from (_document(number, heads) for number, heads in enumerate(documents, start=1))
        yield "</details>\n"


def _document(number: int, heads: Mapping[str, Sample]) -> str:
    rows = (
        f'<tr><th>{escape(head)}<br>{score(sample)}</th><td class="text">{as_html(sample)}</td></tr>\n'
        for head, sample in heads.items()
    )
    return f'<div class="box"><h3>Document {number}</h3><table>\n{"".join(rows)}</table></div>\n'


def _environment(run: RunFiles) -> Iterator[str]:
    """What made the newest checkpoint; where there is none, what writes this page, and it says so."""
    newest = max(committed(run.path / "checkpoints"), default=None)
    origin = read_object(newest / STATE) if newest else {}
    words = f"Of what wrote {newest.name}:" if newest else ""
    if not isinstance(origin.get("versions"), dict):
        origin, words = provenance(run.config), "Of what wrote this page, for the run has no checkpoint:"
    owner = read_object(run.path / "owner.json")
    last_start = {f"last start: {name}": owner[name] for name in ("host", "since") if name in owner}
    yield f'<p class="soft">{escape(words)}</p>\n'
    rows = {"code": origin.get("code", NONE), **origin["versions"], **last_start}
    yield _table((), ((name, str(value)) for name, value in rows.items()))


def _files(run: Path) -> Iterator[str]:
    for name, opened in (("config.yaml", " open"), ("ds_config.json", "")):
        if (run / name).exists():
            text = (run / name).read_text(encoding="utf-8", errors="replace")
            yield f"<details{opened}><summary>{name}</summary>"
            yield f'<div class="box"><pre>{escape(text)}</pre></div></details>\n'


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text; where `names` are missing the first of a row is its name."""
    head = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in names)}</tr>\n" if names else ""
    lines = "".join(
        f"<tr>{''.join(_cell(cell, not names and i == 0) for i, cell in enumerate(row))}</tr>\n" for row in rows
    )
    return f'<div class="box{" events" * bool(names)}"><table>\n{head}{lines}</table></div>\n'


def _cell(text: str, is_name: bool) -> str:
    return f"<th>{escape(text)}</th>" if is_name else f"<td>{escape(text)}</td>"
