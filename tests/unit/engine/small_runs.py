"""A run folder without a training: configuration, tokenizer, and checkpoints of chosen weights."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizerFast

from train.checkpoint import save_checkpoint
from train.config import Config
from train.config_file import dump_config
from train.objectives import build_objective
from train.vocabulary import Vocabulary

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(20))]
VOCABULARY = Vocabulary(
    size=len(TOKENS),
    special_ids={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    ordinary_ids=np.arange(5, len(TOKENS)),
    most_frequent_id=7,
    unigram_entropy=3.0,
)


def small_config(objective: str) -> Config:
    encoder = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder |= {"max_position_embeddings": 16, "hidden_dropout_prob": 0.0}
    settings = {"data": {"path": "shards", "sequence_length": 16}, "objective": {"name": objective}}
    return Config.model_validate(settings | {"model": {"encoder": encoder}})


def make_run(folder: Path, config: Config, steps: tuple[int, ...]) -> Path:
    """A run of `config` with a checkpoint for each step; the weights of each are drawn of its step."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "tokenizer")
    (folder / "config.yaml").write_text(dump_config(config))
    for step in steps:
        torch.manual_seed(step)
        weights = {name: p.detach() for name, p in build_objective(config, VOCABULARY).named_parameters()}
        state = {"tokens_seen": step * 1000, "data": {"data_identity": "0123", "epoch": 1}, "code": "commit abc"}
        save_checkpoint(folder / "checkpoints", step, {"model": weights}, state, len(steps))
    records = [{"step": s, "loss": float(s), "mlm_loss": float(s)} for s in range(1, max(steps) + 1)]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder
