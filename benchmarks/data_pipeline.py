"""Speed of the offline pipeline: tokenizing per core, floors, whole builds, size; prints a table in Markdown.

    python benchmarks/data_pipeline.py --corpus DIR --vocabularies DIR [--output FILE.md]

--corpus has folders en-*/ and zh-*/ with docs.jsonl.zst (objects with the field "text"), --vocabularies has
bert-base-uncased/ and bert-base-chinese/; what is absent is skipped. Rates are megabytes (10^6) of UTF-8 a second of
processor time. No tool sees a text twice; compare numbers of one run only. Takes about 5 minutes.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
LANGUAGES = {"English": ("en-", "bert-base-uncased"), "Chinese": ("zh-", "bert-base-chinese")}
ROUNDS = 3
WARM_UP = "Warm up. 预热。"


def main() -> None:
    """Measure what is there; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--vocabularies", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=2.0, help="of text, for each of 3 rounds and each language")
    parser.add_argument("--build-megabytes", type=float, default=40.0, help="of text in a build, or all there is")
    parser.add_argument("--scaling-megabytes", type=float, default=0, help="of text, built by 1 and 2 workers; 0: not")
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(*options.child)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tables = [machine()]
    for language, (prefix, vocabulary) in LANGUAGES.items():
        files = sorted(options.corpus.glob(f"{prefix}*/docs.jsonl.zst"))
        folder = options.vocabularies / vocabulary
        if not files or not folder.is_dir():
            print(f"{language}: no corpus or no vocabulary, skipped", file=sys.stderr)
            continue
        tables.append(tokenizing(language, files, folder, options.megabytes))
        tables.append(building(language, files, folder, options.build_megabytes))
    if options.scaling_megabytes:
        tables.append(scaling(options.corpus, options.vocabularies / "bert-base-chinese", options.scaling_megabytes))
    text = "\n\n".join(tables) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def machine() -> str:
    """Where and with what this was measured."""
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    packages = []
    for name in ("tokenizers", "tokie", "rjieba", "jieba", "rensa", "datasets", "webdataset", "transformers", "numpy"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}; {', '.join(packages)}"


def lines_of(files: list[Path]) -> Iterator[str]:
    """The JSON lines of the files, one of each in turn, so that every stretch is a mixture."""
    streams = [
        io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file.open("rb")), encoding="utf-8")
        for file in files
    ]
    while streams:
        for stream in list(streams):
            line = stream.readline()
            if line:
                yield line
            else:
                streams.remove(stream)


def slices(files: list[Path], count: int, size: float) -> list[list[str]]:
    """`count` lists of different texts of about `size` bytes each; parts of long texts have 200,000 characters."""
    found: list[list[str]] = [[]]
    filled = 0
    for line in lines_of(files):
        text = json.loads(line)["text"]
        parts = [text[start : start + 200_000] for start in range(0, len(text), 200_000)]
        found[-1] += parts
        filled += sum(len(part.encode()) for part in parts)
        if filled >= size:
            if len(found) == count:
                return found
            found.append([])
            filled = 0
    return [texts for texts in found if texts]


