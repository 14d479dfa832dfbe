"""Duplicates: the outcome of a slow reference in memory, for any cut into ranges, after any kill; and on real text."""

import io
import itertools
import json
import random
import re
import sysconfig
import tracemalloc
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rjieba
import xxhash
import zstandard
from safetensors.numpy import save_file

from data_pipeline.dedup import near, near_pairs, paragraphs
from data_pipeline.dedup.duplicates import EXACT, KEPT, NEAR, DuplicateRules, dropped, dropped_paragraphs, examples
from data_pipeline.dedup.duplicates import find_duplicates as find
from data_pipeline.dedup.sorted_runs import bucket, cut_into_groups
from data_pipeline.dedup.units import grams, units
from data_pipeline.errors import DataError, UserError
from data_pipeline.filters import _CJK
from data_pipeline.stdlib_docs import documents_of_source

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
RULES = DuplicateRules(near_threshold=0.5, paragraphs=True)


def staged(texts):
    """The tensors of a range that holds `texts`."""
    digests = [xxhash.xxh3_128_intdigest(text.encode()) for text in texts]
    parts_D = [paragraphs.split(text) for text in texts]
    found = near.sketch(texts)
    return {
        "digest_D2": np.array([(value >> 64, value & (1 << 64) - 1) for value in digests], np.uint64).reshape(-1, 2),
        "bands_BD": np.ascontiguousarray(found.bands_DB.T),
        "sketch_DS": found.sketch_DS,
        "paragraph_digest_P2": paragraphs.digests([part for parts in parts_D for part in parts]),
        "paragraphs_D": np.array([len(parts) for parts in parts_D], np.uint32),
    }


