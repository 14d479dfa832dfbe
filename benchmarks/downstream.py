"""Is pretraining worth it? A small model for English and one for Chinese, pretrained, and then fine-tuned on real tasks
beside the same model with random weights and a simple baseline; a table in Markdown.

    python benchmarks/downstream.py DATA WORK [--languages en zh] [--steps 2000] [--seeds 1,2,3] [--threads 1]
                                    [--kinds classification ner similarity qa translation] [--output FILE.md]

DATA has pretrain/ and tasks/. Everything lands in WORK, and what is there is not done again, so that the same command
goes on. The languages are done beside each other, each on its own threads. Both models of a language have one
architecture, one tokenizer and one recipe of fine-tuning for each task. The tokenizer has 8,192 tokens: so small a
model spends its time on the encoder then, not on the vocabulary. Documents that share n-grams with a task are kept out
of the pretraining.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from downstream_baselines import baseline  # noqa: E402
from downstream_tasks import KINDS, PRETRAINING, files_to_keep_out, prepare_tasks, texts_for_the_vocabulary  # noqa: E402

SIZES = [
    "data.sequence_length=128",
    "model.encoder.hidden_size=128",
    "model.encoder.num_hidden_layers=4",
    "model.encoder.num_attention_heads=4",
    "model.encoder.intermediate_size=256",
    "model.encoder.max_position_embeddings=512",
    "model.encoder.initializer_range=0.05",  # 0.02 is for widths of several hundred
    "model.encoder.extra={local_attention: 32, global_attn_every_n_layers: 2, classifier_pooling: mean}",
    "model.gradient_checkpointing=false",
    "objective.mask_ratio=0.2",
    "batch.global_batch_size=32",
    "batch.micro_batch_size=32",
    "optimizer.learning_rate=3e-3",
    "schedule.name=linear",
    "schedule.warmup_steps=100",
    "engine.precision=bf16",
    "engine.ds_config=ds_configs/zero1.json",
    "validation.interval_steps=500",
    "validation.max_rows=256",
    "checkpoint.interval_steps=1000",
]
PRESET = "configs/modernbert-base.yaml"
LANGUAGES = ("en", "zh")


def main() -> None:
    """Pretrain, fine-tune, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--steps", type=int, default=2000, help="of pretraining: 4,096 tokens each")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of tasks")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with ThreadPoolExecutor() as beside:  # a translation needs the model of the other language as well
        list(beside.map(lambda language: pretrained(options, language), LANGUAGES))
        for language in LANGUAGES:
            randomly_initialised(options.work / language)
        text = "\n\n".join(beside.map(lambda language: table(options, language), options.languages)) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def run(*words: object) -> None:
    """A command of ours, to its end."""
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, check=True)


def pretrained(options: argparse.Namespace, language: str) -> None:
    """WORK/LANGUAGE/pretrained, an export."""
    data, folder = options.data, options.work / language
    tokenizer = folder / "tokenizer"
    inputs = [data / "pretrain" / name / "docs.jsonl.zst" for name in PRETRAINING[language]]
    if not (tokenizer / "tokenizer.json").exists():
        words = texts_for_the_vocabulary(data / "tasks", folder / "vocabulary", language)
        given = ["--input", *inputs, *words, "--txt-documents", "line", "--vocab-size", 8192]
        run("data_pipeline", "tokenizer", *given, "--output", tokenizer)
    if not (folder / "shards" / "manifest.json").exists():
        keep_out = files_to_keep_out(data / "tasks", folder / "keep-out", language)
        build = ["--input", *inputs, "--tokenizer", tokenizer, "--output", folder / "shards"]
        run("data_pipeline", "build", *build, "--validation-fraction", 0.01, "--decontaminate", *keep_out)
    if not (folder / "pretrained").exists():
        settings = [f"data.path={folder / 'shards'}", f"run.directory={folder / 'run'}", *SIZES]
        run("train", "pretrain", PRESET, *settings, f"run.steps={options.steps}")
        run("train", "export", folder / "run", "--output", folder / "pretrained")


def randomly_initialised(folder: Path) -> None:
    """FOLDER/random: architecture and tokenizer of FOLDER/pretrained, weights as they are before the first step."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    if (folder / "random").exists():
        return
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder / "pretrained", local_files_only=True)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "random")
    AutoTokenizer.from_pretrained(folder / "pretrained", local_files_only=True).save_pretrained(folder / "random")


def table(options: argparse.Namespace, language: str) -> str:
    """Both models and the baseline on every task of a language."""
    folder = options.work / language
    tasks = prepare_tasks(options.data / "tasks", folder / "tasks", language)
    tasks = {name: entry for name, entry in tasks.items() if entry["task"] in options.kinds}
    found = {kind: evaluated(options, language, kind, tasks) for kind in ("random", "pretrained")}
    newest = max((folder / "run" / "checkpoints").glob("step-*/state.json"))
    state = json.loads(newest.read_text())
    lines = [
        f"### {language}: {options.steps:,} steps of pretraining, {state['tokens_seen']:,} tokens",
        "",
        "| task | metric of the test set | baseline | random weights | pretrained | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in tasks.items():
        report = {kind: each["tasks"][name] for kind, each in found.items()}
        metric = "bleu" if entry["task"] == "translation" else report["random"]["decisive"]
        shown = {kind: each["metrics"]["test"][metric] for kind, each in report.items()}
        words, score = baseline(entry, folder / "tasks")
        unit = 100 if metric in ("accuracy", "entity_f1") else 1
        cells = [f"{unit * value['mean']:.3g} ± {unit * (value['deviation'] or 0):.2g}" for value in shown.values()]
        gain = unit * (shown["pretrained"]["mean"] - shown["random"]["mean"])
        lines.append(f"| {name} | {metric} | {unit * score:.3g} ({words}) | {cells[0]} | {cells[1]} | {gain:+.3g} |")
    return "\n".join(lines)


def evaluated(options: argparse.Namespace, language: str, kind: str, tasks: dict[str, dict]) -> dict:
    """The results of `evaluate` for one of the two models."""
    folder = options.work / language
    other = options.work / ("zh" if language == "en" else "en") / kind
    own = {
        name: entry | ({"target_model": str(other.resolve())} if entry["task"] == "translation" else {})
        for name, entry in tasks.items()
    }
    suite = folder / f"suite-{kind}.yaml"
    suite.write_text(yaml.safe_dump({"tasks": own}), encoding="utf-8")
    output = folder / f"evaluated-{kind}"
    words = ["--suite", suite, "--data", folder / "tasks", "--output", output, "--seeds", options.seeds]
    run("train", "evaluate", folder / kind, *words)
    return json.loads((output / "results.json").read_text())


if __name__ == "__main__":
    main()
