"""What the report of the data says is what the stream gives: numbers and rows, counted and decoded the slow way."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from e2e_commands import ROOT, command, environment

from data_pipeline.manifest import load_manifest
from data_pipeline.shards import map_shard, read_block
from train.config import Config
from train.config_file import load_config
from train.data.order import FILLER_ROW, Share
from train.data.packing import plan_rows
from train.data.plan_cache import open_plan
from train.data.stream import TrainStream
from train.data_report import report
from train.training_data import SPLIT, local_folders, open_data_sets, open_walk, packing_rules


def steps_of(config: Config, micro: int) -> list:
    """The micro-batches of every step of the run, as one rank reads them."""
    sets = open_data_sets(config, local_folders(config))
    plan_of = lambda data_set, rules: plan_rows(data_set.manifest, SPLIT, rules)  # noqa: E731
    walk = open_walk(config, sets, plan_of, word_starts=True)
    sizes = {change.step: change.rows for change in config.batch.global_batch_size_at}
    stream = TrainStream(walk, Share(0, 1, micro, config.batch.global_batch_size), walk.start, sizes=sizes)
    try:
        return [batches for batches, _ in (step for _, step in zip(range(config.run.steps), stream, strict=False))]
    finally:
        stream.close()


def slow_lines(batch, shards: Path) -> list[list[str]]:
    """Of each row of a batch, its documents, token after token."""
    vocabulary = json.loads((shards / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    token_of = {number: token for token, number in vocabulary.items()}
    rows: dict[int, list[str]] = {}
    place = 0
    for length, row in zip(batch.lengths_D.tolist(), batch.row_ids_D.tolist(), strict=True):
        line = ""
        for number, starts in zip(batch.ids_T[place:][:length], batch.word_starts_T[place:][:length], strict=True):
            token = token_of[int(number)]
            line += f" {token}" if starts else f"·{token.removeprefix('##')}"
        rows.setdefault(row, []).append(line.strip())
        place += length
    return list(rows.values())


def shown_rows(lines: list[str]) -> list[list[str]]:
    """The documents printed below each `Row N` line, without what is seen of them."""
    first = next((n for n, line in enumerate(lines) if line.startswith("Row ")), len(lines))
    rows: list[list[str]] = []
    for line in lines[first:]:
        if line.startswith("Row "):
            rows.append([])
        elif not line.startswith("    seen: "):
            rows[-1].append(line.strip())
    return rows


def numbers(lines: list[str], pattern: str) -> list[tuple[float, ...]]:
    """The groups of `pattern` in every line that has it."""
    found = [re.search(pattern, line) for line in lines]
    return [tuple(float(group.replace(",", "")) for group in match.groups()) for match in found if match]


def test_the_command_prints_what_the_stream_gives_and_leaves_nothing_behind(tiny, shards, tmp_path):
    """Reference: the stream's first batch decoded token by token; counts over the shards and over every step."""
    before = sorted(path for path in shards.rglob("*"))
    changes = ["run.steps=300", f"run.directory={tmp_path}/run", f"data.cache={tmp_path}/cache"]
    done = command("train", "data-report", *tiny, *changes, "--rows", 6)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    config = load_config(ROOT / tiny[0], [*tiny[1:], *changes])
    steps = steps_of(config, micro=8)

    assert shown_rows(lines) == slow_lines(steps[0][0], shards)[:6]
    manifest = load_manifest(shards)
    plan = plan_rows(manifest, SPLIT, packing_rules(config))
    lengths = []
    for shard in manifest.splits[SPLIT].shards:
        for entry in shard.blocks:
            content = map_shard(shards / shard.name)[entry.offset : entry.offset + entry.bytes]
            lengths += np.diff(read_block(content, entry.tokens, entry.documents).offsets_D1).tolist()
    pieces = sum(-(-length // 62) for length in lengths)
    filled = sum(lengths) + 2 * pieces
    assert numbers(lines, r" has ([\d,]+) documents, ([\d,]+) tokens") == [(len(lengths), sum(lengths))]
    assert numbers(lines, r"64: ([\d,]+) rows an epoch with ([\d,]+) tokens") == [(plan.rows, filled)]
    padding = pytest.approx(100 * (1 - filled / (64 * plan.rows)), abs=0.006)
    assert numbers(lines, r"([\d.]+)% of their room is padding") == [(padding,)]
    cuts = r"([\d,]+) documents become ([\d,]+) pieces: ([\d,]+) cuts"
    assert numbers(lines, cuts) == [(len(lengths), pieces, pieces - len(lengths))]

    real = sum(batch.rows for (batch,) in steps)
    assert real < 300 * 8, "an epoch's last batch has fillers: the test would not tell rows from slots"
    tokens = pytest.approx(sum(batch.tokens for (batch,) in steps), rel=0.005)
    assert numbers(lines, r"In all 300 steps read ([\d,]+) rows, about ([\d,]+) tokens") == [(real, tokens)]
    assert numbers(lines, r"([\d.]+) epochs") == [(pytest.approx(real / plan.rows, abs=0.006),)]
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
    assert sorted(path for path in shards.rglob("*")) == before


def test_a_mixture_that_changes_gets_the_rows_that_its_stream_reads(tiny, shards):
    """Reference: the sources of all rows of all steps, by the numbers that the stream gives them."""
    sources = f"[{{name: a, path: {shards}, weight: 3}}, {{name: b, path: {shards}, weight: 1}}]"
    changes = [
        *("data.path=null", f"data.sources={sources}", "data.weights_at=[{step: 10, weights: [1, 2]}]"),
        *("data.sequence_length=32", "data.sequence_length_at=[{step: 20, length: 64}]"),
        *("batch.same_tokens_per_step=true", "batch.global_batch_size_at=[{step: 15, rows: 16}]", "run.steps=30"),
    ]
    config = load_config(ROOT / tiny[0], [*tiny[1:], *changes])
    lines = list(report(config, 8))
    steps, manifest = steps_of(config, micro=2), load_manifest(shards)
    legs = [(steps[0:10], 32, (75.0, 25.0)), (steps[10:15], 32, (33.33, 66.67))]
    legs += [(steps[15:20], 32, (33.33, 66.67)), (steps[20:30], 64, (33.33, 66.67))]
    of_source, tokens = [], []
    for part, length, _ in legs:
        rows = plan_rows(manifest, SPLIT, packing_rules(config, length)).rows
        read = [np.unique(batch.row_ids_D.numpy()) for step in part for batch in step]
        drawn = np.concatenate(read) % (1 << 40) >= rows
        of_source.append([np.count_nonzero(~drawn), np.count_nonzero(drawn)])
        tokens.append(sum(batch.tokens for step in part for batch in step))
    expected = [
        (asked[k], pytest.approx(100 * counts[k] / sum(counts), abs=0.006))
        for counts, (_, _, asked) in zip(of_source, legs, strict=True)
        for k in (0, 1)
    ]
    assert numbers(lines, r"asked ([\d.]+)% of the rows, gets ([\d.]+)%") == expected
    shape = r"Steps ([\d,]+) to ([\d,]+): ([\d,]+) rows of at most ([\d,]+) tokens a step"
    assert numbers(lines, shape) == [(0, 9, 8, 32), (10, 14, 8, 32), (15, 19, 16, 32), (20, 29, 8, 64)]
    in_all = numbers(lines, r"filled; ([\d,]+) rows, about ([\d,]+) tokens in all")
    close = (pytest.approx(count, rel=0.02) for count in tokens)
    assert in_all == [(sum(counts), count) for counts, count in zip(of_source, close, strict=True)]
    assert numbers(lines, r"Source .: ([\d,]+) rows \(") == [(n,) for n in np.sum(of_source, axis=0).tolist()]
    everything = [tuple(row) for batch in steps[0] for row in slow_lines(batch, shards)]
    assert sorted(tuple(row) for row in shown_rows(lines)) == sorted(everything)


def test_the_blocks_of_the_first_batch_are_counted_and_a_walk_that_stops_ends_early(tiny, many_blocks):
    """Reference: the block of each row of the stream's first batch, and the steps until the stream ends."""
    changes = [f"data.path={many_blocks}", "data.when_exhausted=stop", "run.steps=2000"]
    config = load_config(ROOT / tiny[0], [*tiny[1:], *changes])
    lines = list(report(config, 0))
    steps = steps_of(config, micro=8)
    plan = open_plan(load_manifest(many_blocks), SPLIT, packing_rules(config))
    block_of = np.repeat(np.arange(len(plan.rows_B)), plan.rows_B)
    (first,) = steps[0]
    distinct = len({int(block_of[row]) for row in first.row_ids_D.tolist() if row != FILLER_ROW})
    assert 1 < distinct < 8
    assert numbers(lines, r"has 8 rows from ([\d,]+) of ([\d,]+) blocks") == [(distinct, len(plan.rows_B))]
    assert numbers(lines, r"The data end after ([\d,]+) steps of 2,000") == [(len(steps),)]
    assert numbers(lines, r"In all [\d,]+ steps read ([\d,]+) rows") == [(plan.rows,)]
    assert not shown_rows(lines)


@pytest.fixture(scope="module")
def many_blocks(shards, tmp_path_factory) -> Path:
    """A data set of eight blocks: a block holds documents of one source."""
    folder = tmp_path_factory.mktemp("blocks")
    paragraphs = (shards.parent / "text.jsonl").read_text().splitlines(keepends=True)
    words = ["--tokenizer", shards.parent / "tokenizer", "--output", folder / "shards", "--workers", 1]
    for number in range(8):
        (folder / f"{number}.jsonl").write_text("".join(paragraphs[number::8]))
        words += ["--source", f"s{number}={folder / str(number)}.jsonl"]
    done = command("data_pipeline", "build", *words)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


def test_damage_is_counted_and_ends_with_exit_code_3_after_the_whole_report(tiny, many_blocks, tmp_path):
    """Reference: the manifest's blocks behind the byte at which the shard was cut off."""
    folder = Path(shutil.copytree(many_blocks, tmp_path / "shards"))
    (shard,) = load_manifest(folder).splits[SPLIT].shards
    with (folder / shard.name).open("r+b") as file:
        file.truncate(shard.blocks[6].offset + 100)
    done = command("train", "data-report", *tiny, f"data.path={folder}", "run.steps=100", "--rows", 0)
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    plan = plan_rows(load_manifest(folder), SPLIT, packing_rules(load_config(ROOT / tiny[0], tiny[1:])))
    lost = int(plan.rows_B[6] + plan.rows_B[7])
    assert numbers(lines, r"Damage: (\d) blocks cannot be read, so ([\d,]+) of ([\d,]+) rows") == [(2, lost, plan.rows)]
    assert lines[-1].startswith("Shuffle: ")
    assert done.stderr.count("\n") == 1 and shard.name in done.stderr and "block 000000006" in done.stderr
    assert "above data.max_damaged_share 0.001" in done.stderr


def test_a_damaged_row_that_is_shown_ends_with_exit_code_3(tiny, many_blocks, tmp_path):
    """Reference: a bit changed in every block, which no plan can see."""
    from train.errors import DataError

    folder = Path(shutil.copytree(many_blocks, tmp_path / "shards"))
    (shard,) = load_manifest(folder).splits[SPLIT].shards
    content = bytearray((folder / shard.name).read_bytes())
    for block in shard.blocks:
        content[block.offset + 2000] ^= 1
    (folder / shard.name).write_bytes(content)
    lines = []
    with pytest.raises(DataError, match=r"2 of the rows shown are damaged: .*the checksum is"):
        for line in report(load_config(ROOT / tiny[0], [*tiny[1:], f"data.path={folder}"]), 2):
            lines.append(line)
    assert sum("it lies in a damaged block" in line for line in lines) == 2


def test_mistakes_end_with_exit_code_2_and_neither_a_gpu_nor_deepspeed_is_asked_for(tiny):
    """Reference: what the interpreter has loaded after the report; the line on stderr."""
    program = (
        "import sys; from train.__main__ import main; code = main(sys.argv[1:]); import torch; "
        "print('deepspeed' in sys.modules, torch.cuda.is_available(), torch.distributed.is_initialized()); "
        "print('code', code, main([*sys.argv[1:], 'data.path=/nowhere']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "data-report", *tiny],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "False False False" in done.stdout
    assert done.stdout.splitlines()[-1] == "code 0 2", done.stdout[-300:]
    assert "/nowhere: no such folder" in done.stderr
