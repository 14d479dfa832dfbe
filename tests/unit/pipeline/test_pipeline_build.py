"""The build: documents exactly as tokenizers gives them, the same bytes for any workers, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from data_pipeline.assemble import SplitWriter
from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import load_manifest, load_token_counts
from data_pipeline.output import LOCK_NAME
from data_pipeline.verify import verify

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


def test_a_split_never_changes_as_the_corpus_grows(build_set, texts):
    """Reference: the validation documents of the smaller corpus."""
    small = build_set(texts[:500], name="small", validation_fraction=0.2)
    large = build_set(texts[::-1], name="large", validation_fraction=0.2)
    for split in ("train", "validation"):
        of_small = {tuple(ids) for ids, _ in stored_documents(small, split)}
        of_large = {tuple(ids) for ids, _ in stored_documents(large, split)}
        assert of_small
        assert of_small < of_large


def test_blocks_close_before_a_document_that_would_overflow_them(tmp_path):
    """Reference: the rule written as a plain loop; a document larger than a block stands alone."""
    lengths = [300_000, 300_000, 200_000, 24_288, 1, 700_000, 5]
    writer = SplitWriter(tmp_path, "train", "text", 2, 10)
    for length in lengths:
        writer.add(np.ones(length, np.uint16), np.ones(length, bool))
    split = writer.finish()
    assert [[b.tokens for b in shard.blocks] for shard in split.shards] == [[300_000, 524_288], [1, 700_000], [5]]
    assert [shard.name for shard in split.shards] == [f"train-00000{number}.tar" for number in range(3)]
    assert (split.documents, split.tokens) == (7, sum(lengths))


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
    assert "inputs (new or changed: corpus.jsonl)" in changed.stderr
    assert folder_bytes(tmp_path / "set") == before
    assert run_cli(*command, "--restart").returncode == 0
    assert load_manifest(tmp_path / "set").splits["train"].documents == 31


def test_a_failing_build_leaves_only_the_lock(tmp_path, build_set, texts):
    """With --strict a damaged second input stops the build after documents of the first were written."""
    broken = tmp_path / "broken.json"
    broken.write_text("[")
    good = tmp_path / "set.jsonl"
    with pytest.raises(DataError, match=r"broken\.json"):
        build_set(texts, inputs=(good, broken), strict=True)
    assert [path.name for path in (tmp_path / "set").iterdir()] == [LOCK_NAME]


def test_a_full_disk_is_one_clear_line_and_leaves_no_partial_file(tmp_path, texts, run_cli, write_jsonl, vocab_txt):
    """The limit on the size of a file stands for the full disk: the system refuses in the middle of a shard."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", texts)
    options = ("--input", corpus, "--tokenizer", vocab_txt, "--output", tmp_path / "set", "--workers", 1)
    done = run_cli("build", *options, limit_file_bytes=30_000)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train-000000.tar: cannot write: File too large" in done.stderr
    assert [path.name for path in (tmp_path / "set").iterdir()] == [LOCK_NAME]


def test_a_foreign_folder_is_never_written_into(tmp_path, build_set, texts):
    """A file that no build makes protects its folder."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        build_set(texts)
    assert folder_bytes(tmp_path / "set") == {"thesis.tex": b"years of work"}


def start_build(tmp_path, texts, vocab_txt):
    """A build of two workers in the background, returned once it writes; its process."""
    corpus = tmp_path / "slow.jsonl"
    with corpus.open("w") as file:
        for number in range(60_000):
            file.write(json.dumps({"text": f"{number} {texts[number % len(texts)]}"}) + "\n")
    command = [sys.executable, "-m", "data_pipeline", "build", "--input", corpus, "--tokenizer", vocab_txt]
    command += ["--output", tmp_path / "slow", "--workers", "2"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    wait_until(lambda: (tmp_path / "slow" / "train-000000.tar.partial").exists())
    return process


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see child processes")


@needs_proc
def test_a_killed_build_leaves_no_worker_and_nothing_that_looks_complete(
    tmp_path, texts, vocab_txt, run_cli, write_jsonl
):
    """While it runs a second build is refused; after kill -9 the folder is no data set, and a build there works."""
    process = start_build(tmp_path, texts, vocab_txt)
    workers = children_of(process.pid)
    command = ["build", "--tokenizer", vocab_txt, "--output", tmp_path / "slow", "--workers", 1, "--input"]
    second = run_cli(*command, tmp_path / "slow.jsonl")
    process.kill()
    process.communicate()
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "another build is writing here" in second.stderr
    assert workers
    wait_until(lambda: not any(map(is_running, workers)), seconds=20)
    assert (tmp_path / "slow" / "train-000000.tar.partial").exists()
    with pytest.raises(UserError, match="no finished data set"):
        load_manifest(tmp_path / "slow")
    assert run_cli(*command, write_jsonl(tmp_path / "short.jsonl", texts[:10])).returncode == 0
    assert verify(load_manifest(tmp_path / "slow")) == []
    assert not list((tmp_path / "slow").glob("*.partial"))


def test_an_interrupted_build_says_so_and_cleans_up(tmp_path, texts, vocab_txt):
    """Ctrl-C: one line, exit 130, only the lock is left."""
    process = start_build(tmp_path, texts, vocab_txt)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert [path.name for path in (tmp_path / "slow").iterdir()] == [LOCK_NAME]


@needs_proc
def test_a_killed_worker_ends_the_build_with_one_line(tmp_path, texts, vocab_txt):
    """As the out-of-memory killer does it: exit 2, only the lock is left."""
    process = start_build(tmp_path, texts, vocab_txt)
    for worker in children_of(process.pid):
        if "resource_tracker" not in Path(f"/proc/{worker}/cmdline").read_text():
            os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (2, 1)
    assert "worker process was killed" in stderr
    assert [path.name for path in (tmp_path / "slow").iterdir()] == [LOCK_NAME]


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
        with progress(4_000_000, stream, every) as add:
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