def seconds(function: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def tokenizing(language: str, files: list[Path], folder: Path, megabytes: float) -> str:
    """The table of tokenizers, segmentation and floors."""
    from data_pipeline.encode import TextEncoder
    from data_pipeline.tokenizer import load_tokenizer, open_tokenizer
    from data_pipeline.wordpiece import why_slow

    tokenizer_json = load_tokenizer(folder).tokenizer_json
    theirs = open_tokenizer(tokenizer_json)
    reason = why_slow(theirs)
    # One each: what one has met does not help another.
    ids_only, plain, segmented = (TextEncoder(tokenizer_json, name, not reason) for name in ("none", "none", "jieba"))

    def starts(encoder: TextEncoder, texts: list[str]) -> None:
        encoder.word_starts(texts, [encoder.ids(text) for text in texts])

    tools: dict[str, Callable[[list[str]], object]] = {
        "tokenizers.encode_batch": lambda texts: theirs.encode_batch(texts, add_special_tokens=False),
        "tokenizers.encode_batch_fast": lambda texts: theirs.encode_batch_fast(texts, add_special_tokens=False),
        "ours, ids": lambda texts: [ids_only.ids(text) for text in texts],
        "ours, ids and word starts by pieces": lambda texts: starts(plain, texts),
        "ours, ids and word starts, Chinese segmented": lambda texts: starts(segmented, texts),
    }
    rounds = slices(files, ROUNDS * len(tools) + 1, megabytes * 1e6 / len(tools))
    for tool in tools.values():
        tool([WARM_UP])
    times: dict[str, list[float]] = {name: [] for name in tools}
    for texts in rounds:
        size = sum(len(text.encode()) for text in texts) / 1e6
        for name, tool in tools.items():
            times[name].append(seconds(lambda tool=tool, texts=texts: tool(texts)) / size)
    base = times["tokenizers.encode_batch"]
    rows = [
        (name, 1 / statistics.median(of_tool), statistics.median(b / t for b, t in zip(base, of_tool, strict=True)))
        for name, of_tool in times.items()
    ]
    rows += floors(rounds, statistics.median(base))
    table = [
        f"### Tokenizing {language}, {folder.name}, one core{reason and f' ({reason})'}",
        "| | MB/s | x encode_batch |",
        "|---|---|---|",
    ]
    return "\n".join(table + [f"| {name} | {rate:,.1f} | {ratio:,.1f} |" for name, rate, ratio in rows])


def floors(rounds: list[list[str]], base: float) -> list[tuple[str, float, float]]:
    """What no tokenizer saves: parsing JSON, decompressing; megabytes of text a second."""
    texts = [text for of_round in rounds for text in of_round]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    size = sum(len(text.encode()) for text in texts) / 1e6
    packed = zstandard.ZstdCompressor().compress(b"\n".join(lines))
    parse = seconds(lambda: [json.loads(line) for line in lines]) / size
    unpack = seconds(lambda: zstandard.ZstdDecompressor().decompress(packed)) / size
    return [("floor: json.loads", 1 / parse, base / parse), ("floor: zstd", 1 / unpack, base / unpack)]


def building(language: str, files: list[Path], folder: Path, megabytes: float) -> str:
    """The table of whole builds, each in a process of its own after its imports and the start of its workers."""
    with tempfile.TemporaryDirectory() as name:
        texts = slices(files, 1, megabytes * 1e6)[0]
        one, several = Path(name) / "one", Path(name) / "several"
        write_files(one, texts, 1)
        write_files(several, texts, 8)
        results = {
            kind: child(kind, several if kind == SEVERAL else one, folder, Path(name) / f"set-{number}")
            for number, kind in enumerate(CHILDREN)
        }
    base = results[USUAL]
    size = sum(len(text.encode()) for text in texts) / 1e6
    rows = [f"### Building {language}: jsonl.zst to shards, {size:,.1f} MB of text in {len(texts):,} documents"]
    rows += ["| | CPU s | wall s | x datasets.map, CPU | bytes / raw token bytes |", "|---|---|---|---|---|"]
    for kind, result in results.items():
        rows.append(
            f"| {kind} | {result['cpu']:.2f} | {result['wall']:.2f} | {base['cpu'] / result['cpu']:.1f} | "
            f"{result['bytes'] / (2 * result['tokens']):.4f} |"
        )
    gains = [f"{results[SEGMENTED]['wall'] / results[kind]['wall']:.2f} x ({kind})" for kind in (SINGLE, SEVERAL)]
    return "\n".join([*rows, "", f"2 workers against 1, wall: {', '.join(gains)}."])


def scaling(corpus: Path, folder: Path, megabytes: float) -> str:
    """Whole commands with 1 and 2 workers on the whole corpus, repeated with another number in front of each text."""
    texts = slices(sorted(corpus.glob("*/docs.jsonl.zst")), 1, 1e12)[0]
    size = sum(len(text.encode()) for text in texts) / 1e6
    times = max(1, round(megabytes / size))
    rows = [
        f"### Workers: English and Chinese, {times * size:,.0f} MB of text, the whole command, no duplicates sought"
    ]
    rows += ["| | wall s | x 1 worker |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        repeated = [f"{number} {text}" for number in range(times) for text in texts]
        write_files(Path(name) / "one", repeated, 1)
        write_files(Path(name) / "eight", repeated, 8)
        base = 0.0
        for source, workers in (("one", 1), ("one", 2), ("eight", 2)):
            command = [sys.executable, "-m", "data_pipeline", "build", "--dedup", "none", "--workers", workers]
            command += [
                "--input",
                Path(name) / source,
                "--tokenizer",
                folder,
                "--output",
                Path(name) / "set",
                "--restart",
            ]
            start = time.perf_counter()
            root = Path(__file__).resolve().parents[1]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd=root)
            wall = time.perf_counter() - start
            base = base or wall
            rows.append(
                f"| {workers} workers, {source} file{'s' * (source != 'one')} | {wall:.1f} | {base / wall:.2f} |"
            )
    return "\n".join(rows)


def write_files(folder: Path, texts: list[str], count: int) -> None:
    """The texts in `count` files."""
    folder.mkdir()
    for number in range(count):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[number::count]]
        packed = zstandard.ZstdCompressor().compress("".join(lines).encode())
        (folder / f"docs-{number}.jsonl.zst").write_bytes(packed)