def random_documents(count, seed):
    """Tensors of documents with many equal digests, bands, similar sketches and equal paragraphs; no text behind."""
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 2**64, count, dtype=np.uint64)
    digest_D2 = np.stack([spread[rng.integers(0, count // 2, count)], rng.integers(0, 3, count)], 1).astype(np.uint64)
    centers = rng.integers(0, count // 4, count)  # documents of one center are similar and share band hashes
    sketch_DS = rng.integers(0, 256, (count // 4, near.MINIMA)).astype(np.uint8)[centers]
    changed = rng.random(sketch_DS.shape) < rng.choice([0.0, 0.1, 0.4], count)[:, None]
    sketch_DS[changed] = rng.integers(0, 256, np.count_nonzero(changed))
    bands_BD = spread[(centers + rng.integers(0, 2, (near.BANDS, count))) % count]
    bands_BD[rng.random(bands_BD.shape) < 0.93] = near.NO_BAND
    bands_BD[3, : count // 5] = 12345  # a huge group
    paragraphs_D = rng.integers(0, 4, count).astype(np.uint32)
    total = int(paragraphs_D.sum())
    paragraph_digest_P2 = np.stack([spread[rng.integers(0, count // 8, total)], rng.integers(0, 2, total)], 1)
    paragraph_digest_P2[rng.random(total) < 0.3] = paragraphs.NEVER_EQUAL
    return {
        "digest_D2": digest_D2,
        "bands_BD": bands_BD,
        "sketch_DS": sketch_DS,
        "paragraph_digest_P2": paragraph_digest_P2.astype(np.uint64),
        "paragraphs_D": paragraphs_D,
    }


def write_ranges(folder, tensors, cuts):
    """The documents cut at the places `cuts` into files; their paths and the (documents, paragraphs) of each."""
    folder.mkdir()
    ends_D = np.cumsum(tensors["paragraphs_D"])
    paths, sizes = [], []
    for number, (start, end) in enumerate(itertools.pairwise([0, *cuts, len(tensors["digest_D2"])])):
        first, last = (int(ends_D[place - 1]) if place else 0 for place in (start, end))
        part = {
            "digest_D2": tensors["digest_D2"][start:end],
            "bands_BD": tensors["bands_BD"][:, start:end],
            "sketch_DS": tensors["sketch_DS"][start:end],
            "paragraph_digest_P2": tensors["paragraph_digest_P2"][first:last],
            "paragraphs_D": tensors["paragraphs_D"][start:end],
        }
        paths.append(folder / f"{number}.safetensors")
        save_file({name: np.ascontiguousarray(array) for name, array in part.items()}, paths[-1])
        sizes.append((end - start, last - first))
    return paths, sizes


def serially(function, items):
    """Run the tasks here, in order."""
    return map(function, items)


def outcome(tmp_path, name, tensors, cuts, rules=RULES, group_records=50, run=serially):
    """What find_duplicates says of all documents and of all paragraphs, for one cut into ranges."""
    paths, sizes = write_ranges(tmp_path / f"{name}-ranges", tensors, cuts)
    folder = tmp_path / name
    folder.mkdir()
    find(paths, folder, rules, run, group_records)
    return collected(folder, sizes, rules)


def collected(folder, sizes, rules=RULES):
    flags_D = [dropped(folder, index, size[0], rules) for index, size in enumerate(sizes)]
    flags_P = [dropped_paragraphs(folder, i, size[1]) for i, size in enumerate(sizes)] if rules.paragraphs else [[]]
    return np.concatenate(flags_D), np.concatenate(flags_P)


def reference(tensors, rules):
    """The same in memory, with dictionaries and one document after the other."""
    count = len(tensors["digest_D2"])
    flags, seen = [KEPT] * count, set()
    for document, digest in enumerate(map(tuple, tensors["digest_D2"].tolist())):
        flags[document] = EXACT if rules.exact and digest in seen else KEPT
        seen.add(digest)
    links = defaultdict(set)
    for hashes in tensors["bands_BD"].tolist() if rules.near_threshold else []:
        groups = defaultdict(list)
        for document, value in enumerate(hashes):
            if flags[document] == KEPT and value != near.NO_BAND:
                for earlier in {group[0], group[-1]} if (group := groups[value]) else ():
                    sketches = tensors["sketch_DS"][[earlier, document]]
                    agreeing = sum(a == b for a, b in zip(*sketches.tolist(), strict=True)) / near.MINIMA
                    if (agreeing - 1 / 256) / (1 - 1 / 256) >= rules.near_threshold:
                        links[earlier].add(document)
                        links[document].add(earlier)
                group.append(document)
    for document in range(count):
        open_ones = [document] if document in links else []
        while open_ones:
            for other in links.pop(open_ones.pop(), ()):
                if other in links:
                    flags[other] = NEAR if other != document else KEPT
                    open_ones.append(other)
    repeated, seen, place = [], set(), 0
    for document, size in enumerate(tensors["paragraphs_D"].tolist() if rules.paragraphs else []):
        for digest in map(tuple, tensors["paragraph_digest_P2"][place : place + size].tolist()):
            counted = flags[document] == KEPT and digest != paragraphs.NEVER_EQUAL
            repeated.append(counted and digest in seen)
            seen |= {digest} if counted else set()
        place += size
    return np.array(flags), np.array(repeated)


@pytest.mark.parametrize(
    "rules",
    [RULES, DuplicateRules(), DuplicateRules(exact=False, near_threshold=0.6), DuplicateRules(False, paragraphs=True)],
)
def test_the_outcome_is_that_of_a_slow_reference_for_any_cut_into_ranges(tmp_path, rules, monkeypatch):
    """1, 3 and 17 ranges, some empty; groups and buckets of 80 records and of all; blocks of 9 pairs and of all."""
    tensors = random_documents(400, seed=3)
    expected_D, expected_P = reference(tensors, rules)
    assert not rules.exact or set(expected_D) >= {KEPT, EXACT}
    assert not rules.near_threshold or np.count_nonzero(expected_D == NEAR) > 20
    assert not rules.paragraphs or 0 < expected_P.sum() < len(expected_P)
    seventeen = sorted([0, 0, 400, 200, 200, *random.Random(1).choices(range(400), k=11)])
    for name, cuts, records in (("1", [], 1 << 21), ("3", [10, 390], 80), ("17", seventeen, 80)):
        monkeypatch.setattr(near_pairs, "_BLOCK", 9 if records == 80 else 1 << 19)
        flags_D, flags_P = outcome(tmp_path, name, tensors, cuts, rules, records)
        assert np.array_equal(flags_D, expected_D)
        assert np.array_equal(flags_P, expected_P)


def test_tasks_may_run_in_any_order_and_at_the_same_time(tmp_path):
    """Threads take the tasks of a step, the last one first."""
    tensors = random_documents(150, seed=5)

    def backwards(function, items):
        with ThreadPoolExecutor(3) as pool:
            yield from pool.map(function, reversed(list(items)))

    found = outcome(tmp_path, "set", tensors, [20, 70, 100], group_records=20, run=backwards)
    assert all(np.array_equal(*pair) for pair in zip(found, reference(tensors, RULES), strict=True))


def test_a_killed_search_goes_on_and_leaves_the_same_bytes(tmp_path):
    """It is stopped after every few tasks, some files are lost, and what is there is not made again."""
    tensors = random_documents(150, seed=6)
    paths, _ = write_ranges(tmp_path / "ranges", tensors, [40, 80, 120])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    find(paths, whole, RULES, serially, 60)
    left, interrupted = 0, 0

    def stopping(function, items):
        nonlocal left
        for item in items:
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            assert not item.output.exists()
            yield function(item)

    while not (killed / "paragraph-flags").exists():
        left = 60
        try:
            find(paths, killed, RULES, stopping, 60)
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted > 3
    assert contents(killed) == contents(whole)
    rng = random.Random(0)
    for path in rng.sample(sorted(killed.rglob("*.npy")), 6):
        path.unlink()
    find(paths, killed, RULES, serially, 60)
    assert contents(killed) == contents(whole)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npy")}


def test_no_documents_and_no_ranges_are_fine(tmp_path):
    """Nothing to find is no error."""
    empty = {name: array[..., :0] if name == "bands_BD" else array[:0] for name, array in staged(["a"]).items()}
    flags_D, flags_P = outcome(tmp_path, "empty", empty, [0, 0])
    assert not len(flags_D) and not len(flags_P)
    (tmp_path / "none").mkdir()
    find([], tmp_path / "none", RULES, serially)


def test_another_number_of_ranges_or_documents_is_refused(tmp_path):
    """The folder belongs to one list of ranges."""
    paths, sizes = write_ranges(tmp_path / "ranges", staged(["a text", "b text"]), [1])
    folder = tmp_path / "found"
    folder.mkdir()
    find(paths, folder, RULES, serially)
    with pytest.raises(DataError, match="made for 2 ranges, not for 1"):
        find(paths[:1], folder, RULES, serially)
    with pytest.raises(DataError, match="range 1 had 1 records, now 2"):
        dropped(folder, 1, sizes[1][0] + 1, RULES)


@pytest.mark.parametrize("threshold", [0.0, -1, 1.01, float("nan")])
def test_a_threshold_that_is_no_similarity_is_refused(threshold):
    """It would drop everything or nothing."""
    with pytest.raises(UserError, match="threshold"):
        DuplicateRules(near_threshold=threshold)


def test_settings_are_json_and_name_all_that_decides():
    """What is not asked for is null."""
    found = json.loads(json.dumps(RULES.settings()))
    assert {"threshold", "ngram_words", "ngram_characters", "bands", "rows", "minhash", "units"} == set(found["near"])
    assert DuplicateRules(exact=False).settings() == {"exact": None, "near": None, "paragraphs": None}


def test_buckets_hold_every_key_once_and_groups_every_range():
    """Every limit is kept but where one range is larger."""
    for count in (1, 2, 3, 7, 1000):
        edges = [bucket(number, count) for number in range(count)]
        assert edges[0].low == 0 and edges[-1].last == (1 << 64) - 1
        assert all(before.last + 1 == after.low for before, after in itertools.pairwise(edges))
    assert cut_into_groups([3, 0, 4, 3, 9, 0, 1, 0], 7) == [0, 0, 0, 1, 2, 2, 3, 3]


def test_memory_stays_with_the_group_and_not_with_the_documents(tmp_path):
    """Five times the documents take no more memory in any task."""

    def peak(count):
        paths, _ = write_ranges(tmp_path / f"ranges-{count}", random_documents(count, seed=8), range(500, count, 500))
        highest = 0

        def measuring(function, items):
            nonlocal highest
            for item in items:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                yield function(item)
                highest = max(highest, tracemalloc.get_traced_memory()[1] - before)

        (tmp_path / f"found-{count}").mkdir()
        tracemalloc.start()
        find(paths, tmp_path / f"found-{count}", DuplicateRules(paragraphs=True), measuring, 2000)
        tracemalloc.stop()
        return highest

    assert peak(20_000) < 1.5 * peak(4_000)


def test_paragraphs_are_the_text_and_only_long_ones_have_a_digest():
    """Joined they give the text back; equal ones have equal digests whatever white space stands around them."""
    long = "A sentence of a boilerplate that stands under every page of this site. " * 2
    for text in ("", "\n", "a", "a\n", "a\n\nb", f"{long}\n}}\n {long}\r\n版权所有{'字' * 40}"):
        assert "".join(paragraphs.split(text)) == text
    digest_P2 = paragraphs.digests(
        paragraphs.split(f"{long}\n}}\n  {long} \nx{long}\n{'字' * 33}\n{'字' * 34}")
    ).tolist()
    assert digest_P2[0] == digest_P2[2] != digest_P2[3]
    assert digest_P2[1] == digest_P2[4] == list(paragraphs.NEVER_EQUAL) != digest_P2[5]


# Planted duplicates in real text


def real_passages(names, characters, count):
    """The first passages of each corpus, each of so many characters."""
    return [passage for name in names for passage in itertools.islice(corpus_passages(name, characters), count)]


def corpus_passages(name, characters):
    path = DATA / "pretrain" / name / "docs.jsonl.zst"
    if not path.exists():
        pytest.skip("needs ../shared/data/pretrain")
    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
            text = json.loads(line)["text"]
            yield from (text[start : start + characters] for start in range(0, len(text) - characters, characters))


def python_passages(words, count):
    """Passages of the documentation strings of Python's own library: text that every machine has."""
    root, passages = Path(sysconfig.get_paths()["stdlib"]), []
    for path in sorted(root.glob("*.py")) + sorted((root / "asyncio").glob("*.py")):
        text = "\n".join(text for _, text in documents_of_source(path.stem, path.read_bytes())).split(" ")
        passages += [" ".join(text[start : start + words]) for start in range(0, len(text) - words, words)]
    return passages[:count]


def exact_similarities(texts):
    """{(earlier, later): J} of all pairs that share an n-gram: from the sets, by an index of who has which n-gram."""
    made = grams(units(texts), near.WORDS, near.CHARACTERS, cut_first=True)
    sets = [set(made.hashes_N[start:end].tolist()) for start, end in itertools.pairwise(made.firsts_T1)]
    owners, common = defaultdict(list), defaultdict(int)
    for document, hashes in enumerate(sets):
        for value in hashes:
            for earlier in owners[value]:
                common[earlier, document] += 1
            owners[value].append(document)
    return {(a, b): both / (len(sets[a]) + len(sets[b]) - both) for (a, b), both in common.items()}


def without_natural_duplicates(texts):
    """`texts` without the later one of every pair that is similar by the slow reference."""
    similar = {later for (_, later), similarity in exact_similarities(texts).items() if similarity >= 0.35}
    return [text for document, text in enumerate(texts) if document not in similar]


def english_words(text):
    """The words and what stands between them."""
    return re.split(r"(\s+)", text)


def cjk_characters(text):
    """Chinese characters, and what stands between them: a changed letter would be a changed word."""
    return re.split(f"([{_CJK}])", text)


SPLITTERS = {
    "words": (english_words, re.compile(r"\w")),
    "jieba": (rjieba.cut, re.compile(r"\w")),
    "characters": (cjk_characters, re.compile(f"^[{_CJK}]$")),
}


def with_changed(parts, is_word, pool, rng):
    """The text of `parts` with 5 % of its words replaced by other words of the corpus."""
    parts = list(parts)
    places = [place for place, part in enumerate(parts) if is_word.search(part)]
    for place in rng.sample(places, round(0.05 * len(places))):
        parts[place] = next(word for word in rng.sample(pool, 2) if word != parts[place])
    return "".join(parts)


def recall_and_precision(tmp_path, base, splitter):
    """Of 10 % planted exact copies and of 10 % planted near copies the shares found; and the share of copies in what
    is dropped."""
    rng, (split, is_word) = random.Random(4), SPLITTERS[splitter]
    tenth = len(base) // 10
    chosen = rng.sample(range(len(base)), 2 * tenth)
    pool = sorted({part for text in base for part in split(text) if is_word.search(part)})
    planted = [(origin, base[origin]) for origin in chosen[:tenth]]
    planted += [(origin, with_changed(split(base[origin]), is_word, pool, rng)) for origin in chosen[tenth:]]
    documents = [*enumerate(base), *planted]
    rng.shuffle(documents)
    flags_D, _ = outcome(tmp_path, "planted", staged([text for _, text in documents]), [100, 700], RULES, 300)
    origins = [origin for origin, _ in documents]
    copies = np.array([origin in origins[:place] for place, origin in enumerate(origins)])
    exact = np.isin(origins, chosen[:tenth])
    gone = flags_D != KEPT
    return gone[copies & exact].mean(), gone[copies & ~exact].mean(), (gone & copies).sum() / gone.sum()


def check_planted(tmp_path, texts, splitter):
    base = without_natural_duplicates(texts)
    assert len(base) >= 1000
    exact, similar, precision = recall_and_precision(tmp_path, base, splitter)
    assert exact == 1
    assert similar >= 0.95
    assert precision >= 0.99


def test_planted_duplicates_are_found_in_the_documentation_of_python(tmp_path):
    """All exact copies, 95 % of the near ones, and 99 % of what is dropped are copies."""
    check_planted(tmp_path, python_passages(90, 2600), "words")


@pytest.mark.parametrize(
    ("names", "characters", "splitter"),
    [
        (["en-peps", "en-novels"], 600, "words"),
        (["zh-javaguide", "zh-tidb-docs"], 300, "jieba"),
        (["zh-javaguide", "zh-react-docs"], 300, "characters"),
    ],
)
def test_planted_duplicates_are_found_in_real_text(tmp_path, names, characters, splitter):
    """As above, in English and Chinese; a near copy has 5 % of its words or characters changed."""
    check_planted(tmp_path, real_passages(names, characters, 800), splitter)


def test_examples_name_what_was_dropped_and_what_was_kept(tmp_path):
    """As (range, document) of both."""
    text = " ".join(f"word{number}" for number in range(60))
    texts = ["first " + text, "something else", "also " + text, "first " + text]
    paths, sizes = write_ranges(tmp_path / "ranges", staged(texts), [1])
    folder = tmp_path / "found"
    folder.mkdir()
    find(paths, folder, RULES, serially)
    assert collected(folder, sizes)[0].tolist() == [KEPT, KEPT, NEAR, EXACT]
    assert examples(folder, 5) == [((1, 1), (0, 0))]
