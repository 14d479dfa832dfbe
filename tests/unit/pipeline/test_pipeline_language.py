"""Languages: short and long texts of known language, nothing where nothing is said, an even sample."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import language
from data_pipeline.errors import UserError

pytest.importorskip("pycld2")
DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
KNOWN = {
    "en": "The quick brown fox jumps over the lazy dog while the farmer looks on.",
    "zh": "北京大学的学生在图书馆里学习自然语言处理技术。",
    "de": "Der Mond ist aufgegangen, die goldnen Sternlein prangen am Himmel hell und klar.",
    "fr": "Longtemps, je me suis couché de bonne heure, et mes yeux se fermaient si vite.",
    "es": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, vivía un hidalgo.",
    "ru": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "ko": "나는 오늘 아침에 친구와 함께 학교에 갔습니다.",
    "he": "בראשית ברא אלהים את השמים ואת הארץ והארץ היתה תהו ובהו",
    "ar": "كان يا ما كان في قديم الزمان ملك يحب شعبه",
}


@pytest.mark.parametrize("code", KNOWN)
def test_a_sentence_is_known(code):
    """Reference: who wrote it; repeated to be long, it stays what it is."""
    assert language.detect(KNOWN[code]) == code
    assert language.detect("\n".join([KNOWN[code]] * 50)) == code
    assert code in language.known()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("味道很好", "zh"),
        ("很快，好吃，味道足，量大", "zh"),
        ("菜量一般，有点少", "zh"),
        ("吾輩は猫である", "ja"),
        ("北京大學的學生在圖書館裡學習自然語言處理技術。", "zh"),
        (
            "SHOW MASTER STATUS and SHOW TABLE STATUS in the information schema 语句返回当前表的状态信息，与其他兼容。",
            "zh",
        ),
    ],
)
def test_few_ideographs_are_enough(text, code):
    """Reference: who wrote it; most of these CLD2 withholds or calls Japanese or English."""
    assert language.detect(text) == code


@pytest.mark.parametrize("dirt", ["\x00", "\x85", "\ud800", "\udfff", "\ufffe", "\U0010ffff", "\u2028", "\x1b"])
def test_characters_that_no_text_has_change_nothing(dirt):
    """Reference: the text without them; CLD2 refuses most."""
    for code, text in KNOWN.items():
        assert language.detect(text.replace(" ", dirt + " ") + dirt) == code


def test_codes_are_of_two_letters_or_und():
    """Reference: ISO 639-1; CLD2 knows Scots, which has no code there, and the old codes of Hebrew and Javanese."""
    assert all(len(code) == 2 and code.isalpha() for code in language.known()[:-1])
    assert {"en", "zh", "he", "jv", "sr"} < set(language.known())
    assert not {"iw", "jw", "sco", "tlh", "un", "xx", "zh-Hant"} & set(language.known())


@pytest.mark.parametrize("text", ["", " ", "123 + 456 = 579", "--- *** !!!", "👍👍👍", "ok", "x"])
def test_nothing_is_said_of_what_says_nothing(text):
    """No letters, or too few."""
    assert language.detect(text) == "und"


def test_front_matter_in_another_language_does_not_decide():
    """Reference: the language of most of the text; what is at the end of a long text is not looked at."""
    text = "title: Getting started\n---\n" + KNOWN["zh"] * 40
    assert language.detect(text) == "zh"
    assert language.detect(text + KNOWN["ru"]) == "zh"


@pytest.mark.parametrize("corpus", ["en-peps", "en-novels", "zh-javaguide", "zh-tidb-docs"])
def test_real_documents_are_known(corpus):
    """Reference: the name of the corpus; its first 60 documents (some of zh-react-docs are English)."""
    path = DATA / "pretrain" / corpus / "docs.jsonl.zst"
    if not path.is_file():
        pytest.skip("needs ../shared/data/pretrain")
    import zstandard

    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(60), lines, strict=False)]
    assert {language.detect(text) for text in texts} == {corpus[:2]}


def test_an_unknown_code_is_refused_with_close_ones():
    """Reference: written by hand."""
    language.check(["en", "zh", "und"])
    for code, close in (("eng", "en"), ("EN", "en"), ("zh-cn", "zh")):
        with pytest.raises(UserError, match=f"no language '{code}'.* such as {close}"):
            language.check(["de", code])


@pytest.mark.parametrize("size", [0, 1, 599, 600, 601, 602, 5000])
def test_what_is_looked_at_is_all_that_decides(size):
    """Reference: the whole text; looking at what was looked at changes nothing."""
    text = (KNOWN["de"] * 100)[:size]
    seen = language.looked_at(text)
    assert language.looked_at(seen) == seen
    assert language.detect(seen) == language.detect(text)


def test_the_model_is_loaded_when_it_is_needed():
    """Importing the filters must not need it: they run without a language named."""
    code = "import sys, data_pipeline.filters; sys.exit('pycld2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[3])


def test_the_manifest_names_the_model():
    """Another version may find other languages."""
    name, version = language.describe().split()
    assert name == "pycld2"
    assert version[0].isdigit()
