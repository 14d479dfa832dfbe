"""Speed of the training stream beside the usual ways to read shards, and what an epoch is like; tables in Markdown.

    python benchmarks/streaming.py [--corpus DIR --tokenizer DIR] [--megabytes N] [--output FILE.md]

--corpus has folders */ with docs.jsonl.zst (objects with the field "text"), which `python -m data_pipeline build`
tokenizes; without it, documents of random ids have lengths like those of text. Rates are tokens a second of processor
time, one thread; a table is measured in turns in one process. Compare numbers of one run only.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from random_shards import random_shards  # noqa: E402

from data_pipeline.manifest import Manifest, Split, load_manifest  # noqa: E402
from data_pipeline.shards import map_shard, read_block  # noqa: E402
from train.config import Objective  # noqa: E402
from train.data.batch import Batch  # noqa: E402
from train.data.epochs import EpochWalk  # noqa: E402
from train.data.order import Cursor, Share, epoch_order  # noqa: E402
from train.data.packing import PackingRules, plan_rows  # noqa: E402
from train.data.reader import ShardReader  # noqa: E402
from train.data.remote import BlockStore  # noqa: E402
from train.data.stream import TrainStream  # noqa: E402
from train.model.documents import Documents  # noqa: E402
from train.objectives import masking, units  # noqa: E402

LENGTH, ROWS = 512, 64  # of a batch: 32,768 tokens
ROUNDS = 5
BATCHES = 40  # of a round, for readers that are not slow
SEED = 1
MEMMAP = "memmap of a flat file, random rows, no packing (no masks)"
SYNTHETIC_VOCABULARY = 21_128
ResultRow = tuple[object, ...]


def main() -> None:
    """Measure; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json or vocab.txt, for --corpus")
    parser.add_argument("--megabytes", type=float, default=60.0, help="of synthetic ids")
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.corpus:
            manifest = from_corpus(options.corpus, options.tokenizer, folder / "set")
        else:
            manifest = random_shards(folder / "set", round(options.megabytes * 1e6 / 2), SYNTHETIC_VOCABULARY)
        measures = (batches, planning, resuming, shuffling, waiting, memory, caching)
        tables = [machine(), described(manifest, options.corpus is not None)]
        tables += [measure(manifest, folder) for measure in measures]
    text = "\n\n".join(tables) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def machine() -> str:
    """Where and with what this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    packages = []
    for name in ("torch", "numpy", "webdataset", "transformers"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}; {', '.join(packages)}"


def from_corpus(corpus: Path, tokenizer: Path, folder: Path) -> Manifest:
    """The data set of all of the corpus, unfiltered."""
    files = sorted(map(str, corpus.glob("*/docs.jsonl.zst")))
    command = [sys.executable, "-m", "data_pipeline", "build", "--filters", "none", "--dedup", "none"]
    command += ["--tokenizer", str(tokenizer), "--output", str(folder), "--input", *files]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return load_manifest(folder)


def described(manifest: Manifest, real: bool) -> str:
    """The data set in a sentence."""
    split = manifest.splits["train"]
    blocks = sum(len(shard.blocks) for shard in split.shards)
    kind = "real text" if real else "synthetic documents"
    mean = split.tokens / split.documents
    return f"{kind}: {split.documents:,} documents, {split.tokens:,} tokens ({mean:,.0f} a document), {blocks} blocks"


def table(title: str, header: str, rows: list[ResultRow]) -> str:
    """A table in Markdown."""
    columns = header.count("|") + 1
    lines = [f"### {title}", f"| {header} |", "|" + "---|" * columns]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


Reader = Callable[[Manifest, Path], Iterator[int]]  # yields the tokens of each batch, for ever


def batches(manifest: Manifest, folder: Path) -> str:
    """Rows of 512 tokens to batches of 64 x 512; as many tokens of text as each batch really holds count."""
    rows_N512 = rows_of_text(manifest)
    rows_N512.tofile(folder / "flat.bin")
    readers: dict[str, tuple[Reader, int]] = {
        "memmap of a flat file, HF collator (masked)": (hf_memmap, 5),
        MEMMAP: (plain_memmap, BATCHES),
        "the same, without numpy's class for memmaps": (plain_array, BATCHES),
        "documents of that file in random order, rows across them, as Megatron joins them": (megatron, BATCHES),
        "ours: packed, documents apart (no masks)": (ours, BATCHES),
        "ours, and word starts (no masks)": (ours_with_words, BATCHES),
        "ours, and MLM masks on the processor (masked)": (ours_masked, BATCHES),
    }
    if importlib.util.find_spec("webdataset"):
        write_row_per_sample(rows_N512[:16_384], folder / "rows.tar")
        theirs: dict[str, tuple[Reader, int]] = {
            "webdataset, a row a sample, HF collator (masked)": (hf_webdataset, 5),
            "webdataset, a row a sample (no masks)": (plain_webdataset, BATCHES),
        }
        readers = theirs | readers
    rates = in_turns({name: (reader(manifest, folder), count) for name, (reader, count) in readers.items()})
    return table(
        "Rows to batches of 64 x 512",
        f"reader | Mtok/s a core, median | of {ROUNDS} rounds | x the first | x memmap, no packing",
        [rate_row(name, of_reader, next(iter(rates.values())), rates[MEMMAP]) for name, of_reader in rates.items()],
    )


def rate_row(name: str, rates: list[float], *bases: list[float]) -> ResultRow:
    """A reader's rates, and their ratios to each base round by round."""
    ratios = [statistics.median(rate / b for rate, b in zip(rates, base, strict=True)) for base in bases]
    spread = f"{min(rates) / 1e6:,.1f} to {max(rates) / 1e6:,.1f}"
    return name, f"{statistics.median(rates) / 1e6:,.1f}", spread, *(f"{ratio:,.2f}" for ratio in ratios)


