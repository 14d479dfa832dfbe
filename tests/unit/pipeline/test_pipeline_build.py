"""The build: documents exactly as tokenizers gives them, the same bytes for any workers, whole or not at all."""

import gzip
import json
import os
import tarfile
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from data_pipeline.checks.verify import verify
from data_pipeline.dedup.duplicates import DuplicateRules
from data_pipeline.errors import DataError, UserError
from data_pipeline.filters import Filters
from data_pipeline.layout import Planner
from data_pipeline.manifest import load_manifest, load_token_counts

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"


def stored_documents(directory, split="train"):
    """The slow obvious reader: tarfile and numpy, document by document; [(ids, word starts)]."""
    documents = []
    for path in sorted(directory.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for key in sorted({name.split(".")[0] for name in members}):
            arrays = {}
            for part in ("ids", "offsets", "words"):
                content = members[f"{key}.{part}.npy"]
                header = int.from_bytes(content[8:10], "little") + 10
                arrays[part] = np.frombuffer(content[header:], {"ids": "<u2", "offsets": "<u4", "words": "u1"}[part])
            bits = np.unpackbits(arrays["words"], bitorder="little")
            for start, end in zip(arrays["offsets"][:-1], arrays["offsets"][1:], strict=True):
                documents.append((arrays["ids"][start:end].tolist(), bits[start:end].astype(bool).tolist()))
    return documents


def folder_bytes(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def shipped_tokenizer(directory):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_documents_are_tokenizers_own_ids_in_input_order(build_set, texts):
    """Reference: a plain loop of tokenizers.encode over the texts; a word starts where the token has no ##."""
    directory = build_set(texts)
    tokenizer = shipped_tokenizer(directory)
    encodings = [
        tokenizer.encode(unicodedata.normalize("NFC", text).strip(), add_special_tokens=False) for text in texts
    ]
    expected = [(e.ids, [not token.startswith("##") for token in e.tokens]) for e in encodings]
    assert stored_documents(directory) == expected
    counts = np.bincount(np.concatenate([ids for ids, _ in expected]), minlength=tokenizer.get_vocab_size())
    np.testing.assert_array_equal(load_token_counts(load_manifest(directory)), counts)
    assert verify(load_manifest(directory)) == []


def test_a_literal_mask_in_the_text_stays_text(build_set):
    """Reference: none of the special ids in the shards, and brackets around the word."""
    directory = build_set(["a [MASK] b [CLS][SEP] [PAD]"])
    [(ids, _)] = stored_documents(directory)
    manifest = load_manifest(directory)
    assert not set(ids) & {manifest.special_ids[name] for name in ("pad", "cls", "sep", "mask")}
    assert shipped_tokenizer(directory).decode(ids).replace(" ", "") == "a[mask]b[cls][sep][pad]"


def test_the_bytes_are_the_same_for_any_number_of_workers_and_any_run(build_set, vocab_txt):
    """Reference: the build of one worker; several units, blocks and shards, duplicates across units."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefgh中国\n"))
    texts = [" ".join(rng.choice(letters, 2000)) for _ in range(650)]
    texts += texts[:20]
    changes = {"validation_fraction": 0.1, "shard_blocks": 1}
    first = build_set(texts, name="set", **changes)
    manifest = load_manifest(first)
    assert len(manifest.splits["train"].shards) >= 3
    assert json.loads((first / "report.json").read_text())["documents_dropped"] == {"exact duplicate": 20}
    expected = folder_bytes(first)
    for workers in (2, 3):
        assert folder_bytes(build_set(texts, workers=workers, restart=True, **changes)) == expected
    assert verify(manifest) == []


def mixed_inputs(folder, texts):
    """Files of several kinds, some damaged, with duplicates across them; (source, path) of each."""
    folder.mkdir()
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines[700:700] = ["{", '{"txt": 1}']
    lines[20:20] = ["\\"]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[::-2]).encode()))
    (folder / "c.txt").write_text("\n\n".join(f"{text}\n{'the cat runs ' * 12}" for text in texts[:300]))
    (folder / "d.csv").write_text("id,text\n" + "".join(f'{i},"the {i}\ncat {i}"\n' for i in range(400)))
    for number in range(30):
        (folder / f"e{number:02d}.txt").write_text(f"mat {number}")
    return ("jsonl", folder / "a.jsonl"), ("other", folder / "[b-d]*"), ("small", folder / "e*.txt")


def test_the_bytes_do_not_depend_on_how_the_input_is_cut(tmp_path, build_set, texts):
    """Reference: everything in one range for each source; report and examples, with their lines, are the same too."""
    inputs = {"inputs": (), "named_inputs": mixed_inputs(tmp_path / "in", texts), "shard_blocks": 1}
    rules = {"duplicates": DuplicateRules(True, 0.5, True), "validation_fraction": 0.1, "filters": Filters()}
    whole = folder_bytes(build_set([], name="whole", span_bytes=10**9, **inputs, **rules))
    report = json.loads(whole["report.json"])
    assert [example["line"] for example in report["examples"]["not JSON"]] == [21, 702, 742]
    assert report["documents_dropped"]["near duplicate"] > 10
    assert report["repeated_paragraphs"] > 10
    del whole["build.json"]
    for span_bytes, workers in ((300, 1), (5_000, 3), (40_000, 2)):
        cut = folder_bytes(
            build_set([], name=f"cut{span_bytes}", workers=workers, span_bytes=span_bytes, **inputs, **rules)
        )
        del cut["build.json"]
        assert cut == whole


def test_a_split_never_changes_as_the_corpus_grows(build_set, texts):
    """Reference: the validation documents of the smaller corpus."""
    small = build_set(texts[:500], name="small", validation_fraction=0.2)
    large = build_set(texts[::-1], name="large", validation_fraction=0.2)
    for split in ("train", "validation"):
        of_small = {tuple(ids) for ids, _ in stored_documents(small, split)}
        of_large = {tuple(ids) for ids, _ in stored_documents(large, split)}
        assert of_small
        assert of_small < of_large


@pytest.mark.parametrize("ranges", [1, 2, 7])
def test_blocks_close_before_a_document_that_would_overflow_them(ranges):
    """Reference: the rule as a plain loop, however the documents are cut into ranges; one too large stands alone."""
    lengths = np.random.default_rng(ranges).choice([1, 5, 40, 60, 99, 100, 101, 700], 500)
    expected, size = [[]], 0
    for number, length in enumerate(lengths):
        if expected[-1] and size + length > 100:
            expected.append([])
            size = 0
        expected[-1].append(number)
        size += length
    planner, cuts = Planner("train", 3, 100), np.linspace(0, 500, ranges + 1).astype(int)
    plans = [
        plan
        for index, (start, stop) in enumerate(pairwise(cuts))
        for plan in planner.add(index, "text", lengths[start:stop])
    ]
    plans += planner.finish()
    blocks = [block for plan in plans for block in plan.blocks]
    found = [
        [int(cuts[piece.range]) + number for piece in block.pieces for number in range(piece.start, piece.stop)]
        for block in blocks
    ]
    assert found == expected
    assert [len(plan.blocks) for plan in plans[:-1]] == [3] * (len(plans) - 1)
    assert [plan.first_block for plan in plans] == [3 * number for number in range(len(plans))]
    assert plans[1].name == "train-000001.tar"


def test_a_vocabulary_above_65536_is_stored_in_uint32(tmp_path, build_set):
    """Reference: the ids themselves."""
    vocab = tmp_path / "large" / "vocab.txt"
    vocab.parent.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"{number:x}" for number in range(70_000))]
    vocab.write_text("\n".join(words), encoding="utf-8")
    directory = build_set(["0 1 1116f 1116f"], tokenizer=vocab)
    manifest = load_manifest(directory)
    assert np.dtype(manifest.token_dtype) == np.uint32
    assert verify(manifest) == []
    assert load_token_counts(manifest)[[5, 6, 70_004]].tolist() == [1, 1, 2]


def test_what_gives_no_document_is_counted_by_reason(tmp_path, build_set, write_jsonl):
    """Reference: the records written."""
    path = write_jsonl(tmp_path / "in.jsonl", ["cat", "  cat ", "the cat", "\x00", "\u200b", "c\x07at"])
    path.write_bytes(path.read_bytes() + b'{"txt": 1}\n\xff\n')
    directory = build_set([], inputs=(path, path))
    report = json.loads((directory / "report.json").read_text())
    per_pass = {"empty after cleaning": 1, "no tokens": 1, "no field 'text'": 1, "not UTF-8": 1}
    assert report["documents_dropped"] == {
        "exact duplicate": 6,
        **{reason: 2 * count for reason, count in per_pass.items()},
    }
    assert (report["documents_read"], report["documents_kept"], report["tokens"]) == (16, 2, 3)


def test_a_finished_set_is_recognised_and_another_refused(tmp_path, build_set, texts, run_cli, write_jsonl, vocab_txt):
    """Same settings: nothing is done, exit 0; other settings or inputs: exit 2 naming them, the folder untouched."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", texts[:30])
    command = ["build", "--input", corpus, "--tokenizer", vocab_txt, "--output", tmp_path / "set", "--workers", 1]
    assert run_cli(*command).returncode == 0
    before = folder_bytes(tmp_path / "set")
    again = run_cli(*command)
    assert (again.returncode, again.stderr) == (0, "")
    assert "complete already" in again.stdout
    other = run_cli(*command, "--shard-blocks", 3)
    assert other.returncode == 2
    assert "shard_blocks was 64, is now 3" in other.stderr
    assert "--restart" in other.stderr
    write_jsonl(corpus, texts[:31])
    changed = run_cli(*command)
    assert changed.returncode == 2
    assert "corpus.jsonl has" in changed.stderr
    assert folder_bytes(tmp_path / "set") == before
    assert run_cli(*command, "--restart").returncode == 0
    assert load_manifest(tmp_path / "set").splits["train"].documents == 31


def test_a_failing_build_keeps_what_is_done(tmp_path, build_set, texts):
    """With --strict a damaged second input stops the build; without, the same folder becomes the undisturbed build."""
    broken = tmp_path / "broken.json"
    broken.write_text("[")
    good = tmp_path / "set.jsonl"
    with pytest.raises(DataError, match=r"broken\.json"):
        build_set(texts, inputs=(good, broken), strict=True, span_bytes=20_000)
    with pytest.raises(UserError, match="an interrupted build"):
        load_manifest(tmp_path / "set")
    assert len(list((tmp_path / "set" / ".build" / "ranges").iterdir())) >= 2
    directory = build_set(texts, inputs=(good, broken), span_bytes=20_000)
    assert folder_bytes(directory) == folder_bytes(
        build_set(texts, name="other", inputs=(good, broken), span_bytes=20_000)
    )
    assert not (tmp_path / "set" / ".build").exists()


def test_another_request_for_a_begun_folder_is_refused(tmp_path, build_set, texts):
    """Each difference is named; --restart begins anew."""
    good, broken = tmp_path / "set.jsonl", tmp_path / "broken.json"
    broken.write_text("[")
    with pytest.raises(DataError):
        build_set(texts, inputs=(good, broken), strict=True)
    os.utime(good, ns=(1, 1))
    with pytest.raises(UserError, match=r"begun with .*set\.jsonl was modified since; .*--restart"):
        build_set(texts, inputs=(good, broken))
    with pytest.raises(UserError, match=r"validation_fraction was 0\.0, is now 0\.5"):
        build_set(texts, inputs=(good, broken), validation_fraction=0.5)
    with pytest.raises(UserError, match=r"broken\.json is gone"):
        build_set(texts, inputs=(good,))
    build_set(texts, inputs=(good,), restart=True)
    assert load_manifest(tmp_path / "set").splits["train"].documents == len(set(texts))


def test_a_full_disk_is_one_clear_line_and_what_is_done_stays(tmp_path, texts, run_cli, write_jsonl, vocab_txt):
    """The limit on the size of a file stands for the full disk; with more room the same command finishes the same."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", texts)
    options = ("--input", corpus, "--tokenizer", vocab_txt, "--workers", 1, "--output")
    done = run_cli("build", *options, tmp_path / "set", limit_file_bytes=30_000)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "000000-000000-end.safetensors: cannot write: File too large" in done.stderr
    assert not (tmp_path / "set" / "manifest.json").exists()
    assert not list((tmp_path / "set").rglob("*.partial"))
    for folder in ("set", "other"):
        assert run_cli("build", *options, tmp_path / folder).returncode == 0
    assert folder_bytes(tmp_path / "set") == folder_bytes(tmp_path / "other")


def test_a_foreign_folder_is_never_written_into(tmp_path, build_set, texts):
    """A file that no build makes protects its folder."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        build_set(texts)
    assert folder_bytes(tmp_path / "set") == {"thesis.tex": b"years of work"}


def damage(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def test_verify_names_every_wrong_thing(build_set, texts, run_cli, tmp_path):
    """One damage at a time in a sound copy; shard, block and reason are named, the exit code is 3."""
    sound = build_set(texts, shard_blocks=1, validation_fraction=0.1)
    before = folder_bytes(sound)
    shard = sound / "train-000000.tar"
    cases = {
        "block 000000000 at byte 0: damaged": lambda: damage(shard, 2000),
        "the checksum of the file": lambda: damage(shard, -1),
        "bytes, the manifest says": lambda: shard.write_bytes(shard.read_bytes()[:-5000]),
        "bytes too early": lambda: shard.write_bytes(shard.read_bytes()[:3000]),
        "train-000000.tar: cannot read": shard.unlink,
        "validation-000000.tar: cannot read": lambda: (sound / "validation-000000.tar").write_bytes(b""),
        "tokenizer.json: damaged": lambda: damage(sound / "tokenizer" / "tokenizer.json", 50),
        "token-counts.npy: damaged": lambda: damage(sound / "token-counts.npy", -1),
        "train-000007.tar: not in the manifest": lambda: (sound / "train-000007.tar").write_bytes(b"x"),
    }
    for reason, damage_it in cases.items():
        damage_it()
        assert any(reason in problem for problem in verify(load_manifest(sound))), reason
        (sound / "train-000007.tar").unlink(missing_ok=True)
        for name, content in before.items():
            (sound / name).write_bytes(content)
    assert verify(load_manifest(sound)) == []
    damage(shard, 2000)
    done = run_cli("verify", sound)
    assert done.returncode == 3
    assert str(shard) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("vocabulary", ["bert-base-uncased", "bert-base-chinese"])
def test_real_text_and_hostile_text_are_tokenizers_own_ids(build_set, vocabulary):
    """Reference: a plain loop of tokenizers.encode, on naughty strings and some real English and Chinese texts."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    import zstandard

    from data_pipeline.clean import clean

    naughty = json.loads((DATA / "hostile" / "naughty-strings" / "blns.json").read_text(encoding="utf-8"))
    real = []
    for name in ("en-peps", "zh-react-docs"):
        with zstandard.open(DATA / "pretrain" / name / "docs.jsonl.zst", "rt", encoding="utf-8") as lines:
            real += [json.loads(line)["text"] for _, line in zip(range(40), lines, strict=False)]
    texts = [*naughty, *real]
    directory = build_set(texts, tokenizer=DATA / "vocab" / vocabulary)
    tokenizer = Tokenizer.from_file(str(DATA / "vocab" / vocabulary / "tokenizer.json"))
    assert isinstance(tokenizer.model, models.WordPiece)
    tokenizer.encode_special_tokens = True
    cleaned = dict.fromkeys(text for text in map(clean, texts) if text)
    expected = [ids for ids in (tokenizer.encode(text, add_special_tokens=False).ids for text in cleaned) if ids]
    assert [ids for ids, _ in stored_documents(directory)] == expected
    report = json.loads((directory / "report.json").read_text())
    assert report["documents_read"] == len(texts)
    assert Counter(report["documents_dropped"]).total() == len(texts) - len(expected)


def test_sources_are_named_counted_and_never_share_a_block(tmp_path, build_set, write_jsonl, texts):
    """Reference: the two corpora written; the same bytes with two workers."""
    (tmp_path / "zh").mkdir()
    for number in range(2):
        (tmp_path / "zh" / f"{number}.txt").write_text("\n\n".join(f"中 国 {number} {i}" for i in range(50)))
    english = write_jsonl(tmp_path / "en.jsonl", texts[:100])
    inputs = {"inputs": (), "named_inputs": (("zh", tmp_path / "zh"), ("en", english), ("zh", english))}
    first = build_set([], name="one", **inputs)
    report = json.loads((first / "report.json").read_text())
    assert {name: source["documents_kept"] for name, source in report["sources"].items()} == {"zh": 200, "en": 0}
    assert report["sources"]["en"]["documents_dropped"] == {"exact duplicate": 100}
    second = build_set([], name="two", inputs=(english,), source="en", named_inputs=(("zh", tmp_path / "zh"),))
    with tarfile.open(second / "train-000000.tar") as tar:
        blocks = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    assert [(block["source"], block["documents"]) for block in blocks] == [("en", 100), ("zh", 100)]
    inputs = load_manifest(second).settings["inputs"]
    assert [(entry["name"], entry["source"]) for entry in inputs] == [
        ("en.jsonl", "en"),
        ("0.txt", "zh"),
        ("1.txt", "zh"),
    ]
    again = build_set([], name="3", inputs=(english,), source="en", named_inputs=(("zh", tmp_path / "zh"),), workers=2)
    assert folder_bytes(again) == folder_bytes(second)


def test_the_report_names_what_was_dropped_with_examples(tmp_path, run_cli, vocab_txt):
    """A folder with something of everything: exit 0, every reason with count and example, no raw control characters."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(b"the cat runs\n\n====!!!!\n\n\xff\n\nmat\x1b[31m the cat\n\n1234567\n\nab")
    (tmp_path / "in" / "b.jsonl").write_bytes(b"{\n" * 5)
    (tmp_path / "in" / "c.gz").write_bytes(b"")
    (tmp_path / "in" / "d.csv").write_bytes(b"")
    command = ["build", "--input", tmp_path / "in", "--tokenizer", vocab_txt, "--workers", 2, "--output"]
    done = run_cli(*command, tmp_path / "set")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "set" / "report.json").read_text())
    assert report["documents_dropped"] == {
        "filter digits": 1,
        "filter length": 1,
        "filter symbols": 1,
        "not JSON": 5,
        "not UTF-8": 1,
    }
    assert report["documents_changed"] == {"control characters": 1}
    assert report["files_skipped"] == {"empty": 1, "unknown kind": 1}
    assert {reason: len(examples) for reason, examples in report["examples"].items() if len(examples) != 1} == {
        "not JSON": 3
    }
    assert report["examples"]["filter symbols"] == [
        {"source": "text", "file": "a.txt", "line": 3, "text": "====!!!!", "measure": "100% symbols"}
    ]
    assert "filter digits (100% digits): a.txt:9: 1234567" in done.stdout
    assert "\x1b" not in done.stdout
    assert run_cli(*command, tmp_path / "all", "--filters", "none").returncode == 0
    assert load_manifest(tmp_path / "all").settings["filters"] == {"names": []}
    assert load_manifest(tmp_path / "all").splits["train"].documents == 5
    strict = run_cli(*command, tmp_path / "strict", "--strict")
    assert (strict.returncode, strict.stderr.count("\n")) == (3, 1)


def test_progress_is_lines_elsewhere_and_a_bar_on_a_terminal():
    """Reference: the numbers given; the time left is that of the mean rate."""
    import io

    from data_pipeline.progress import progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, every in ((io.StringIO(), 0.0), (Terminal(), 0.0), (io.StringIO(), 60.0)):
        with progress(4_000_000, stream=stream, every=every) as add:
            add(1_000_000, 10, 500_000)
            add(1_000_000, 10, 500_000)
        shown = stream.getvalue()
        if every:
            assert shown == ""
        else:
            assert "20 documents, 1.0 M tokens" in shown
        if not every and not stream.isatty():
            assert shown.splitlines()[1].startswith("build: 2.00 MB of 4.00 MB (50%), 20 documents")
            assert shown.endswith("0:00:00 left\n")
