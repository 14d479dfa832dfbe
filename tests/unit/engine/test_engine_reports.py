"""Runs beside each other, and one as a page: what the tables say, what the pages hold, and what they do not."""

import json
import random
import sys
import warnings
from html.parser import HTMLParser
from io import BytesIO

import pytest

from train.__main__ import main
from train.config_file import dump_config
from train.errors import UserError
from train.monitor.samples import score
from train.reports.compare_runs import compare_runs
from train.reports.page import report
from train.reports.samples import as_html, read_samples

STEPS = 200
VOID = {"meta", "br"}


@pytest.fixture
def make_run(tmp_path, configure):
    """`make_run("name", *overrides, loss=f)`: the folder of a run of 200 steps, with a validation every 50."""

    def make(name, *overrides, loss=lambda step: 7.0 - step / 100, **more):
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(dump_config(configure(*overrides, f"run.directory={run}")))
        lines = [{"step": 0, "probe_a_mean_accuracy": 0.5}]
        for step in range(1, STEPS + 1):
            lines.append({"step": step, "loss": loss(step), "mlm_loss": loss(step), "mlm_accuracy": 0.1})
            lines[-1] |= {"grad_norm": 1.0, "learning_rate": 0.001, "tokens_seen": 5_000 * step, "step_seconds": 0.02}
            lines[-1] |= {"tokens_per_second": 6000.0 + step} | more
            if step % 50 == 0:
                held_out = {50: 6.5, 100: 6.1, 150: 6.2, 200: 6.4}[step]
                lines[-1] |= {"validation_loss": held_out, "validation_mlm_accuracy": step / 1000}
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return make


def account(run):
    seconds = dict.fromkeys(("startup", "data_wait", "checkpoint", "validation", "lost", "idle"), 2.0)
    (run / "goodput.json").write_text(json.dumps({"step": 200, "starts": 3, "seconds": seconds | {"steps": 88.0}}))


