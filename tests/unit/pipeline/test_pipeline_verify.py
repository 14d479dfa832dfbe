"""verify of a data set: every damage by name, bounded, the same for any number of processes."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_pipeline.__main__ import main
from data_pipeline.checks import verify as verify_module
from data_pipeline.checks.checking import SHOWN_PROBLEMS
from data_pipeline.checks.verify import verify
from data_pipeline.manifest import Split, write_manifest
from data_pipeline.shards import ShardWriter, encode_block

ROOT = Path(__file__).resolve().parents[3]
VOCABULARY = 300
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
BLOCKS = 30  # of a shard


def random_block(rng):
    """Arrays of a block of ordinary ids: ids, document bounds, word starts."""
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 40, 20))]).astype(np.uint32)
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.uint16)
    starts = rng.random(ids.size) < 0.6
    starts[offsets[:-1]] = True
    return ids, offsets, starts


def write_set(directory, blocks, change=None, counts_off=0):
    """A data set of `blocks` in shards of BLOCKS; change(number, *arrays) may spoil one before it is written."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    counts, shards, documents = np.zeros(VOCABULARY, np.int64), [], 0
    for first in range(0, len(blocks), BLOCKS):
        with ShardWriter(directory / f"train-{len(shards):06d}.tar") as shard:
            for number, arrays in enumerate(blocks[first : first + BLOCKS], first):
                ids, offsets, starts = change(number, *arrays) if change else arrays
                shard.write(encode_block(number, ids, offsets, starts, "text"), ids.size, offsets.size - 1)
                counts += np.bincount(ids, minlength=VOCABULARY)[:VOCABULARY]
                documents += offsets.size - 1
            shards.append(shard.finish())
    counts[7] += counts_off
    content = io.BytesIO()
    np.save(content, counts)
    (directory / "token-counts.npy").write_bytes(content.getvalue())
    return write_manifest(
        directory,
        token_dtype="uint16",  # noqa: S106
        vocabulary_size=VOCABULARY,
        special_ids=SPECIAL,
        tokenizer_checksum=xxhash.xxh3_128_hexdigest(b"{}"),
        settings={},
        splits={"train": Split(documents, sum(b.tokens for s in shards for b in s.blocks), tuple(shards))},
        token_counts_checksum=xxhash.xxh3_128_hexdigest(content.getvalue()),
    )


@pytest.fixture
def blocks():
    rng = np.random.default_rng(0)
    return [random_block(rng) for _ in range(2 * BLOCKS + 5)]


@pytest.fixture
def manifest(tmp_path, blocks):
    return write_set(tmp_path / "set", blocks)


@pytest.fixture
def small_pieces(monkeypatch):
    """Work is cut into pieces of a few blocks, and processes are started for little work."""
    monkeypatch.setattr(verify_module, "PIECE_BYTES", 20_000)
    monkeypatch.setattr(verify_module, "PROCESS_BYTES", 1)


def flip(path, position, bit=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(bytes(content))


def test_a_sound_set_has_no_problem_in_pieces_of_any_size(manifest, small_pieces):
    """Reference: the set as written; pieces cover every block once, in order."""
    assert verify(manifest) == []
    for shard in manifest.splits["train"].shards:
        pieces = list(verify_module._pieces(manifest.directory / shard.name, shard, 0))
        assert len(pieces) >= 2
        assert [block for piece in pieces for block in piece.blocks] == list(shard.blocks)
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_the_lines_are_the_same_for_any_number_of_processes(manifest, small_pieces):
    """Reference: what one process finds in damage of every kind."""
    first, second, third = (manifest.directory / f"train-{n:06d}.tar" for n in range(3))
    for position in range(1000, first.stat().st_size, 9_000):
        flip(first, position)
    second.write_bytes(second.read_bytes()[:50_000])
    third.unlink()
    expected = verify(manifest)
    assert len(expected) > 30
    for workers in (2, 3):
        assert verify(manifest, workers) == expected


def test_every_single_flipped_bit_is_named_with_its_block(manifest):
    """Reference: the manifest's own table of where each block lies; bits anywhere, headers and padding included."""
    rng = np.random.default_rng(1)
    shard = manifest.splits["train"].shards[2]
    path = manifest.directory / shard.name
    for position in rng.integers(0, shard.bytes, 60).tolist():
        bit = 1 << int(rng.integers(8))
        flip(path, position, bit)
        problems = verify(manifest)
        assert any("checksum of the file" in line for line in problems)
        blocks = [n for n, b in enumerate(shard.blocks, 2 * BLOCKS) if b.offset <= position < b.offset + b.bytes]
        place = f"block {blocks[0]:09d} at byte" if blocks else "no end-of-archive record"
        assert sum(place in line for line in problems) == 1
        assert len(problems) == 2
        flip(path, position, bit)
    assert verify(manifest) == []


def test_a_cut_anywhere_names_just_the_missing_blocks(manifest):
    """Reference: the blocks that end behind the cut."""
    shard = manifest.splits["train"].shards[2]
    path = manifest.directory / shard.name
    content = path.read_bytes()
    for size in [1, 511, *np.random.default_rng(2).integers(1, shard.bytes, 15).tolist()]:
        path.write_bytes(content[:size])
        missing = {n for n, b in enumerate(shard.blocks, 2 * BLOCKS) if b.offset + b.bytes > size}
        problems = verify(manifest)
        assert {int(line.split("block ")[1][:9]) for line in problems if "bytes too early" in line} == missing
        assert f"{size:,} bytes, the manifest says" in problems[0]


def test_the_symptom_says_what_stands_there_instead(manifest):
    """Two blocks of one size swapped; a tar header broken: the number found and the byte are named."""
    shard = manifest.splits["train"].shards[0]
    path = manifest.directory / shard.name
    content = path.read_bytes()
    same = {}
    first, second = next(
        (same[b.bytes], b) for b in shard.blocks if b.bytes in same or same.setdefault(b.bytes, b) != b
    )
    swapped = bytearray(content)
    for target, source in ((first, second), (second, first)):
        swapped[target.offset : target.offset + target.bytes] = content[source.offset : source.offset + source.bytes]
    path.write_bytes(swapped)
    numbers = [shard.blocks.index(first), shard.blocks.index(second)]
    lines = [line for line in verify(manifest) if "block 0" in line]
    assert [f"is numbered b'{number:09d}'" in line for number, line in zip(numbers[::-1], lines, strict=True)] == [
        True
    ] * 2
    path.write_bytes(content)
    flip(path, shard.blocks[4].offset + 150)  # the header's own checksum
    assert "block 000000004 at byte" in verify(manifest)[1]
    assert "byte 0 of the block: no tar header" in verify(manifest)[1]


def spoiled(part):
    """A change of block 3 that a checksum written afterwards does not show."""

    def change(number, ids, offsets, starts):
        ids, offsets, starts = ids.copy(), offsets.copy(), starts.copy()
        if number == 3 and part == "range":
            ids[5] = VOCABULARY
        elif number == 3 and part == "special":
            ids[5] = SPECIAL["sep"]
        elif number == 3 and part == "start":
            starts[offsets[7]] = False
        elif number == 3 and part == "bounds":
            offsets[7] = offsets[6]
        return ids, offsets, starts

    return change


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("range", f"id {VOCABULARY} is not below the vocabulary size {VOCABULARY}"),
        ("special", "the special token sep stands inside"),
        ("start", "a document does not start with the start of a word"),
        ("bounds", "document bounds do not rise"),
    ],
)
def test_content_that_was_wrong_before_its_checksum_is_found(tmp_path, blocks, part, words):
    """A writer's mistake: all checksums fit, and just the spoiled block is named."""
    [line] = verify(write_set(tmp_path / "spoiled", blocks, spoiled(part)))
    assert "block 000000003 at byte" in line
    assert line.endswith(words) or words in line


