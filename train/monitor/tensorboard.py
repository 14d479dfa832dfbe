"""RUN/tensorboard: the records of metrics.jsonl as curves, by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

_GROUPS = {
    "learning_rate": "optimizer/learning_rate",
    "grad_norm": "optimizer/grad_norm",
    "skipped_updates": "optimizer/skipped_updates",
    "tokens_per_second": "speed/tokens_per_second",
    "step_seconds": "speed/step_seconds",
    "data_wait_seconds": "speed/data_wait_seconds",
    "tokens_seen": "progress/tokens_seen",
    "epoch": "progress/epoch",
    "damaged_rows": "progress/damaged_rows",
    "goodput": "goodput/goodput",
}


class Curves:
    """Scalars of one run. A resumed run declares what lies beyond its step void, so that curves never overlap."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(_tag(name), value, int(record["step"]))

    def text(self, name: str, words: str) -> None:
        self._writer.add_text(name, words, 0)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    """Curves of one kind stand side by side: loss/mlm beside loss/validation_mlm."""
    if name in _GROUPS:
        return _GROUPS[name]
    if name.endswith("_seconds_total"):
        return f"goodput/{name}"
    what, _, kind = name.rpartition("_")
    return f"{kind}/{what or 'total'}" if kind in ("loss", "accuracy") else f"other/{name}"