def incidents(run, *records):
    (run / "incidents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_table_has_a_row_for_each_run(make_run, tmp_path):
    """Reference: by hand; the last 1 % of 200 steps are two, with losses 5.01 and 5.00, and the median of the speed is
    between 6,100 and 6,101."""
    a, b = make_run("a"), make_run("b", "run.steps=400", "objective.mask_ratio=0.3", mfu=0.25)
    account(a)
    incidents(a, {"step": 7, "kind": "stop"}, {"step": 9, "kind": "restart"})
    lines = list(compare_runs([a, b], tmp_path / "curves.png"))
    names = ["run", "objective", "steps", "tokens", "training loss", "validation loss", "lowest at step"]
    names += ["mlm accuracy", "tokens/s", "MFU", "goodput", "starts", "incidents"]
    assert cells(lines[0]) == names
    both = ["1 M", "5.0050", "6.4000", "6.1000 at 100", "0.2000", "6,100"]
    assert cells(lines[1]) == ["a", "mlm", "200 of 100", *both, "-", "88.0%", "3", "2"]
    assert cells(lines[2]) == ["b", "mlm", "200 of 400", *both, "25.0%", "-", "-", "0"]
    assert len({len(line) for line in lines[:3]}) == 1  # aligned
    assert lines[3].startswith("training loss: mean of the last 1% of steps")
    assert [cells(line) for line in lines[5:8]] == [
        ["setting that differs", "a", "b"],
        ["run.steps", "100", "400"],
        ["objective.mask_ratio", "0.15", "0.3"],
    ]
    assert lines[-1] == f"Curves: {tmp_path / 'curves.png'}"


def test_the_picture_is_a_png_of_six_charts(make_run, tmp_path):
    """Reference: read back by matplotlib; the colour of each run is in it, and no setting of matplotlib is changed.

    It is there with the first line, as where the lines go into a pipe that ends early.
    """
    import matplotlib
    from matplotlib import image

    before = dict(matplotlib.rcParams)
    next(compare_runs([make_run("_a"), make_run("模型$\\x$", loss=lambda step: 3.0)], tmp_path / "curves.png"))
    assert dict(matplotlib.rcParams) == before
    pixels = image.imread(BytesIO((tmp_path / "curves.png").read_bytes()), format="png")
    colours = {tuple((255 * colour).round().astype(int).tolist()) for colour in pixels[::2, ::2, :3].reshape(-1, 3)}
    assert {(0x2F, 0x7D, 0xE1), (0xE8, 0x73, 0x0C)} <= colours


def test_runs_are_named_by_what_tells_them_apart(make_run, tmp_path):
    """Reference: two folders of the same name; other objectives are said, for their losses are other things."""
    paths = [make_run("en/run"), make_run("zh/run", "objective.name=mae")]
    lines = list(compare_runs(paths, tmp_path / "curves.png"))
    assert [line.split()[0] for line in lines[1:3]] == ["en/run", "zh/run"]
    assert "The objectives differ: their losses do not measure the same." in lines


def test_losses_that_are_not_finite_are_said_and_left_out(make_run, tmp_path):
    """Reference: a run whose last step, and one whose every step, has no number."""
    a = make_run("a", loss=lambda step: None if step == STEPS else 2.0)
    b = make_run("b", loss=lambda step: None)
    lines = list(compare_runs([a, b], tmp_path / "curves.png"))
    assert cells(lines[1])[4] == "2.0000 (1 of 2 not finite)" and cells(lines[2])[4] == "not finite"
    assert "training: 1 values are not finite and left out" in page(a).text
    ids = page(b).ids
    assert "speed-curve-tokens_per_second" in ids and not [name for name in ids if name.startswith("mlm-loss-curve")]


class Page(HTMLParser):
    """A page parsed: every element closed in its turn, ids, references, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.references, self.tags, self.text = [], [], [], set(), ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action")]

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""


def page(run):
    output = run.parent / f"{run.name}.html"
    report(run, output)
    return Page(output.read_text(encoding="utf-8"))


def test_a_page_is_whole_and_needs_nothing_else(make_run):
    """Reference: an HTML parser; references go to ids of the page alone, and ids are used once."""
    found = page(make_run("run"))
    assert found.references and all(reference.startswith("#") for reference in found.references)
    assert len(found.ids) == len(set(found.ids))
    assert {reference[1:] for reference in found.references} <= set(found.ids)
    assert not found.tags & {"script", "link", "img", "iframe", "object"}
    assert "url(http" not in found.text and "@import" not in found.text


def test_a_page_has_the_curves_of_the_run(make_run):
    """Reference: by hand; incidents stand in the charts of losses, a mark for each kind."""
    run = make_run("run")
    incidents(run, {"step": 7, "kind": "stop"}, {"step": 90, "kind": "plateau"}, {"step": 99, "kind": "stop"})
    found = page(run)
    assert [name for name in found.ids if "-curve-" in name or "-incidents-" in name] == [
        *("mlm-loss-curve-mlm_loss", "mlm-loss-incidents-0", "mlm-loss-incidents-1"),
        *("mlm-accuracy-curve-mlm_accuracy", "mlm-accuracy-curve-validation_mlm_accuracy"),
        "probes-curve-probe_a_mean_accuracy",
        "learning-rate-curve-learning_rate",
        "grad-norm-curve-grad_norm",
        "speed-curve-tokens_per_second",
        "step-parts-curve-step_seconds",
    ]
    assert "stop (2)" in found.text and "plateau (1)" in found.text


def test_parts_of_the_gradient_masks_epochs_and_damage_have_charts(make_run):
    """Reference: by hand; a run that could read everything has no chart of damage."""
    parts = {"grad_norm_encoder": 0.5, "grad_norm_heads": 0.25}
    data = {"mlm_target_share": 0.15, "epoch": 0.5, "epoch_books": 0.75, "damaged_blocks": 0, "damaged_rows": 0}
    expected = [
        *("grad-norm-parts-curve-grad_norm_encoder", "grad-norm-parts-curve-grad_norm_heads"),
        *("masks-curve-mlm_target_share", "epochs-curve-epoch", "epochs-curve-epoch_books"),
    ]
    names = [name for name in page(make_run("whole", **parts, **data)).ids if "-curve-" in name]
    between = names.index("grad-norm-curve-grad_norm") + 1, names.index("speed-curve-tokens_per_second")
    assert names[slice(*between)] == expected
    damaged = page(make_run("damaged", **parts, **data | {"damaged_rows": 3}))
    assert {"damage-curve-damaged_blocks", "damage-curve-damaged_rows"} <= set(damaged.ids)


def test_a_page_says_what_the_files_say(make_run):
    """Reference: by hand; of an incident its words or, without them, its numbers, and never its rows."""
    run = make_run("run")
    account(run)
    told = {"time": "2026-01-02T03:04:05+00:00", "step": 50, "kind": "slow rank", "words": "rank 3 慢"}
    spike = {
        "time": "",
        "step": 60,
        "kind": "loss spike",
        "loss": 9.123456789,
        "rows": ["a/0/1"],
        "suspects": ["b/0/2"],
    }
    incidents(run, told, spike)
    folder = run / "checkpoints" / "step-00000200"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"versions": {"torch": "9.8.7"}, "code": "commit abc"}))
    text = page(run).text
    assert "2026-01-02 03:04:05 UTC" in text and "rank 3 慢" in text
    assert "loss 9.12346" in text and "a/0/1" not in text and "b/0/2" not in text
    assert "5.0050" in text and "88.0% of 1 min 40 s over 3 starts" in text
    assert "9.8.7" in text and "commit abc" in text and "Of what wrote step-00000200" in text
    assert "num_hidden_layers: 1" in text


def test_what_files_say_is_text_and_never_markup(make_run):
    """Reference: tags that would be elements, in everything that a run's files may hold."""
    hostile = '<script>alert("x")</script><img src=http://a.b/c>&amp;\ud800 $\\x$'
    run = make_run("run<i>")
    incidents(run, {"step": 7, "kind": hostile, "words": hostile}, {"step": 8, "kind": "x", hostile: hostile})
    sample = {"truth": [hostile, "b"], "shown": ["[MASK]", "b"], "predicted": [hostile + "?", None]}
    document = {"step": 50, "documents": [{"heads": {hostile: sample}}]}
    (run / "samples.jsonl").write_text(json.dumps(document) + "\n")
    (run / "ds_config.json").write_text(json.dumps({"a": hostile}))
    (run / "owner.json").write_text(json.dumps({"host": hostile}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = page(run)
    assert not found.tags & {"script", "img"}
    assert found.text.count('<script>alert("x")</script>') >= 7
    assert all(reference.startswith("#") for reference in found.references)


SAMPLE = {
    "truth": ["un", "##do", "it", "now"],
    "shown": ["un", "[MASK]", "[UNSEEN]", "[MASK]"],
    "predicted": [None, "##do", None, "<b>"],
}


def test_samples_are_told_as_right_wrong_and_not_seen(make_run, tmp_path):
    """Reference: by hand; lines of another form are left out, and a run without samples has no such section."""
    lines = ["{", json.dumps({"step": 5}), json.dumps({"step": 10, "documents": [{"heads": {"mlm": SAMPLE}}]})]
    uneven = SAMPLE | {"shown": ["un"]}
    lines.append(json.dumps({"step": 20, "documents": [{"heads": {"mlm": uneven}}, {"heads": {"mlm": SAMPLE}}]}))
    run = make_run("run")
    (run / "samples.jsonl").write_text("\n".join(lines) + "\n")
    found = read_samples(run / "samples.jsonl")
    assert [(step, len(documents)) for step, documents in found] == [(10, 1), (20, 1)]
    sample = found[0][1][0]["mlm"]
    assert as_html(sample) == "un<ins>do</ins> <i>it</i> <del>&lt;b&gt;</del><b>now</b>"
    assert score(sample) == "1 of 2 right"
    assert "samples" in page(run).ids and "samples" not in page(make_run("other")).ids


def test_a_long_run_stays_a_small_page(make_run):
    """Reference: a page on four times the steps is no larger, once there are more of them than points are drawn."""
    run = make_run("run")
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    sizes, draw = [], random.Random(0).random
    for steps in (6_000, 24_000):
        lines = (json.dumps(record | {"step": step, "loss": draw(), "mlm_loss": draw()}) for step in range(1, steps))
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        report(run, run / "page.html")
        sizes.append((run / "page.html").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0] < 2_000_000


def test_mistakes_are_one_line_each(make_run, tmp_path, capsys, monkeypatch):
    """Reference: exit code 2 and the words; nothing is written."""
    run, new = make_run("run"), make_run("new")
    (new / "metrics.jsonl").write_text('{"step": 0, "probe_a_mean_accuracy": 0.5}\n')
    away = tmp_path / "away" / "x"
    for arguments, words in (
        (["report", tmp_path], f"{tmp_path}: no run folder (it has no config.yaml)"),
        (["report", new], f"{new}: no step is recorded yet"),
        (["report", run, "--output", away], f"{away}: cannot write: No such file or directory"),
        (["compare-runs", run], "one run alone"),
        (["compare-runs", run, f"{run}/."], "given twice"),
        (["compare-runs", run, new], f"{new}: no step is recorded yet"),
        (["compare-runs", run, new, "--output", "x.html"], "x.html: the curves are written as PNG"),
        (["compare-runs", run, make_run("third"), "--output", f"{away}.png"], f"{away}.png: cannot write"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (run / "report.html").exists()
    assert main(["report", str(run)]) == 0 and (run / "report.html").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"pip install -e '\.\[report\]'"):
        report(run)
