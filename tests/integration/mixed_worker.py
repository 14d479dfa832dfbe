"""A rank of the test of bf16, cast or by autocast, and of several sub groups at stage 3.

Run on every rank with a file for the results; many cases in one start, because starting costs seconds.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from curves_worker import make_config
from zero_worker import UPDATES, global_rows, joined, same, shared, start, train

from train import distributed
from train.config import Config
from train.ds_config import load_ds_config
from train.effective_settings import check_settings, group_settings
from train.engine import Engine

MICRO_BATCHES = 16
SMALL = {"sub_group_size": 1000}  # elements: several sub groups of the first parameter group
WRONG = {
    "gradient_clipping": 0.0,
    "gradient_accumulation_steps": 7,
    "bf16.enabled": True,
    "bf16.check_grad_overflow": False,
    "torch_autocast.enabled": True,
    "zero_optimization.reduce_bucket_size": 5,
    "zero_optimization.offload_optimizer": {"device": "cpu"},
}
CAST = (1, 2, 3, "1-offload", "2-offload", "3-offload-parameters")
AUTOCAST = (0, 1, 2, 3, "1-offload", "3-offload-parameters")
CASES = {
    **{f"bf16 {file}": (make_config(file, "bf16"), {}) for file in CAST},
    **{f"autocast {file}": (make_config(file, "bf16", autocast=True), {}) for file in AUTOCAST},
    "fp32 3, sub groups": (make_config(3), SMALL),
    "bf16 3-offload-parameters, sub groups": (make_config("3-offload-parameters", "bf16"), SMALL),
}


def far(tables: dict, reference: dict, before: dict) -> float:
    """Distance of two states of weights, as a share of how far training has moved them."""
    error = sum(float((tables["model"][n] - v).square().sum()) for n, v in reference["model"].items())
    moved = sum(float((v - before["model"][n]).square().sum()) for n, v in reference["model"].items())
    return (error / moved) ** 0.5


def disturbed(ranks: distributed.Ranks, config: Config, zero: dict) -> tuple[dict, dict, list[float], dict]:
    """Five updates with one of NaN before the fourth: the states there and at the end, norms, what NaN did."""
    engine, _ = start("", ranks, config=config, zero=zero)
    norms = train(engine, config, ranks, 0, 3)
    middle = shared(engine.state())
    train(engine, config, ranks, 3, 4, poison=3)
    nan = {"applied": engine.applied, "unchanged": same(shared(engine.state()), middle)}
    norms += train(engine, config, ranks, 3, UPDATES)
    return middle, shared(engine.state()), norms, nan | {"updates": engine.updates}


def resumed(ranks: distributed.Ranks, config: Config, zero: dict, middle: dict) -> Engine:
    """An engine that went on from the middle to the end and met no NaN."""
    engine, _ = start("", ranks, middle["model"], config=config, zero=zero)
    engine.load_state(middle, updates=3)
    train(engine, config, ranks, 3, UPDATES)
    return engine


def norm_of_equal(engine: Engine, config: Config, ranks: distributed.Ranks, parts: int) -> float:
    """Gradient norm of a step whose `parts` micro-batches are the same on all ranks: that of any one of them."""
    batch = joined(global_rows(0)[:2])
    selection = engine.module.select(batch)
    counts_H = torch.from_numpy(engine.module.target_counts(selection))
    engine.set_learning_rate(0.0)
    for part in range(parts):
        engine.micro_step(batch, selection, 1.0 / (counts_H * parts * ranks.world_size), last=part == parts - 1)
    return float(engine.gradient_norm)


def unnoticed(engine: Engine, ds_config: dict) -> list[str]:
    """Which settings could differ from what DeepSpeed uses without a word; "nothing" stands for none of them."""
    optimizer, groups = engine._engine.basic_optimizer, group_settings(engine._engine.optimizer.param_groups)
    wrong: dict[str, tuple[dict, list[dict]]] = {"nothing": (ds_config, groups)}
    for key, value in WRONG.items():
        section, _, name = key.rpartition(".")
        changed = {section: {**ds_config[section], name: value}} if section else {name: value}
        wrong[key] = ds_config | changed, groups
    wrong["decay of the second group"] = ds_config, [groups[0], groups[1] | {"weight_decay": 0.3}]
    passed = []
    for key, (given, given_groups) in wrong.items():
        with contextlib.suppress(RuntimeError):
            check_settings(engine._engine, given, optimizer, given_groups, engine._masters())
            passed.append(key)
    return passed


def main(output: Path) -> None:
    """Write what was measured as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    engine, config = start("", ranks, config=make_config(1))
    before = shared(engine.state())
    norms = train(engine, config, ranks, 0, UPDATES)
    reference = shared(engine.state())
    results: dict = {"unnoticed": unnoticed(engine, load_ds_config(config, ranks.world_size))}
    for case, (config, zero) in CASES.items():
        middle, end, own, nan = disturbed(ranks, config, zero)
        engine = resumed(ranks, config, zero, middle)
        same_end = same(shared(engine.state()), end)
        one, many = (norm_of_equal(engine, config, ranks, parts) for parts in (1, MICRO_BATCHES))
        results[case] = nan | {
            "far": far(end, reference, before),
            "norms": max(abs(a - b) / b for a, b in zip(own, norms, strict=True)),
            "same": same_end,
            "sums": abs(many - one) / one,
            "shares": len(list(engine._masters())),
        }
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