def test_counts_that_are_not_those_of_the_ids_are_found(tmp_path, blocks):
    """A token-counts file with its right checksum and one count too many."""
    [line] = verify(write_set(tmp_path / "spoiled", blocks, counts_off=1))
    assert "token-counts.npy: not the counts of the ids" in line


def test_problems_are_bounded_and_a_missing_shard_is_one_line(manifest, small_pieces):
    """SHOWN_PROBLEMS lines of blocks and one with the number of the others."""
    first, second = (manifest.directory / f"train-{n:06d}.tar" for n in range(2))
    content = bytearray(first.read_bytes())
    content[:-1024] = bytes(len(content) - 1024)
    first.write_bytes(content)
    second.unlink()
    second.mkdir()
    problems = verify(manifest)
    assert len(problems) == 1 + SHOWN_PROBLEMS + 1 + 1
    assert problems[-2] == f"{first}: and {BLOCKS - SHOWN_PROBLEMS} more problems"
    assert problems[-1] == f"{second}: cannot read: a folder"


def test_a_pipe_in_the_place_of_a_shard_does_not_wait(manifest):
    """A reader that opened it would hang."""
    path = manifest.directory / "train-000000.tar"
    path.unlink()
    os.mkfifo(path)
    assert verify(manifest) == [f"{path}: cannot read: not a plain file"]


def test_the_command_sums_up_and_counts(manifest, capsys):
    """The sentence at the end: shards, documents and tokens are the manifest's; no bar where there is no terminal."""
    assert main(["verify", str(manifest.directory), "--workers", "2"]) == 0
    out, err = capsys.readouterr()
    train = manifest.splits["train"]
    assert f"Data set {manifest.identity[:12]} in {manifest.directory} is whole: 3 shards, " in out
    assert f"{train.documents:,} documents, {train.tokens:,} tokens checked in " in out
    assert err == ""


@pytest.mark.parametrize("trace", [".build", ".lock", "train-000001.tar.partial"])
def test_a_build_that_has_not_finished_is_called_so(manifest, trace, capsys):
    """Whole shards lie there, but no manifest and a trace of the build."""
    (manifest.directory / "manifest.json").unlink()
    (manifest.directory / trace).mkdir()
    for command in ("verify", "inspect"):
        assert main([command, str(manifest.directory)]) == 2
        assert f"no manifest.json but {trace}, so a build that has not finished" in capsys.readouterr().err


def test_ctrl_c_ends_workers_in_the_middle_of_a_file(tmp_path):
    """An interrupt of the command alone, as `kill -INT` does: exit 130 at once, with minutes of work left."""
    for name in ("a.tar", "b.tar"):
        with (tmp_path / name).open("wb") as file:  # a hole of 1 TB: a header, then zeros without end
            info = tarfile.TarInfo("a.npz")
            info.size = 1 << 40
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(1 << 40)
    command = [sys.executable, "-m", "data_pipeline", "verify", tmp_path, "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(2)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert time.monotonic() - began < 3


def test_bytes_that_belong_to_no_block_are_named(manifest):
    """A manifest that leaves out a block in the middle: the place and the size of what no block covers."""
    train = manifest.splits["train"]
    shard = train.shards[0]
    spared = replace(shard, blocks=shard.blocks[:2] + shard.blocks[3:])
    problems = verify(replace(manifest, splits={"train": replace(train, shards=(spared,))}))
    place = f"block 000000002 at byte {shard.blocks[3].offset:,}"
    assert any(f"{place}: {shard.blocks[2].bytes:,} bytes before it belong to no block" in line for line in problems)
