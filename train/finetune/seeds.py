"""The same fine-tuning with several seeds, one after the other, and the table over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from train.errors import UserError
from train.finetune import results
from train.finetune.settings import Settings
from train.finetune.training import finetune
from train.monitor.logs import log
from train.signals import StopRequest


def finetune_seeds(settings: Settings, seeds: Sequence[int], stop: StopRequest | None = None) -> dict[str, Any]:
    """Fine-tune into OUTPUT/seed-N for each seed; OUTPUT/results.json has every metric's mean and deviation.

    A seed that is done is only read, so that the same command goes on. Raises what `finetune` raises.
    """
    output = settings.output
    if output.exists() and (not output.is_dir() or any(not _ours(path.name) for path in output.iterdir())):
        raise UserError.agreed(f"{output}: already there, and not of a fine-tuning with --seeds; give another --output")
    found = {}
    for seed in seeds:
        found[seed] = finetune(replace(settings, seed=seed, output=output / f"seed-{seed}"), stop)
    report = {
        "task": settings.task,
        "seeds": list(seeds),
        "metrics": results.over_seeds(found),
        "decisive": found[seeds[0]]["decisive"],
        "model": found[seeds[0]]["model"],
        "data": found[seeds[0]]["data"],
    }
    if os.environ.get("RANK", "0") == "0":
        results.write_json(output / results.RESULTS, report)
    log.info("Mean ± deviation of seeds %s:", ", ".join(map(str, seeds)))
    return report


def _ours(name: str) -> bool:
    return name == results.RESULTS or name.startswith("seed-")
