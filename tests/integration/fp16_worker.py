"""A rank of the fp16 test: the same rows in fp32 and fp16, a scale that is too large at first, and going on.

Run on every rank with a file for the results. DeepSpeed refuses fp16 where a CPU has no instructions for it; torch
computes it all the same, slowly, so the check is set aside here.
"""

import json
import sys
from pathlib import Path

import torch
import zero_worker
from deepspeed.accelerator import get_accelerator
from zero_worker import shared, train

from train import distributed
from train.config import Config
from train.engine import MOMENTS

UPDATES = 12


def start(
    stage: int,
    precision: str,
    ranks: distributed.Ranks,
    power: int,
    weights: dict | None = None,
    config: Config | None = None,
) -> tuple:
    scaling = {"initial_scale_power": power, "hysteresis": 1, "loss_scale_window": 4}
    return zero_worker.start(stage, ranks, weights, precision=precision, fp16=scaling, config=config)


def moments(stage: int, precision: str, ranks: distributed.Ranks) -> tuple[list[float], list[float]]:
    """Norms of AdamW's first moment after each update without clipping, and the loss scales then."""
    values = zero_worker.make_config(stage, precision).model_dump()
    values["optimizer"]["gradient_clipping"] = 0.0
    config = Config.model_validate(values)
    engine, _ = start(stage, precision, ranks, power=10, config=config)
    norms, scales = [], []
    for update in range(UPDATES):
        train(engine, config, ranks, update, update + 1)
        tensors = shared(engine.state())["exp_avg"].values()
        norms.append(sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5)
        scales.append(engine.loss_scale.get("cur_scale", 1.0))
    return norms, scales


def far(tables: dict, reference: dict, before: dict) -> float:
    """Distance of two states of weights, as a share of how far training has moved them."""
    error = sum(float((tables["model"][n] - v).square().sum()) for n, v in reference["model"].items())
    moved = sum(float((v - before["model"][n]).square().sum()) for n, v in reference["model"].items())
    return (error / moved) ** 0.5


def overflow(ranks: distributed.Ranks, stage: int) -> dict:
    """From a scale that no gradient fits: which updates were applied, and with which scale."""
    engine, config = start(stage, "fp16", ranks, power=22)
    steps = []
    for update in range(UPDATES):
        before = engine.updates
        train(engine, config, ranks, update, update + 1)
        steps.append([engine.updates - before, int(engine.applied), engine.loss_scale["cur_scale"]])
    return {"steps": steps}


def resumed(ranks: distributed.Ranks, stage: int) -> bool:
    """Whether stopping in the middle changes a bit of the end, the scale and its counters included."""
    engine, config = start(stage, "fp16", ranks, power=10)
    train(engine, config, ranks, 0, 6)
    middle, scale, updates = shared(engine.state()), engine.loss_scale, engine.updates
    train(engine, config, ranks, 6, UPDATES)
    straight, end = shared(engine.state()), engine.loss_scale
    engine, config = start(stage, "fp16", ranks, power=16, weights=middle["model"])
    engine.load_state(middle, updates)
    engine.load_loss_scale(json.loads(json.dumps(scale)))
    train(engine, config, ranks, 6, UPDATES)
    again = shared(engine.state())
    equal = all(torch.equal(again[t][n], straight[t][n]) for t in ("model", *MOMENTS) for n in straight["model"])
    return equal and engine.loss_scale == end


def main(output: Path) -> None:
    """Write what was measured as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    refused = "nothing"
    if not get_accelerator().is_fp16_supported():
        try:
            start(1, "fp16", ranks, power=10)
        except distributed.UserError as error:
            refused = str(error)
    get_accelerator().is_fp16_supported = lambda: True
    engine, config = start(1, "fp32", ranks, power=10)
    before = shared(engine.state())
    norms = train(engine, config, ranks, 0, UPDATES)
    reference = shared(engine.state())
    results: dict = {"refused": refused, "stages": {}, "moments": moments(1, "fp32", ranks)[0]}
    for stage in (1, 2):
        engine, config = start(stage, "fp16", ranks, power=10)
        engine.measure_parts(True)
        own, squares = [], []
        for update in range(UPDATES):
            own += train(engine, config, ranks, update, update + 1)
            squares.append(sum(float(norm) ** 2 for norm in engine.gradient_parts.values()))
        tables = shared(engine.state())
        worst = max(abs(a - b) / b for a, b in zip(own, norms, strict=True))
        measured = {"far": far(tables, reference, before), "norms": worst, "same": resumed(ranks, stage)}
        measured |= {"own_norms": own, "norms_by_parts": [square**0.5 for square in squares]}
        measured["moments"], measured["scales"] = moments(stage, "fp16", ranks)
        results["stages"][stage] = measured | overflow(ranks, stage)
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
