"""What a person sees of a run in TensorBoard: its real process, and a real browser that draws the page.

The run is written by what writes runs, without a training; test_incidents.py has the tags of a trained one.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from devtools import PROGRAM, Browser
from e2e_commands import environment, metrics
from torch.utils.tensorboard.summary import text

from train.config import Config
from train.distributed import Ranks
from train.monitor.arranged import first_page
from train.monitor.recorder import Recorder, StepSums, Writers
from train.monitor.samples import Sample, page
from train.monitor.step_parts import PARTS, StepParts
from train.pretrain import open_writers

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium here (Debian: apt-get install chromium)")

STEPS, INTERVAL, PATIENCE = 12, 4, 150
HEADS = ("mlm", "reconstruction")
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)
CONFIG = {"data": {"path": "shards", "sequence_length": 16}, "objective": {"name": "joint"}}
CONFIG["model"] = {
    "encoder": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
}
SAMPLES = [
    Sample(["the", "green", "apple"], ["the", "[MASK]", "apple"], [None, "green", None]),
    Sample(["北", "京", "很", "大"], ["北", "[MASK]", "很", "大"], [None, "海", None, None]),
]
EVERY, AT_INTERVALS, VALIDATIONS = STEPS, STEPS // INTERVAL, 2
# Title, and the points of each line: what a person must find, in the order of the page.
CHARTS = [
    ("loss", [EVERY, VALIDATIONS]),
    ("mlm: loss", [EVERY, VALIDATIONS, VALIDATIONS]),
    ("reconstruction: loss", [EVERY, VALIDATIONS]),
    ("mlm: accuracy", [EVERY, VALIDATIONS]),
    ("reconstruction: accuracy", [EVERY, VALIDATIONS]),
    ("learning rate", [EVERY]),
    ("gradient norm", [EVERY]),
    ("gradient norm of each part", [AT_INTERVALS] * 4),
    ("tokens/s", [EVERY] * 2),
    ("TFLOP/s of each device", [EVERY]),
    ("MFU", [EVERY]),
    ("seconds of a step and its parts", [EVERY] * 2 + [AT_INTERVALS] * 3 + [VALIDATIONS]),
    ("memory in GB: peak, reserved", [AT_INTERVALS]),
    ("tokens seen", [EVERY]),
    ("epoch of each source", [EVERY] * 2),
    ("mask rate: share of the tokens that each head predicts", [EVERY] * 2),
    ("padding: share of the rows' room that no token takes", [EVERY]),
    ("quarantined: damaged blocks, and rows of them", [EVERY] * 2),
    ("goodput", [AT_INTERVALS]),
    ("seconds since the first start", [AT_INTERVALS] * 7),
    ("restarts: starts of the run, with the first", [AT_INTERVALS]),
    ("skipped steps: updates left out", [EVERY]),
    ("loss", [EVERY, VALIDATIONS]),
    ("mlm: loss", [EVERY, VALIDATIONS, VALIDATIONS]),
    ("reconstruction: loss", [EVERY, VALIDATIONS]),
    ("mlm: accuracy", [EVERY, VALIDATIONS]),
    ("reconstruction: accuracy", [EVERY, VALIDATIONS]),
]
FIELDS = {
    "loss/total": "loss",
    "accuracy/validation_mlm": "validation_mlm_accuracy",
    "grad_norm/encoder": "grad_norm_encoder",
    "epoch/中文": "epoch_中文",
    "masks/mlm": "mlm_target_share",
    "progress/damaged_blocks": "damaged_blocks",
    "optimizer/skipped_updates": "skipped_updates",
    "speed/optimizer_seconds": "optimizer_seconds",
}
# Of each chart: its title, its series as the page holds them (a field of TensorBoard 2.21), the curves that are drawn.
FIND_CHARTS = """
(() => {
  const deep = (node) => [...node.querySelectorAll("*")].flatMap(
    (each) => [each, ...(each.shadowRoot ? deep(each.shadowRoot) : [])]);
  const cards = deep(document).filter((each) => each.localName === "tf-custom-scalar-multi-line-chart-card");
  return cards.map((card) => {
    const inner = deep(card.shadowRoot);
    const title = inner.find((each) => each.classList.contains("heading-label")).innerText;
    const held = inner.find((each) => each.localName === "vz-line-chart2")._seriesDataCache;
    const pairs = Object.entries(held).map(
      ([name, data]) => [name, data.map((point) => [point.step, point.scalar])]);
    const lines = inner.filter((each) => each.localName === "path" && each.classList.contains("line"));
    return {title, series: Object.fromEntries(pairs), lines: lines.map((line) => line.getAttribute("d") || "")};
  });
})()
"""
FIND_TEXT = """
(() => {
  const told = (node) => [...node.querySelectorAll("*")].flatMap((each) => [
    ...(["table", "ul"].includes(each.localName) ? [each.innerText] : []),
    ...(each.shadowRoot ? told(each.shadowRoot) : [])]);
  return told(document).join("\\n\\n");
})()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two heads on two sources with two validations, two checkpoints and one incident."""
    folder = tmp_path_factory.mktemp("page") / "run"
    folder.mkdir()
    config = Config.model_validate(
        CONFIG | {"run": {"directory": str(folder), "steps": STEPS}, "schedule": {"warmup_steps": 2}}
    )
    writers = open_writers(config, 0, 0, first_page(HEADS, is_scaled=False, is_shared=False), [])
    write_steps(writers)
    for head in HEADS:
        writers.show(text(f"samples/{head}", page(SAMPLES)), STEPS)
    writers.close()
    return folder


def write_steps(writers: Writers) -> None:
    parts = StepParts(ALONE.device)
    recorder = Recorder(ALONE, HEADS, (1.0, 1.0), writers, parts=parts, peak_tflops=10)
    recorder.go_on()
    for step in range(1, STEPS + 1):
        for part in PARTS:
            with parts.part(part):
                time.sleep(0.001)
        recorder.add(sums_of(step))
        if step == 6:
            writers.tell(step, "damaged rows", "3 rows of the next batch 损坏 | <b>")
        if step % INTERVAL == 0:
            recorder.flush(VALIDATION if step > INTERVAL else None)


VALIDATION = {"validation_loss": 3.0, "checkpoint_seconds": 0.002}
VALIDATION |= {f"validation_{head}_{kind}": 0.5 for head in HEADS for kind in ("loss", "accuracy")}
VALIDATION["validation_mlm_frequencies_loss"] = 0.7


def sums_of(step: int) -> StepSums:
    others = {"learning_rate": step / 100, "tokens_seen": 1000 * step, "skipped_updates": step // 5}
    others |= {"epoch_english": step / 10, "epoch_中文": step / 5, "padding_share": 0.01}
    others |= {"damaged_rows": step, "damaged_blocks": step // 6}
    norms = {part: torch.tensor(1.0 / step) for part in ("embeddings", "encoder", "decoder", "heads")}
    losses_H, hits_H2 = torch.tensor([400.0 / step, 500.0 / step]).double(), torch.tensor([[step, 3], [step, 4]])
    measured = norms if step % INTERVAL == 0 else {}
    return StepSums(step, losses_H, hits_H2, (100, 120), 1000, 0.001, 2.0 / step, others, 10**9, measured)


@pytest.fixture(scope="module")
def address(run) -> Iterator[str]:
    """Of the real TensorBoard, at a port of its own choice."""
    words = ["-m", "tensorboard.main", "--logdir", run / "tensorboard", "--host", "localhost", "--port", "0"]
    log = run.parent / "tensorboard.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *map(str, words)], env=environment(), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"at (http://localhost:\d+/)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def shown(charts: list[dict]) -> list[tuple[str, list[int], bool]]:
    """(title, points of each series, whether curves are drawn) of each chart. A curve is a path through two points or
    more; each series has two, smoothed and as it is, but one far from the others may lie outside of the picture."""
    return [
        (
            chart["title"].strip(),
            sorted(map(len, chart["series"].values()), reverse=True),
            sum("L" in line and "NaN" not in line for line in chart["lines"]) >= 2,
        )
        for chart in charts
    ]


def test_the_arranged_page_draws_every_chart_with_all_points(run, address, browser):
    """Reference: the list above, by hand."""
    expected = [(title, sorted(counts, reverse=True), True) for title, counts in CHARTS]
    browser.open(f"{address}#custom_scalars")
    found = browser.wait(FIND_CHARTS, lambda charts: shown(charts) == expected, PATIENCE)
    browser.picture(run.parent / "charts.png")
    assert shown(found) == expected


def test_the_charts_hold_the_numbers_of_the_records(run, address, browser):
    """Reference: metrics.jsonl, field by field, as TensorBoard has them (fp32)."""
    browser.open(f"{address}#custom_scalars")
    charts = browser.wait(FIND_CHARTS, lambda charts: charts and all(drawn for *_, drawn in shown(charts)), PATIENCE)
    held = {name: points for chart in charts for name, points in chart["series"].items()}
    for series, field in FIELDS.items():
        of_records = [[record["step"], record[field]] for record in metrics(run) if field in record]
        assert of_records and held[f"{series} (.)"] == [pytest.approx(point, rel=1e-6) for point in of_records], field


def test_the_texts_show_samples_in_both_languages_and_the_incidents(run, address, browser):
    """Reference: what was predicted and told, as a reader sees it: without Markdown and with no character lost."""
    lines = ["seen\tthe [MASK] apple", "guess\tthe ‹green› apple", "1 of 1 right"]
    lines += ["seen\t北[MASK]很大", "guess\t北海[京]很大", "truth\t北京很大"]
    lines += ["damaged rows: 3 rows of the next batch 损坏 | <b>"]
    browser.open(f"{address}?tagFilter=samples|incidents#text&tagFilter=samples|incidents")
    shown = browser.wait(FIND_TEXT, lambda words: all(line in words for line in lines), PATIENCE)
    browser.picture(run.parent / "texts.png")
    assert [line for line in lines if line not in shown] == []
