"""Parallel files, batches, the loss and the text that comes out."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipeline.tokenizer import train_wordpiece
from train.errors import DataError, UserError
from train.finetune.parallel_text import Languages, SentencePair, identity, read_pairs
from train.finetune.target_text import FOLDER, open_target, text_of, with_spacing
from train.finetune.translation import Vocabularies, collate, log_likelihoods, smoothed_loss
from train.finetune.translation_scores import Scorer

LANGUAGES = Languages("en", "zh")
TASKS = Path(__file__).resolve().parents[4] / "shared" / "data" / "tasks"


def write(folder: Path, english: str, chinese: str) -> str:
    (folder / "a.en").write_text(english, encoding="utf-8", newline="")
    (folder / "a.zh").write_text(chinese, encoding="utf-8", newline="")
    return str(folder / "a")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """U+2028, U+0085 and form feeds stand inside sentences; a file may begin with a byte order mark."""
    prefix = write(tmp_path, "\ufeffa\u2028b\r\nc\x0cd\n", "一\u0085\n二")
    pairs, empty = read_pairs(prefix, LANGUAGES, repair=False)
    assert pairs == [SentencePair(f"{prefix}:1", "a\u2028b", "一\u0085"), SentencePair(f"{prefix}:2", "c\x0cd", "二")]
    assert empty == 0


def test_unequal_files_are_refused_with_both_counts(tmp_path: Path) -> None:
    """No repair can know which line is missing."""
    for repair in (False, True):
        with pytest.raises(DataError) as error:
            read_pairs(write(tmp_path, "a\nb\nc\n", "一\n二\n"), LANGUAGES, repair)
        assert "a.en has 3 lines and" in str(error.value) and "a.zh has 2 lines" in str(error.value)


def test_empty_sides_are_counted_or_left_out(tmp_path: Path) -> None:
    """The first is named; with --repair what is left keeps its line."""
    prefix = write(tmp_path, "a\n\nc\nd\n", "一\n二\n \n四\n")
    with pytest.raises(DataError, match=r":2: a side is empty; so with 1 of 4 lines in en and 1 in zh"):
        read_pairs(prefix, LANGUAGES, repair=False)
    pairs, empty = read_pairs(prefix, LANGUAGES, repair=True)
    assert [pair.place for pair in pairs] == [f"{prefix}:1", f"{prefix}:4"] and empty == 2
    with pytest.raises(DataError, match="no pair"):
        read_pairs(write(tmp_path, "\n", "\n"), LANGUAGES, repair=True)


def test_rows_hold_the_languages_as_columns_or_in_translation(tmp_path: Path) -> None:
    """The latter is the form of the hub's translation sets."""
    rows = [{"en": "a", "zh": "一"}, {"translation": {"en": "b", "zh": "二"}}]
    for number, row in enumerate(rows):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        (pair,), _ = read_pairs(str(file), LANGUAGES, repair=False)
        assert (pair.source, pair.target) == ("ab"[number], "一二"[number])
        with pytest.raises(DataError, match=r"no column 'fr'.*en, zh"):
            read_pairs(str(file), Languages("en", "fr"), repair=False)


def test_a_missing_file_is_named_with_the_form_of_the_name(tmp_path: Path) -> None:
    """PREFIX is easily taken for a file."""
    with pytest.raises(UserError, match=r"b\.en: no such file; give PREFIX of PREFIX\.en and PREFIX\.zh"):
        read_pairs(str(tmp_path / "b"), LANGUAGES, repair=False)
    with pytest.raises(UserError, match=r"a\.en: give what both files have in common: .*/a$"):
        read_pairs(write(tmp_path, "a\n", "一\n") + ".en", LANGUAGES, repair=False)


def test_the_identity_changes_with_either_file(tmp_path: Path) -> None:
    """Or a finished folder would be taken for the fine-tuning of other data."""
    first = identity(write(tmp_path, "a\n", "一\n"), LANGUAGES, 1)
    assert identity(write(tmp_path, "a\n", "一\n"), LANGUAGES, 1) == first
    assert identity(write(tmp_path, "b\n", "一\n"), LANGUAGES, 1) != first
    assert identity(write(tmp_path, "a\n", "二\n"), LANGUAGES, 1) != first


# ---------------------------------------------------------------------------------------------------------------------
# Text that comes out


@pytest.fixture(scope="module", name="tokenizer")
def uncased() -> PreTrainedTokenizerFast:
    texts = ["well-known; don't! 3.5% (ok): $5, 1,000 dogs' i'm the cat. 我爱 python 编程，“好”吗？ 12:30"] * 3
    folder = train_wordpiece(lambda: texts, 400, 1, False)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(folder.tokenizer_json), **names)


TEXTS = [
    "the cat.",
    "don't, i'm well-known (ok): 3.5%!",
    "$5, 1,000 dogs, 12:30",
    "我爱python编程，“好”吗？",
    "the cat; the dogs",
]


