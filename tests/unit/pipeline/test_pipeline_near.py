"""Sketches: unbiased, the same on every machine, and bands that find similar texts as often as theory says."""

import random

import numpy as np
import pytest

from data_pipeline.dedup import near

WORDS = [f"word{number}" for number in range(5000)]
GOLDEN_BANDS = [[599556592852417487, 18023194300843282704], [1815627180644838682, 615965768079867461]]
GOLDEN_SKETCH = [[3, 137, 15, 1, 84, 196], [8, 253, 70, 106, 222, 79]]


def changed_pairs(count, words, share, seed):
    """Random texts, each with a copy of which a share of the words is another one."""
    rng = random.Random(seed)
    originals = [rng.choices(WORDS, k=words) for _ in range(count)]
    copies = [[f"other{rng.randrange(10**9)}" if rng.random() < share else word for word in text] for text in originals]
    return [" ".join(text) for text in originals], [" ".join(text) for text in copies]


def jaccard(left, right):
    """The exact similarity of two texts: of their sets of 3-grams of words."""
    first, second = (
        {tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (left.split(), right.split())
    )
    return len(first & second) / len(first | second)


@pytest.mark.parametrize(("words", "share"), [(30, 0.05), (300, 0.05), (300, 0.1), (1500, 0.15)])
def test_the_estimate_is_unbiased_and_bands_find_pairs_as_theory_says(words, share):
    """Against the exact Jaccard similarity: mean error, spread of 128 minima, and 1 - (1 - J**4)**32 candidates."""
    originals, copies = changed_pairs(400, words, share, seed=words)
    first, second = near.sketch(originals), near.sketch(copies)
    exact_D = np.array([jaccard(*pair) for pair in zip(originals, copies, strict=True)])
    error_D = near.similarity(first.sketch_DS, second.sketch_DS) - exact_D
    assert abs(error_D.mean()) < 0.008
    assert np.sqrt((error_D**2).mean()) < 1.15 * np.sqrt((exact_D * (1 - exact_D) / near.MINIMA).mean()) + 0.003
    candidates = (first.bands_DB == second.bands_DB).any(axis=1).mean()
    assert abs(candidates - (1 - (1 - exact_D**4) ** 32).mean()) < 0.05


def test_unrelated_texts_have_no_similarity_and_share_no_band():
    """The chance that two lowest bytes are equal is taken out of the estimate."""
    texts, _ = changed_pairs(400, 200, 0, seed=1)
    found = near.sketch(texts)
    assert abs(near.similarity(found.sketch_DS[1:], found.sketch_DS[:-1]).mean()) < 0.001
    assert all(len(set(band_D.tolist())) == len(texts) for band_D in found.bands_DB.T)


def test_a_text_has_the_same_sketch_alone_and_among_others():
    """Batches are for speed only; the order of the texts stays."""
    texts = [*changed_pairs(20, 2500, 0, seed=2)[0], "", "one", "中文", "!?", *changed_pairs(5, 7, 0, seed=3)[0]]
    found = near.sketch(texts)
    for text, bands_B, sketch_S in zip(texts, found.bands_DB, found.sketch_DS, strict=True):
        alone = near.sketch([text])
        assert np.array_equal(alone.bands_DB[0], bands_B)
        assert np.array_equal(alone.sketch_DS[0], sketch_S)


def test_short_texts_are_compared_and_texts_without_a_unit_are_not():
    """A text with fewer units than an n-gram has one of all of them; punctuation alone has no band."""
    found = near.sketch(["Two words", "two, WORDS!", "other words", "...", "", "中文", "中 文。"])
    assert (found.bands_DB[0] == found.bands_DB[1]).all()
    assert (found.bands_DB[5] == found.bands_DB[6]).all()
    assert not (found.bands_DB[0] == found.bands_DB[2]).any()
    assert (found.bands_DB[3:5] == near.NO_BAND).all()
    assert (found.bands_DB[[0, 2, 5]] != near.NO_BAND).all()
    assert near.sketch([]).bands_DB.shape == (0, near.BANDS)


def test_sketches_are_what_they_were_on_other_machines():
    """Values written down once: another processor or version of the library that differs would split clusters."""
    found = near.sketch(["The quick brown fox jumps over the lazy dog 敏捷的棕色狐狸跳过了懒狗", "word " * 50])
    assert found.bands_DB[:, :2].tolist() == GOLDEN_BANDS
    assert found.sketch_DS[:, :6].tolist() == GOLDEN_SKETCH
