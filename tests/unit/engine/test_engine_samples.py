"""Samples as people read them: text out of tokens, marks at what is wrong, nothing that Markdown takes."""

import json
import warnings
from html.parser import HTMLParser
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from data_pipeline.manifest import Manifest
from train.data.packing import PackingRules, RowPlan
from train.distributed import Ranks
from train.monitor import document_lengths as lengths_module
from train.monitor.document_lengths import document_lengths
from train.monitor.recorder import Writers
from train.monitor.samples import UNSEEN, Sample, joined, page, record
from train.sampling import Samples
from train.signals import StopRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the html5lib inside
    from tensorboard.plugin_util import markdown_to_safe_html

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)
LETTERS, MARKS = "abcdtsre019äカタ", "我爱你。，“”‘’'\"()[]{}.,:;!?-_/#$%&*+<=>@^`|~\\…—"
WORDS = ["the", "cat", "re", "ve", "ll", "##ing", "##s"]
TOKENS = [
    *(
        "the",
        "cat",
        "##ing",
        "##s",
        "我",
        "爱",
        "。",
        "[MASK]",
        "[UNK]",
        "*",
        "**",
        "_",
        "__",
        "`",
        "``",
        "|",
        "\\",
        "~~",
    ),
    *(
        "<",
        ">",
        "<b>",
        "&",
        "&amp;",
        "[",
        "]",
        "(",
        ")",
        "![",
        "](",
        "#",
        "##",
        "-",
        "1",
        ".",
        "'",
        "s",
        "http",
        ":",
        "/",
    ),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BertTokenizerFast:
    """A WordPiece that knows every character that the texts are made of, and every letter inside words."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*specials, *WORDS, *LETTERS, *MARKS, *(f"##{letter}" for letter in LETTERS)]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(path), do_lower_case=False, strip_accents=False)


@settings(max_examples=300, deadline=None)
@given(
    st.text(f"{LETTERS}{MARKS}    ", max_size=40)
    | st.lists(st.sampled_from([*LETTERS, *MARKS, "the", "cat"]), max_size=40).map(" ".join),
    st.integers(0, 3),
)
def test_text_of_tokens_is_read_as_the_same_tokens(tokenizer, text: str, skipped: int) -> None:
    """Reference: transformers' own BERT tokenizer; text may begin anywhere but inside a word."""
    tokens = tokenizer.tokenize(text)
    while tokens[skipped:] and tokens[skipped].startswith("##"):
        skipped += 1
    assert tokenizer.tokenize(joined(tokens[skipped:])) == tokens[skipped:]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (
            "the play ##ing cat ' s well - known ( old ) toy , 3 . 5 % !",
            "the playing cat's well-known (old) toy, 3.5%!",
        ),
        ("我 爱 你 ， python 3 的 “ 模 型 ” 。", "我爱你，python 3的“模型”。"),
        ("我 们 — — 员 工", "我们——员工"),
        ("##ing the", "##ing the"),
        ("he said “ no ” [UNK] .", "he said “no” [UNK]."),
    ],
)
def test_spaces_stand_where_people_put_them(tokens: str, text: str) -> None:
    assert joined(tokens.split()) == text


class Cells(HTMLParser):
    """Of each cell of a page's tables, its text without spaces, in parts that are bold or not."""

    def __init__(self, markdown: str) -> None:
        super().__init__(convert_charrefs=True)
        self.cells: list[list[tuple[bool, str]]] = []
        self.tags: list[str] = []
        self.feed(markdown_to_safe_html(markdown))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.tags or "th" in self.tags:
            assert set(self.tags) <= {"table", "thead", "tbody", "tr", "td", "th", "strong"}
            text = "".join(data.split())
            self.cells[-1] += [("strong" in self.tags, text)] if text else []


def merged(parts: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    """Neighbours of one kind as one part."""
    groups = ((bold, "".join(text for _, text in run)) for bold, run in groupby(parts, key=lambda part: part[0]))
    return [(bold, text) for bold, text in groups if text]


def slow_predicted(sample: Sample) -> list[tuple[bool, str]]:
    """The cell of the predictions, a token at a time."""
    parts: list[tuple[bool, str]] = []
    size = len(sample.truth)

    def kind(i: int) -> str:
        if not 0 <= i < size:
            return "outside"
        guess = sample.predicted[i]
        return "none" if guess is None else "right" if guess == sample.truth[i] else "wrong"

    def inside(token: str, glued: bool) -> str:
        return token[2:] if glued and token.startswith("##") and len(token) > 2 else token

    def continues(token: str) -> bool:
        return token.startswith("##") and len(token) > 2

    waiting = ""  # the truth behind wrong guesses
    for i in range(size):
        true = inside(sample.truth[i], i > 0)
        begins, ends = kind(i) != kind(i - 1), kind(i) != kind(i + 1)
        if kind(i) == "none":
            shown = sample.shown[i]
            parts.append((False, "▁" if shown == UNSEEN else inside(shown, i > 0 and continues(sample.truth[i]))))
        elif kind(i) == "right":
            parts.append((False, "‹" * begins + true + "›" * ends))
        else:
            glued = not begins or (i > 0 and continues(sample.truth[i]))
            parts.append((True, inside(sample.predicted[i], glued)))
            waiting += true
            if ends:
                parts.append((False, f"[{waiting}]"))
                waiting = ""
    return merged(parts)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    truth = draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=12))
    predicted = [draw(st.sampled_from([None, None, true, *TOKENS])) for true in truth]
    shown = [
        true if guess is None else draw(st.sampled_from([UNSEEN, "[MASK]", true]))
        for guess, true in zip(predicted, truth, strict=True)
    ]
    return Sample(truth, shown, predicted)