def test_transformers_alone_decodes_with_spaces_as_people_put_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Reference: the texts themselves, through the saved folder opened by AutoTokenizer."""
    with_spacing(tokenizer).save_pretrained(tmp_path / FOLDER)
    opened = AutoTokenizer.from_pretrained(tmp_path / FOLDER)
    ids = opened(TEXTS)["input_ids"]
    assert opened.batch_decode(ids, skip_special_tokens=True) == TEXTS
    assert text_of(open_target(tmp_path), ids) == TEXTS
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) != TEXTS
    assert tokenizer(TEXTS)["input_ids"] == ids


@pytest.mark.parametrize(("language", "vocabulary", "least"), [("en", "uncased", 99.5), ("zh", "chinese", 99.5)])
def test_real_sentences_survive_the_round_trip(language: str, vocabulary: str, least: float) -> None:
    """sacreBLEU (lower case) of decoded references against themselves; without the rules English has 84.8."""
    folder = TASKS.parent / "vocab" / f"bert-base-{vocabulary}"
    file = TASKS / "mt-cmn-tatoeba" / f"dev.{language}"
    if not file.exists():
        pytest.skip(f"no {file}")
    pytest.importorskip("sacrebleu")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = with_spacing(PreTrainedTokenizerFast(tokenizer_object=backend, **names))
    texts = file.read_text(encoding="utf-8").splitlines()
    decoded = text_of(tokenizer, tokenizer([text.lower() for text in texts])["input_ids"])
    assert Scorer([text.lower() for text in texts], language, False).score(decoded)["bleu"] > least


def test_bleu_and_chrf_are_those_of_sacrebleu_with_the_tokenizer_of_the_language() -> None:
    """Reference: sacreBLEU called by itself; its signatures name what was measured."""
    sacrebleu = pytest.importorskip("sacrebleu")
    chinese, english = ["我爱你，汤姆。", "他今天去学校了。"], ["I love you, Tom.", "He went to School today."]
    said = ["我爱汤姆。", "他去学校了。"], ["i love Tom.", "he went to school today ."]
    for language, references, translations, name in (
        ("zh_CN", chinese, said[0], "zh"),
        ("en", english, said[1], "13a"),
    ):
        scorer = Scorer(references, language, lowercased=True)
        scores = scorer.score(translations)
        expected = sacrebleu.corpus_bleu(translations, [references], tokenize=name).score
        assert scores["bleu"] == pytest.approx(expected)
        assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(translations, [references]).score)
        assert f"tok:{name}" in scorer.signatures()["bleu"]
        assert ("bleu_lowercase" in scores) == (language == "en")
    assert scores["bleu_lowercase"] > scores["bleu"]
    assert Scorer(chinese, "xx", False).tokenizer == "zh"  # by script


# ---------------------------------------------------------------------------------------------------------------------
# Batches and losses


def test_the_decoder_reads_what_it_should_have_written_so_far(tokenizer: PreTrainedTokenizerFast) -> None:
    """Reference: the shift by one, row by row. No token is both asked for and seen."""
    vocabularies = Vocabularies(tokenizer, tokenizer, 16, 16)
    features = [
        {"input_ids": [2, 7, 3], "attention_mask": [1, 1, 1], "labels": list(range(10, 18))},
        {"input_ids": [2, 7, 8, 9, 3], "attention_mask": [1] * 5, "labels": [20, 3]},
    ]
    batch = collate(vocabularies, tokenizer.cls_token_id, features)
    assert batch["labels"].tolist() == [list(range(10, 18)), [20, 3] + [-100] * 6]
    start, pad = tokenizer.cls_token_id, tokenizer.pad_token_id
    assert batch["decoder_input_ids"].tolist() == [[start, *range(10, 17)], [start, 20, 3, pad, pad, pad, pad, pad]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]


def test_the_loss_is_the_mean_over_target_tokens_smoothed_in_training_alone() -> None:
    """Reference: the definition (Szegedy et al. 2016, section 7), token by token."""
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[1, 4, -100], [2, -100, -100]])
    plain = smooth = 0.0
    for row, place in ((0, 0), (0, 1), (1, 0)):
        logs = logits[row, place].log_softmax(0)
        right = -logs[labels[row, place]].item()
        plain += right
        smooth += 0.9 * right + 0.1 * -logs.mean().item()
    assert smoothed_loss({"logits": logits}, labels, None, 0.1).item() == pytest.approx(smooth / 3)
    assert smoothed_loss({"logits": logits}, labels, 6, 0.1).item() == pytest.approx(smooth / 6)
    with torch.no_grad():
        assert smoothed_loss({"logits": logits}, labels, None, 0.1).item() == pytest.approx(plain / 3)
        sums = log_likelihoods((logits, "cache"), labels)
    assert sums[:, 1].tolist() == [2, 1]
    assert sums[:, 0].sum().item() == pytest.approx(-plain)