def in_turns(readers: dict[str, tuple[Iterator[int], int]]) -> dict[str, list[float]]:
    """Tokens per processor second of each reader over a number of batches, ROUNDS times, the readers in turn."""
    for reader, _ in readers.values():
        next(reader)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, (reader, count) in readers.items():
            began = time.thread_time()
            tokens = sum(itertools.islice(reader, count))
            rates[name].append(tokens / (time.thread_time() - began))
    return rates


def rows_of_text(manifest: Manifest) -> np.ndarray:
    """uint16 [N, 512]: all of the text concatenated and cut, as most pipelines store it."""
    reader = ShardReader(manifest, "train")
    flat = np.concatenate([np.asarray(reader.block(number).ids_T, np.uint16) for number in range(reader.blocks)])
    return flat[: len(flat) // LENGTH * LENGTH].reshape(-1, LENGTH)


def write_row_per_sample(rows_N512: np.ndarray, path: Path) -> None:
    """The tar that the tutorials of webdataset make."""
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for number, row in enumerate(rows_N512):
            writer.write({"__key__": f"{number:09d}", "ids.npy": row})


def webdataset_rows(folder: Path) -> Iterator[np.ndarray]:
    """Rows in an order shuffled by a buffer, for ever."""
    import webdataset

    data = webdataset.WebDataset(str(folder / "rows.tar"), shardshuffle=False, empty_check=False).shuffle(1000).decode()
    while True:
        for sample in data:
            yield sample["ids.npy"]


def random_rows(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Random rows, for ever."""
    rng = np.random.default_rng(SEED)
    while True:
        for row in rng.integers(0, len(flat) // LENGTH, 4096).tolist():
            yield flat[row * LENGTH : (row + 1) * LENGTH]


def stacked(rows: Iterator[np.ndarray]) -> Iterator[int]:
    """Batches as stored."""
    while True:
        ids_MT = torch.from_numpy(np.stack(list(itertools.islice(rows, ROWS))))
        yield ids_MT.numel()


def collated(rows: Iterator[np.ndarray], manifest: Manifest) -> Iterator[int]:
    """Batches masked by the collator of transformers."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(manifest.tokenizer_folder))
    while True:
        batch = collate([{"input_ids": row.astype(np.int64).tolist()} for row in itertools.islice(rows, ROWS)])
        yield batch["input_ids"].numel()


def hf_webdataset(manifest: Manifest, folder: Path) -> Iterator[int]:
    """What most people run."""
    return collated(webdataset_rows(folder), manifest)


def plain_webdataset(manifest: Manifest, folder: Path) -> Iterator[int]:
    """Its reading alone."""
    return stacked(webdataset_rows(folder))


def hf_memmap(manifest: Manifest, folder: Path) -> Iterator[int]:
    """Fast reading, slow masks."""
    return collated(random_rows(np.memmap(folder / "flat.bin", np.uint16, "r")), manifest)


def plain_memmap(manifest: Manifest, folder: Path) -> Iterator[int]:
    """What small trainers do: rows begin and end anywhere in a document."""
    return stacked(random_rows(np.memmap(folder / "flat.bin", np.uint16, "r")))


def plain_array(manifest: Manifest, folder: Path) -> Iterator[int]:
    """The least that reading can cost; numpy's class for memmaps makes four fifths of the cost of `plain_memmap`."""
    return stacked(random_rows(np.asarray(np.memmap(folder / "flat.bin", np.uint16, "r"))))


def megatron(manifest: Manifest, folder: Path) -> Iterator[int]:
    """Rows of the concatenation of shuffled documents: an index says where each row begins, the row is joined from the
    documents it touches (the way of Megatron's GPTDataset, without the arrays that it makes of a row)."""
    view = memoryview(np.memmap(folder / "flat.bin", np.uint16, "r")).cast("B")
    first_D, length_D = stored_documents(manifest, len(view) // 2)
    rng = np.random.default_rng(SEED)
    order_D = rng.permutation(len(first_D))
    first_D, length_D = first_D[order_D], length_D[order_D]
    begin_N = np.arange(length_D.sum() // LENGTH) * LENGTH
    ends_D = np.cumsum(length_D)
    document_N = np.searchsorted(ends_D, begin_N, side="right")
    offset_N = begin_N - (ends_D - length_D)[document_N]
    return stacked(joined_rows(view, first_D, length_D, document_N, offset_N, rng))


def joined_rows(
    view: memoryview,
    first_D: np.ndarray,
    length_D: np.ndarray,
    document_N: np.ndarray,
    offset_N: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Rows in random order, for ever."""
    while True:
        for row in rng.integers(0, len(document_N), 4096).tolist():
            document, offset, parts, missing = int(document_N[row]), int(offset_N[row]), [], LENGTH
            while missing:
                count = min(missing, int(length_D[document]) - offset)
                parts.append(np.frombuffer(view, np.uint16, count, 2 * (int(first_D[document]) + offset)))
                document, offset, missing = document + 1, 0, missing - count
            yield np.concatenate(parts)


def stored_documents(manifest: Manifest, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(first token, length) of every document that lies wholly in the first `tokens` tokens."""
    lengths: list[int] = []
    for shard in manifest.splits["train"].shards:
        content = map_shard(manifest.directory / shard.name)
        for entry in shard.blocks:
            block = read_block(content[entry.offset : entry.offset + entry.bytes], entry.tokens, entry.documents)
            lengths += np.diff(block.offsets_D1.astype(np.int64)).tolist()
    length_D = np.array(lengths)
    first_D = np.cumsum(length_D) - length_D
    whole_D = first_D + length_D <= tokens
    return first_D[whole_D], length_D[whole_D]


def our_batches(manifest: Manifest, *, word_starts: bool = False) -> Iterator[Batch]:
    """What the thread of TrainStream does; an epoch passes first, so that checksums and pages are not counted."""
    plan = plan_rows(manifest, "train", PackingRules(LENGTH))
    walk = EpochWalk(manifest, "train", plan, SEED, word_starts=word_starts)
    for number in range(walk.reader.blocks):
        walk.reader.block(number)
    cursor, share = Cursor(0, 0), Share(0, 1, ROWS, ROWS)
    while True:
        yield from walk.batches(cursor, share)
        cursor = walk.advance(cursor, share)


def ours(manifest: Manifest, folder: Path) -> Iterator[int]:
    """Ids, bounds and places of packed documents; masks are the device's work."""
    return (batch.tokens for batch in our_batches(manifest))


def ours_with_words(manifest: Manifest, folder: Path) -> Iterator[int]:
    """As objectives need it that mask whole words."""
    return (batch.tokens for batch in our_batches(manifest, word_starts=True))


def ours_masked(manifest: Manifest, folder: Path) -> Iterator[int]:
    """With the masks that training makes on the device, made here."""
    settings, chance = Objective(), masking.Chance(SEED)
    ordinary_ids_V, mask_id = torch.arange(5, manifest.vocabulary_size), manifest.special_ids["mask"]
    for batch in our_batches(manifest):
        moved = batch.to("cpu")
        documents = Documents.of(moved.lengths_D, torch.device("cpu"))
        among_T = masking.ordinary(documents)
        select_T, fate_T, other_T = (
            chance.words(stream, moved, documents) for stream in (masking.SELECT, masking.FATE, masking.REPLACEMENT)
        )
        most_D = masking.exact_counts(documents.sums(among_T), settings.mask_ratio)
        draws = units.UnitDraws(select_T, select_T)
        chosen = units.choose("token", settings, draws, documents, among_T, None, most_D)
        hidden_T = masking.corrupt(moved.ids_T, fate_T, other_T, settings, mask_id, ordinary_ids_V)
        torch.where(chosen.flags_T, hidden_T, moved.ids_T)
        yield batch.tokens


def planning(manifest: Manifest, folder: Path) -> str:
    """How fast rows are planned from document lengths, and how full they are."""
    split = manifest.splits["train"]
    rows: list[ResultRow] = []
    for length in (128, 512):
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            plan = plan_rows(manifest, "train", PackingRules(length))
            times.append(time.perf_counter() - began)
        speed = split.tokens / statistics.median(times) / 1e6
        arrays = (plan.rows_B, plan.row_pieces_R1, plan.piece_start_P, plan.piece_length_P)
        size = sum(array.nbytes for array in arrays) / plan.rows
        alone = padding_of_lone_pieces(plan.piece_length_P, length)
        rows.append((length, f"{speed:,.0f}", f"{plan.padding_share:.3%}", f"{alone:.1%}", f"{size:.0f}"))
    header = "sequence length | planned, Mtok/s | padding | padding, one piece a row | bytes a row"
    return table("Packing plan", header, rows)


def padding_of_lone_pieces(length_P: np.ndarray, length: int) -> float:
    """Where each piece is a row of its own."""
    return float(1 - (length_P.astype(np.int64) + 2).sum() / (len(length_P) * length))


def repeated(manifest: Manifest, times: int) -> Manifest:
    """The data set with its blocks again and again: as many rows as are wanted, on a small disk."""
    split = manifest.splits["train"]
    return replace(manifest, splits={"train": Split.of(split.shards * times)})


def resuming(manifest: Manifest, folder: Path) -> str:
    """From the state of a checkpoint to the first batch, at 90 % of ten million rows."""
    rows_once = plan_rows(manifest, "train", PackingRules(LENGTH)).rows
    large = repeated(manifest, -(-10_000_000 // rows_once))
    plan = plan_rows(large, "train", PackingRules(LENGTH))
    share = Share(0, 8, ROWS, 8 * ROWS)
    rows: list[ResultRow] = []
    for percent in (0, 90):
        times = []
        for _ in range(ROUNDS):
            walk = EpochWalk(large, "train", plan, SEED)
            state = walk.state(Cursor(3, plan.rows * percent // 100))
            began = time.perf_counter()
            walk.batches(walk.resume(state), share)
            times.append(1e3 * (time.perf_counter() - began))
        size = len(json.dumps(state, sort_keys=True, separators=(",", ":")))
        rows.append((f"{percent} % of {plan.rows:,}", f"{statistics.median(times):.1f}", f"{max(times):.1f}", size))
    header = "position | ms to the first batch | slowest of 5 | bytes of state"
    return table("Going on in an epoch, blocks in the page cache", header, rows)


def shuffling(manifest: Manifest, folder: Path) -> str:
    """From how many blocks the 512 rows of a batch come."""
    rng, rows = np.random.default_rng(SEED), []
    for blocks in (20, 300, 5_000, 50_000):
        rows_B = rng.integers(900, 1_150, blocks)
        order, bounds_B1 = epoch_order(rows_B, SEED, 0), np.concatenate([[0], np.cumsum(rows_B)])
        starts = rng.integers(0, order.rows // 512, 50) * 512
        found = [distinct(order.rows_at(start + np.arange(512)), bounds_B1) for start in starts]
        full = [distinct(rng.integers(0, order.rows, 512), bounds_B1) for _ in starts]
        share = statistics.mean(found) / statistics.mean(full)
        means = [f"{statistics.mean(counts):.1f}" for counts in (found, full)]
        rows.append((f"{blocks:,}", f"{order.rows:,}", order.lanes, *means, f"{share:.1%}"))
    header = "blocks | rows | lanes | ours | full permutation | share"
    return table("Distinct blocks in a batch of 512 rows", header, rows)


def distinct(row_N: np.ndarray, bounds_B1: np.ndarray) -> int:
    """Blocks that the rows come from."""
    return len(np.unique(np.searchsorted(bounds_B1, row_N, side="right")))


def open_stream(manifest: Manifest) -> TrainStream:
    """A stream of batches of 64 x 512 at the beginning."""
    walk = EpochWalk(manifest, "train", plan_rows(manifest, "train", PackingRules(LENGTH)), SEED)
    return TrainStream(walk, Share(0, 1, ROWS, ROWS), Cursor(0, 0))


def waiting(manifest: Manifest, folder: Path) -> str:
    """What a step of training, here a pause, waits for its batch of 32,768 tokens."""
    rows: list[ResultRow] = []
    for pause in (2, 20):
        stream, times = open_stream(manifest), []
        for _ in range(300):
            time.sleep(pause / 1e3)
            began = time.perf_counter()
            next(stream)
            times.append(1e6 * (time.perf_counter() - began))
        stream.close()
        quantiles = statistics.quantiles(times[10:], n=100)
        rows.append((f"{pause} ms", f"{quantiles[49]:.0f}", f"{quantiles[98]:.0f}"))
    return table("Time of the main thread in next(), us", "a step takes | median | 99 of 100 are below", rows)


def memory(manifest: Manifest, folder: Path) -> str:
    """Memory that is this process's own, not pages of mapped files, as batches go by."""
    stream, rows = open_stream(manifest), []
    plan_rows_total = stream.walk.plans[0][2].rows
    epochs = max(2, -(-2_000 * ROWS // plan_rows_total))
    total = epochs * plan_rows_total // ROWS
    marks = {total * tenth // 10 for tenth in (1, 2, 4, 6, 8, 10)}
    for number, _ in zip(range(1, total + 1), stream, strict=False):
        if number in marks:
            rows.append((f"{number:,}", f"{number * ROWS / plan_rows_total:.1f}", f"{own_megabytes():,.1f}"))
    stream.close()
    return table("Memory", "batches | epochs | MB of this process's own", rows)


def own_megabytes() -> float:
    """RssAnon of Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def caching(manifest: Manifest, folder: Path) -> str:
    """Blocks of a remote data set, without a network: what the way through the cache costs."""
    entries = [(shard.name, entry) for shard in manifest.splits["train"].shards for entry in shard.blocks][:200]
    mean = statistics.mean(entry.bytes for _, entry in entries) / 1e6
    options = (f"file://{manifest.directory}", manifest, folder / "cache", 1 << 40)
    first, second = BlockStore(*options), BlockStore(*options)
    held: list[memoryview] = []
    rows: list[ResultRow] = []
    for name, store in (
        ("fetched from a file:// store, verified, stored", first),
        ("in the cache, verified: first time in a process", second),
        ("in the cache, opened again", second),
    ):
        held.clear()
        rows.append((name, microseconds(store, entries, held)))
    rows.append(("held", microseconds(second, entries, [])))
    held.clear()
    for store in (first, second):
        store.close()
    return table(f"A block of {mean:.1f} MB of a remote data set", "| us, median", rows)


def microseconds(store: BlockStore, entries: list[tuple[str, object]], held: list[memoryview]) -> str:
    """Median time of `get`, whose views go to `held`."""
    times = []
    for shard, entry in entries:
        began = time.perf_counter()
        held.append(store.get(shard, entry))
        times.append(1e6 * (time.perf_counter() - began))
    return f"{statistics.median(times):,.0f}"


if __name__ == "__main__":
    main()