@settings(max_examples=300, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=3))
def test_tensorboard_shows_every_token_as_it_is_and_marks_exactly_what_is_wrong(found: list[Sample]) -> None:
    """Reference: TensorBoard's own way from Markdown to HTML, and a page made token by token."""
    cells = [merged(parts) for parts in Cells(page(found)).cells]
    assert len(cells) == 8 * len(found)
    for number, sample in enumerate(found):
        title, count, *rows = cells[8 * number : 8 * number + 8]
        right = sum(guess == true for guess, true in zip(sample.predicted, sample.truth, strict=True))
        asked = sum(guess is not None for guess in sample.predicted)
        assert title == [(False, f"{number + 1}")] and count == [(False, f"{right}of{asked}right")]
        assert rows[3] == slow_predicted(sample)
        assert rows[5] == merged([(False, "".join(joined(sample.truth).split()))])
        never = Sample(sample.truth, sample.shown, [None] * len(sample.truth))
        assert rows[1] == slow_predicted(never)


def test_a_resumed_run_cuts_the_samples_beyond_its_step(tmp_path) -> None:
    """Reference: the steps that were written and those that are done again."""
    sample = Sample(["我", "a"], ["[MASK]", "a"], ["你", None])

    def live(resume_step: int, steps: list[int]) -> None:
        writers = Writers.open(tmp_path, 100, resume_step, 0)
        for step in steps:
            writers.samples.write(record(step, [{"mlm": sample}]))
        writers.close()

    live(0, [2, 4, 6])
    live(4, [6, 8])
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    told = {"truth": ["我", "a"], "shown": ["[MASK]", "a"], "predicted": ["你", None]}
    assert all(line == {"step": line["step"], "documents": [{"heads": {"mlm": told}}]} for line in lines)


def test_a_request_to_stop_leaves_the_samples_out(tmp_path, configure) -> None:
    """Reference: the file; neither the engine nor the documents are touched."""
    writers, stop = Writers.open(tmp_path, 100, 0, 0), StopRequest()
    stop.reason = "SIGTERM"
    manifest = Manifest.__new__(Manifest)
    Samples(configure(), ALONE, [], manifest, writers).write(None, 1, stop)
    writers.close()
    assert not (tmp_path / "samples.jsonl").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# The lengths of documents


def plan_of(length_P: np.ndarray) -> RowPlan:
    """A plan of which the lengths alone matter."""
    bounds_R1 = np.arange(len(length_P) + 1)
    start_P = np.zeros(len(length_P), np.uint32)
    return RowPlan(PackingRules(512), np.array([len(length_P)]), bounds_R1, start_P, length_P, 0, (), "")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 510), max_size=60), min_size=1, max_size=3))
def test_the_histogram_counts_every_document(plans: list[list[int]]) -> None:
    """Reference: counting one after another; a bucket reaches up to the limit of the next."""
    every = [length for plan in plans for length in plan] or [0]
    [value] = document_lengths([plan_of(np.array(plan, np.uint16)) for plan in plans]).value
    histogram = value.histo
    limits, below = list(histogram.bucket_limit), -np.inf
    for limit, count in zip(limits, histogram.bucket, strict=True):
        last = limit == limits[-1]
        assert count == sum(below <= length < limit or (last and length == limit) for length in every)
        below = limit
    assert sum(histogram.bucket) == histogram.num == len(every)
    assert (histogram.min, histogram.max) == (min(every), max(every))
    assert (histogram.sum, histogram.sum_squares) == (sum(every), sum(length**2 for length in every))


def test_of_a_large_plan_a_sample_is_counted(monkeypatch) -> None:
    """Reference: the shares of two lengths, which stand in halves of the plan."""
    monkeypatch.setattr(lengths_module, "_STRETCH", 4)
    length_P = np.repeat(np.array([10, 500], np.uint16), 50_000)
    histogram = document_lengths([plan_of(length_P)]).value[0].histo
    assert histogram.num == 256 * 4
    assert histogram.bucket[0] == histogram.bucket[-1] == histogram.num / 2
