"""Questions, windows and answers: nothing is lost between a file and what is said of it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data_pipeline.tokenizer import train_wordpiece
from train.errors import DataError, UserError
from train.finetune.qa_spans import best_spans
from train.finetune.qa_windows import (
    Reading,
    answer_tokens,
    characters,
    check_reading,
    frame_of,
    inputs,
    pairs,
    window_around,
    windows,
    within,
)
from train.finetune.squad_json import Answer, Question, Repairs, read_squad

TEXTS = ["the cat is running on the mat, who is it? x9 [SEP] 中文 国 ﬁ é é e İ 👍 Ａ"] * 3
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TASKS = Path(__file__).resolve().parents[4] / "shared" / "data" / "tasks"


def squad_file(path: Path, context: str, *qas: dict) -> str:
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def qa(name: str, text: str, start: int, **further: object) -> dict:
    return {"id": name, "question": "who?", "answers": [{"text": text, "answer_start": start}]} | further


def question(context: str, text: str = "", question: str = "who is it?") -> Question:
    answers = (Answer(text, context.index(text)),) if text else ()
    return Question("1", question, context, answers, not answers, "here")


@pytest.fixture(scope="module", name="tokenizers")
def three_tokenizers() -> list:
    """BERT's WordPiece, uncased (accents go, some characters are unknown) and cased, and RoBERTa's bytes."""
    return [word_pieces(cased=False), word_pieces(cased=True), byte_pairs()]


def word_pieces(cased: bool) -> PreTrainedTokenizerFast:
    folder = train_wordpiece(lambda: TEXTS, 400, 1, cased)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    tokenizer = Tokenizer.from_str(folder.tokenizer_json)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def byte_pairs() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_misplaced_answer_is_named_with_file_question_and_offset(tmp_path: Path) -> None:
    """So is the number of all such answers, and the way out."""
    file = squad_file(tmp_path / "a.json", "猫坐在垫子上", qa("q1", "猫", 0), qa("q2", "垫子", 2), qa("q3", "狗", -1))
    with pytest.raises(DataError) as error:
        read_squad(file)
    assert str(error.value).startswith(f"{file}: question q2: the answer '垫子' does not stand at offset 2")
    assert (
        "'在垫' stands" in str(error.value) and "2 of 3 answers" in str(error.value) and "--repair" in str(error.value)
    )


def test_repair_moves_to_the_nearest_place_or_leaves_out_and_counts(tmp_path: Path) -> None:
    """The text of an answer that stands nowhere stays a right answer, because the official scripts know no offsets."""
    context = "cat and dog and cat"
    qas = [qa("1", "cat", 0), qa("2", "cat", 15), qa("3", "cat", 2), qa("4", " dog\n", 9), qa("5", "cow", 3)]
    questions, repairs = read_squad(squad_file(tmp_path / "a.json", context, *qas), repair=True)
    assert [q.answers[0] for q in questions] == [
        Answer("cat", 0),
        Answer("cat", 16),
        Answer("cat", 0),
        Answer("dog", 8),
        Answer("cow", None),
    ]
    assert repairs == Repairs(answers=5, moved=3, left_out=1)
    assert questions[4].marked is None


def test_rows_and_nested_files_say_the_same(tmp_path: Path) -> None:
    """Reference: the same questions as the rows that `datasets` has of SQuAD."""
    nested, _ = read_squad(squad_file(tmp_path / "a.json", "a cat", qa("1", "cat", 2), qa("2", "a", 0)))
    rows = [
        {"id": "1", "question": "who?", "context": "a cat", "answers": {"text": ["cat"], "answer_start": [2]}},
        {"id": "2", "question": "who?", "context": "a cat", "answers": {"text": ["a"], "answer_start": [0]}},
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("b.jsonl", "c.json"):
        flat, _ = read_squad(str(tmp_path / name))
        assert [(q.id, q.text, q.context, q.answers) for q in flat] == [
            (q.id, q.text, q.context, q.answers) for q in nested
        ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1", "not JSON"),
        ('{"data": [', ":1: not JSON"),
        ('{"data": {}}', 'no list "data"'),
        ("{}", 'no list "data"'),
        ('{"data": []}', "no question"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', 'data[0].paragraphs[0] has no text "context"'),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}', 'qas[0] has no "id"'),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "7", "question": "q", "answers": ["c"]}]}]}]}',
            'question 7: an answer without a "text"',
        ),
    ],
)
def test_what_is_no_squad_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    """One line that names the file and the place in it."""
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_squad(str(tmp_path / "a.json"))
    assert words in str(error.value) and "a.json" in str(error.value) and "\n" not in str(error.value)


def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    """Predictions are keyed by id."""
    with pytest.raises(DataError, match="id '1'"):
        read_squad(squad_file(tmp_path / "a.json", "a cat", qa("1", "cat", 2), qa("1", "a", 0)))


def test_the_known_defects_of_cmrc2018_are_found_and_counted() -> None:
    """Reference: the counts of SOURCE.md beside the data."""
    file = TASKS / "qa-cmrc2018" / "cmrc2018_dev.json"
    if not file.exists():
        pytest.skip(f"no {file}")
    with pytest.raises(DataError, match="200 of 9,657 answers"):
        read_squad(str(file))
    questions, repairs = read_squad(str(file), repair=True)
    assert (len(questions), repairs.answers, repairs.moved + repairs.left_out) == (3219, 9657, 200)


# ---------------------------------------------------------------------------------------------------------------------
# Windows


def random_context(rng: random.Random) -> str:
    pieces = [
        "cat ",
        "running ",
        "国",
        "中文",
        "，",
        "👍🏽",
        "Ａ",
        "é",
        "e\u0301 ",
        "\u0000",
        "\u200b",
        "\n",
        "x9",
        "ﬁ",
        "İ ",
    ]
    return "".join(rng.choices(pieces, k=rng.randint(5, 80)))


def test_windows_are_those_of_transformers(tokenizers) -> None:
    """Reference: the tokenizer's own overflowing tokens, with the same overlap, over hostile contexts."""
    rng = random.Random(1)
    for tokenizer in tokenizers:
        frame, reading = frame_of(tokenizer), Reading(24, 5)
        asked = [question(random_context(rng), question="who is 中?") for _ in range(40)]
        for pair in pairs(tokenizer, asked, reading):
            text = asked[pair.number]
            reference = tokenizer(
                text.text,
                text.context,
                truncation="only_second",
                max_length=24,
                stride=5,
                return_overflowing_tokens=True,
            )
            mine = [inputs(window, frame) for window in windows(pair, frame, reading)]
            for name in tokenizer.model_input_names:
                assert [row[name] for row in mine] == reference[name]


