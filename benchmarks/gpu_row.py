"""One row of gpu.py: a process that trains one model in one way, and says how fast.

    echo '{"rows": 64}' | python benchmarks/gpu_row.py ROW-AS-JSON FOLDER-OF-SHARDS

It imports first and reads its input then: the next row gets ready while one is measured. The last line it prints is a
JSON object. Ours is bf16 as DeepSpeed has it (plain_training.py), the Trainer's is autocast with weights in fp32.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from plain_training import bf16_update, open_stream, steps  # noqa: E402

from data_pipeline.manifest import Manifest, load_manifest  # noqa: E402
from train.config import Config  # noqa: E402
from train.config_file import load_config  # noqa: E402
from train.flops import training_flops  # noqa: E402
from train.model.encoder import encoder_config  # noqa: E402
from train.objectives import build_objective  # noqa: E402
from train.vocabulary import load_vocabulary  # noqa: E402

MOST_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """A preset of configs/, changed by some overrides, trained by us or by the Trainer."""

    name: str
    preset: str
    changes: list[str]
    kind: str  # ours, compiled or trainer
    first_rows: int = 16  # of the search for the best micro-batch
    seconds: float = 4.0  # of the measurement; of a step of the search a quarter
    search_seconds: float = 10.0


class Clock:
    """Lets a number of steps pass, then counts tokens until enough time is over."""

    def __init__(self, device: torch.device, warm_up: int, seconds: float) -> None:
        self.device, self.left, self.seconds, self.tokens = device, warm_up, seconds, 0

    def tick(self, tokens: int) -> bool:
        """After each step, with its tokens; whether it was the last."""
        self.left -= 1
        if self.left < 0:
            self.tokens += tokens
            if time.perf_counter() - self.began < self.seconds:
                return False
            _wait(self.device)
            self.elapsed = time.perf_counter() - self.began
            return True
        if self.left == 0:
            _wait(self.device)
            self.began = time.perf_counter()
        return False


Measured = dict[str, float]
Measure = Callable[[int, Clock], Measured]  # trains with so many rows until the clock says stop; what else was seen


def work(row: Row, manifest: Manifest, given: dict[str, int], device: torch.device) -> Measured:
    """Find the best micro-batch, unless it is given, and measure there."""
    config = load_config(ROOT / f"configs/{row.preset}.yaml", _changes(row))
    ready = {"ours": _ours, "compiled": _ours, "trainer": _trainer}[row.kind](row, config, manifest, device)
    rows = given.get("rows") or _search(row, ready, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(device, 3, row.seconds)
    seen = ready(rows, clock)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    return {"rows": rows, "speed": clock.tokens / clock.elapsed, "peak": peak, **seen}


def _changes(row: Row) -> list[str]:
    fixed = [
        "data.path=unused",
        "model.gradient_checkpointing=false",
        f"model.compile={str(row.kind == 'compiled').lower()}",
    ]
    return [*fixed, "data.sequence_length=512", *row.changes]


def _search(row: Row, measure: Measure, device: torch.device) -> int:
    """Double the rows while that is faster by 2 % and fits."""
    best, best_speed, rows, began = 0, 0.0, row.first_rows, time.perf_counter()
    while rows <= MOST_ROWS and time.perf_counter() - began < row.search_seconds:
        clock = Clock(device, 3, row.seconds / 4)
        try:
            measure(rows, clock)
        except torch.OutOfMemoryError:
            if not best:
                raise
            break
        speed = clock.tokens / clock.elapsed
        if speed < 1.02 * best_speed:
            break
        best, best_speed, rows = rows, speed, 2 * rows
    return best


def _ours(row: Row, config: Config, manifest: Manifest, device: torch.device) -> Measure:
    torch.manual_seed(0)
    vocabulary = load_vocabulary(manifest)
    objective = build_objective(config, vocabulary).to(device)
    update = bf16_update(objective, config)

    def measure(rows: int, clock: Clock) -> Measured:
        batch = config.batch.model_copy(update={"micro_batch_size": rows, "global_batch_size": rows})
        stream = open_stream(manifest, config.model_copy(update={"batch": batch}))
        counted: list[Any] = []
        try:
            for step in steps(objective, stream, update, device):
                if clock.left <= 0:  # the warm-up is over
                    counted.append(step)
                if clock.tick(step.tokens):
                    break
        finally:
            objective.zero_grad()
            stream.close()
        flops = sum(training_flops(config, vocabulary.size, step.lengths_D) for step in counted)
        waited = sum(step.waited for step in counted) / len(counted)
        return {"flops": flops / clock.elapsed, "waited": 1e3 * waited}

    return measure


def _trainer(row: Row, config: Config, manifest: Manifest, device: torch.device) -> Measure:
    import numpy as np
    from trainer_peer import GroupedRows, build_model, train

    torch.manual_seed(0)
    vocabulary = load_vocabulary(manifest)
    length = config.data.sequence_length
    texts = GroupedRows(manifest, length, 8_192)
    model = build_model(encoder_config(config.model, vocabulary.size, vocabulary.special_ids))
    of_row = training_flops(config, vocabulary.size, np.array([length]))
    places = {"bf16": True, "dataloader_num_workers": 8, "dataloader_persistent_workers": True}
    places = places if device.type == "cuda" else {"use_cpu": True, "dataloader_pin_memory": False}

    def measure(rows: int, clock: Clock) -> Measured:
        train(model, texts, manifest, rows, clock.tick, learning_rate=1e-4, **places)
        return {"flops": of_row * clock.tokens / length / clock.elapsed}

    return measure


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    given = json.loads(sys.stdin.read())
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(work(Row(**json.loads(sys.argv[1])), load_manifest(Path(sys.argv[2])), given, place)))
