"""The peer: masked language modelling as the example run_mlm.py of transformers does it, by the Trainer.

Texts are joined and cut into rows of one length, a collator draws the masks on the host, the model computes logits for
every token.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PretrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from data_pipeline.manifest import Manifest
from data_pipeline.shards import Block, read_block

MASK_RATIO = 0.15
Tick = Callable[[int], bool]  # takes the tokens of a step that was queued; whether that was the last one


class GroupedRows(Dataset):
    """Documents with [CLS] and [SEP] around each, joined and cut into rows: `group_texts` of the example."""

    def __init__(self, manifest: Manifest, length: int, most_rows: int) -> None:
        self._special = [manifest.special_ids["cls"], manifest.special_ids["sep"]]
        parts: list[np.ndarray] = []
        for block in _blocks(manifest):
            parts.append(_framed(block, *self._special))
            if sum(map(len, parts)) >= most_rows * length:
                break
        flat_T = np.concatenate(parts)
        self.rows_NT = flat_T[: len(flat_T) // length * length].reshape(-1, length)[:most_rows].copy()

    def __len__(self) -> int:
        return len(self.rows_NT)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        """What the tokenizer of the example returns for a row."""
        ids_T = self.rows_NT[number]
        return {
            "input_ids": ids_T.tolist(),
            "token_type_ids": [0] * len(ids_T),
            "attention_mask": [1] * len(ids_T),
            "special_tokens_mask": np.isin(ids_T, self._special).astype(int).tolist(),
        }


def _blocks(manifest: Manifest) -> Iterator[Block]:
    for shard in manifest.splits["train"].shards:
        content = memoryview((manifest.directory / shard.name).read_bytes())
        for entry in shard.blocks:
            yield read_block(content[entry.offset : entry.offset + entry.bytes], entry.tokens, entry.documents)


def _framed(block: Block, cls: int, sep: int) -> np.ndarray:
    """All documents of a block with [CLS] before and [SEP] behind each."""
    bounds = np.asarray(block.offsets_D1, np.int64)
    places = np.stack([bounds[:-1], bounds[1:]], 1).ravel()
    return np.insert(np.asarray(block.ids_T, np.uint16), places, np.tile([cls, sep], len(bounds) - 1))


def build_model(config: PretrainedConfig) -> PreTrainedModel:
    """Fresh weights in fp32, attention by scaled dot products."""
    return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def train(
    model: PreTrainedModel, rows: GroupedRows, manifest: Manifest, batch: int, tick: Tick, **arguments: Any
) -> None:
    """Train with `batch` rows a step until `tick` says that it is enough; `arguments` are those of the Trainer."""
    tokens = batch * rows.rows_NT.shape[1]

    class EndOfStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = tick(tokens)

    settings = {"max_steps": 1_000_000, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused"}
    settings |= {"save_strategy": "no", "report_to": [], "logging_strategy": "no", "disable_tqdm": True}
    settings |= {"output_dir": str(Path(manifest.directory) / "trainer"), "per_device_train_batch_size": batch}
    tokenizer = AutoTokenizer.from_pretrained(manifest.tokenizer_folder)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings | arguments),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATIO),
        callbacks=[EndOfStep()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