def test_every_answer_stands_whole_in_a_window_and_comes_back_character_by_character(tokenizers) -> None:
    """Reference: the context itself. An answer of whole words is found in the windows, or in one of its own."""
    rng, own = random.Random(2), 0
    for tokenizer in tokenizers:
        frame, reading = frame_of(tokenizer), Reading(24, 4)
        for _ in range(60):
            words = [rng.choice(["cat", "running", "国", "Ａ", "é", "e\u0301", "👍🏽", "x9"]) for _ in range(60)]
            first = rng.randrange(60)
            answer = " ".join(words[first : first + rng.randint(1, 6)])
            start = len(" ".join(words[:first])) + (first > 0)
            context = " ".join(words)
            asked = Question("1", "who?", context, (Answer(answer, start),), False, "")
            (pair,) = pairs(tokenizer, [asked], reading)
            tokens = answer_tokens(pair, asked.answers[0])
            assert tokens is not None
            found = [(w, within(w, tokens)) for w in windows(pair, frame, reading) if within(w, tokens)]
            if not found:
                window = window_around(pair, tokens, frame, reading)
                assert window is not None
                found, own = [(window, within(window, tokens))], own + 1
            for window, (begin, end) in found:
                ids = inputs(window, frame)["input_ids"]
                assert len(ids) <= 24
                assert ids[begin : end + 1] == pair.context[slice(*tokens)]
                assert context[slice(*characters(window, begin, end, context))] == answer
    assert own > 0


