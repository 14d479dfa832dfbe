"""Every preset, made small, trained on real text for some minutes; a table in Markdown of what it learned.

    python benchmarks/presets.py DATA_SET [DATA_SET ...] [--minutes 3] [--at-once 2] [--rows 0] [--output FILE.md]

DATA_SET are folders that `python -m data_pipeline build` has written. A preset keeps its objective, its family and the
kind of its decoder; sizes, batch and learning rate are such that minutes on a core show something. `knows only` is the
entropy of the token frequencies: a head below it has learned from context. With --rows N the first rows of each preset
are printed as text, before and after masking.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LAST = 20  # steps at the end, whose mean is reported
SMALL = [
    "data.sequence_length=64",
    "model.encoder.max_position_embeddings=66",
    "model.encoder.hidden_size=128",
    "model.encoder.num_hidden_layers=2",
    "model.encoder.num_attention_heads=4",
    "model.encoder.intermediate_size=512",
    "model.encoder.hidden_dropout_prob=0.0",
    "model.encoder.initializer_range=0.05",  # 0.02 is for widths of several hundred
    "model.decoder.num_hidden_layers=1",
    *(f"model.decoder.{name}=null" for name in ("hidden_size", "num_attention_heads", "intermediate_size")),
    "model.gradient_checkpointing=false",
    "batch.global_batch_size=32",
    "batch.micro_batch_size=32",
    "run.steps=100000",
    "schedule.name=constant",
    "schedule.warmup_steps=30",
    "optimizer.learning_rate=2e-3",
    "engine.precision=fp32",
    "engine.ds_config=ds_configs/zero0.json",
    "validation.interval_steps=100000",
    "checkpoint.interval_steps=100000",
]


def main() -> None:
    """Train; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_sets", type=Path, nargs="+", metavar="DATA_SET")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--rows", type=int, default=0, help="rows to print before and after masking")
    parser.add_argument("--only", default="", help="presets whose name contains this")
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    options = parser.parse_args()
    presets = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if path.stem != "demo"]
    presets = [path for path in presets if options.only in path.stem]
    parts = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.at_once) as threads:
        for data_set in options.data_sets:
            for preset in presets if options.rows else []:
                print(shown(preset, data_set, options.rows), flush=True)
            runs = [(preset, data_set, Path(folder), options.minutes) for preset in presets]
            lines = [line for lines in threads.map(lambda run: trained(*run), runs) for line in lines]
            parts.append("\n".join([*title(data_set, options.minutes), *lines]))
            print(parts[-1], flush=True)
    if options.output:
        options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def title(data_set: Path, minutes: float) -> list[str]:
    """The data set and the head of its table."""
    from data_pipeline.manifest import load_manifest
    from train.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(load_manifest(data_set))
    return [
        f"### {data_set.name}: {vocabulary.size:,} tokens in the vocabulary, {minutes:g} minutes each",
        "",
        f"knows only how often each token occurs: {vocabulary.unigram_entropy:.2f} nats",
        "",
        "| preset | steps | tokens | head | first loss | last loss | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]


def train_command(preset: Path, data_set: Path, *more: str) -> list[str]:
    """The preset on this data set, small."""
    return [str(preset), f"data.path={data_set.resolve()}", *SMALL, *more]


def shown(preset: Path, data_set: Path, rows: int) -> str:
    """The first rows as people read them, above what the model sees of them."""
    given = train_command(preset, data_set)
    done = run("data-report", *given, "--rows", str(rows))
    if done.returncode:
        sys.exit(done.stderr)
    return f"#### {preset.stem}, {data_set.name}\n{done.stdout}"


def trained(preset: Path, data_set: Path, folder: Path, minutes: float) -> list[str]:
    """A line of the table for each head of the preset's objective."""
    directory = folder / f"{data_set.name}-{preset.stem}"
    given = train_command(preset, data_set, f"run.directory={directory}", f"run.max_minutes={minutes}")
    done = run("pretrain", *given)
    if done.returncode != 75:  # stopped by time
        sys.exit(f"{preset.stem}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    heads = [name.removesuffix("_targets") for name in records[0] if name.endswith("_targets")]
    start = f"| {preset.stem} | {len(records):,} | {records[-1]['tokens_seen']:,} |"
    lines = []
    for head in heads:
        last = {
            what: sum(record[f"{head}_{what}"] for record in records[-LAST:]) / LAST for what in ("loss", "accuracy")
        }
        numbers = f"{records[0][f'{head}_loss']:.2f} | {last['loss']:.2f} | {last['accuracy']:.1%} |"
        lines.append(f"{start} {head} | {numbers}")
    return lines


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """`python -m train` on one thread."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "train", *words]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