def child(kind: str, source: Path, folder: Path, output: Path) -> dict[str, float]:
    """What `run_child` measured in another process."""
    command = [sys.executable, __file__, "--corpus", ".", "--vocabularies", ".", "--child", kind]
    done = subprocess.run([*command, str(source), str(folder), str(output)], check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_child(kind: str, source: str, folder: str, output: str) -> None:
    """One build, measured after its imports, the start of its workers and a build of next to nothing."""
    with CHILDREN[kind]() as run, tempfile.TemporaryDirectory() as name:
        write_files(Path(name) / "little", [WARM_UP], 1)
        run(Path(name) / "little", Path(folder), Path(name) / "set")
        start, cpu = time.perf_counter(), cpu_seconds()
        tokens = run(Path(source), Path(folder), Path(output))
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    size = sum(path.stat().st_size for path in Path(output).glob("*.tar"))
    print(json.dumps({"wall": wall, "cpu": cpu, "tokens": tokens, "bytes": size}))


def cpu_seconds() -> float:
    """Of this process and all below it, running ones too."""
    mine = psutil.Process()
    seconds = [process.cpu_times() for process in (mine, *mine.children(recursive=True))]
    return sum(times.user + times.system for times in seconds) + sum(mine.cpu_times()[2:4])


@contextmanager
def ours(
    workers: int, segmenter: str, filters: str = "none", exact: bool = False, near: float | None = None
) -> Iterator[Callable[[Path, Path, Path], int]]:
    """A build of ours; what is not named is off."""
    from data_pipeline.build import BuildOptions, build
    from data_pipeline.dedup.duplicates import DuplicateRules
    from data_pipeline.filters import Filters, chosen
    from data_pipeline.manifest import load_manifest
    from data_pipeline.parallel import open_workers

    def run(source: Path, folder: Path, output: Path) -> int:
        options = BuildOptions(
            inputs=(source,),
            tokenizer=folder,
            output=output,
            text_field="text",
            validation_fraction=0.0,
            shard_blocks=64,
            source="text",
            restart=False,
            word_segmenter=segmenter,
            filters=Filters(names=chosen(filters)),
            duplicates=DuplicateRules(exact=exact, near_threshold=near),
        )
        build(options, opened)
        return load_manifest(output).splits["train"].tokens

    with open_workers(workers) as opened:
        if opened is None:
            raise SystemExit("not under mpiexec")
        list(opened.run(start_up, range(workers)))
        yield run


def start_up(_: int) -> None:
    """What a worker does once; the sleep leaves an item for each of them."""
    import data_pipeline.staging  # noqa: F401

    time.sleep(1)


@contextmanager
def usual() -> Iterator[Callable[[Path, Path, Path], int]]:
    """datasets.map(batched) and one .npy per document."""
    import datasets
    import webdataset
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()

    def run(source: Path, folder: Path, output: Path) -> int:
        output.mkdir()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        data = datasets.load_dataset(
            "json", data_files=str(source / "*.zst"), split="train", cache_dir=str(output / "cache")
        )

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            return {"ids": tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]}

        tokens = 0
        with webdataset.ShardWriter(str(output / "train-%06d.tar"), verbose=0) as writer:
            for number, row in enumerate(data.map(encode, batched=True, remove_columns=["text"])):
                ids = np.array(row["ids"], np.uint16)
                tokens += ids.size
                writer.write({"__key__": f"{number:09d}", "ids.npy": ids})
        return tokens

    yield run


USUAL = "datasets.map + ShardWriter"
SEGMENTED, SINGLE, SEVERAL = "ours, segmented", "the same, 2 workers, 1 file", "the same, 2 workers, 8 files"
CHILDREN: dict[str, Callable[[], AbstractContextManager[Callable[[Path, Path, Path], int]]]] = {
    USUAL: usual,
    "ours": lambda: ours(1, "none"),
    SEGMENTED: lambda: ours(1, "jieba"),
    SINGLE: lambda: ours(2, "jieba"),
    SEVERAL: lambda: ours(2, "jieba"),
    "ours, segmented, filters": lambda: ours(1, "jieba", filters="all"),
    "ours, segmented, exact duplicates": lambda: ours(1, "jieba", exact=True),
    "ours, segmented, exact and near duplicates": lambda: ours(1, "jieba", exact=True, near=0.5),
    "ours, all defaults": lambda: ours(1, "jieba", filters="all", exact=True),
}

if __name__ == "__main__":
    main()