def test_an_answer_longer_than_a_window_has_none(tokenizers) -> None:
    """It is left out of training, and counted."""
    tokenizer, reading = tokenizers[0], Reading(24, 4)
    asked = question("cat " * 40, "cat " * 30)
    (pair,) = pairs(tokenizer, [asked], reading)
    assert window_around(pair, answer_tokens(pair, asked.answers[0]), frame_of(tokenizer), reading) is None


def test_a_context_without_tokens_has_one_window_and_no_span(tokenizers) -> None:
    """The model is asked all the same."""
    tokenizer, reading = tokenizers[0], Reading(24, 4)
    (pair,) = pairs(tokenizer, [question("\u0000 \u200b")], reading)
    (window,) = windows(pair, frame_of(tokenizer), reading)
    scores = np.zeros(24, np.float32)
    assert best_spans([(window, scores, scores)], "\u0000 \u200b", 30, 20, False) == []
    assert [(f.begin, f.end) for f in best_spans([(window, scores, scores)], "", 30, 20, True)] == [(0, 0)]


@pytest.mark.parametrize("overlap", [-1, 13, 100])
def test_windows_that_cannot_move_on_are_refused(tokenizers, overlap: int) -> None:
    """24 - 8 - 3 = 13 tokens of context are left beside the longest question."""
    with pytest.raises(UserError, match="give 0 to 12"):
        check_reading(frame_of(tokenizers[0]), Reading(24, overlap))
    check_reading(frame_of(tokenizers[0]), Reading(24, 12))


def test_special_tokens_in_texts_are_text(tokenizers) -> None:
    """A literal [SEP] in a question does not end it."""
    tokenizer = tokenizers[0]
    (pair,) = pairs(tokenizer, [question("a [SEP] cat", question="[SEP] [MASK]?")], Reading(64, 4))
    assert tokenizer.sep_token_id not in pair.question + pair.context


# ---------------------------------------------------------------------------------------------------------------------
# Spans


def slow_best(scored: list, context: str, longest: int, none: bool) -> list:
    """Every span of every window, one by one."""
    found: dict = {}
    for window, start, end in scored:
        places = range(window.offset, window.offset + window.tokens[1] - window.tokens[0])
        for first in places:
            for last in places:
                if first <= last < first + longest:
                    span = characters(window, first, last, context)
                    found[span] = max(found.get(span, -1e9), float(start[first]) + float(end[last]))
    if none:
        found[0, 0] = min(float(start[0]) + float(end[0]) for _, start, end in scored)
    return sorted(((score, span) for span, score in found.items()), key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("none", [False, True])
def test_the_best_spans_are_those_of_all_windows(tokenizers, none: bool) -> None:
    """Reference: slow_best. Scores of padding and of the question are the highest, and must not matter."""
    rng, frame, reading = np.random.default_rng(0), frame_of(tokenizers[0]), Reading(24, 10)
    asked = question("the cat is running on the mat 国中 " * 4)
    (pair,) = pairs(tokenizers[0], [asked], reading)
    scored = []
    for window in windows(pair, frame, reading):
        start, end = rng.normal(size=(2, 40)).astype(np.float32)
        context = slice(window.offset, window.offset + window.tokens[1] - window.tokens[0])
        for scores in (start, end):
            kept, nothing = scores[context].copy(), scores[0]
            scores[:] = 50
            scores[context], scores[0] = kept, nothing
        scored.append((window, start, end))
    assert len(scored) > 2
    reference = slow_best(scored, asked.context, 6, none)
    for count in (1, 12, len(reference)):
        found = best_spans(scored, asked.context, 6, count, none)
        assert [(f.begin, f.end) for f in found] == [span for _, span in reference[:count]]
    assert [f.score for f in found] == pytest.approx([score for score, _ in reference])
    assert sum(f.probability for f in found) == pytest.approx(1)
