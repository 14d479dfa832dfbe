"""A rank of the test of probes: vectors, measures and predictions under ZeRO 0, 2 and 3, and whether they leave a trace
in the weights between two updates. Run on every rank with the folder of a run, its probes as JSON, and a file for the
results.
"""

import json
import sys
from pathlib import Path

import torch
from zero_worker import VOCABULARY, global_rows, joined, make_config, same, shared

from train import distributed
from train.config import Config
from train.ds_config import load_ds_config
from train.engine import Engine
from train.objectives import build_objective
from train.probes import in_run
from train.probes.in_run import RunProbes
from train.signals import StopRequest

in_run._BATCH_TOKENS = 64  # several batches, and not a multiple of the ranks


class StopsLater(StopRequest):
    """A request that comes while the second batch is under way."""

    asked = 0

    @property
    def reason(self) -> str | None:
        self.asked += 1
        return "SIGTERM" if self.asked > 2 else None

    @reason.setter
    def reason(self, _: str | None) -> None:
        pass


def start(config: Config, ranks: distributed.Ranks) -> Engine:
    ds_config = load_ds_config(config, ranks.world_size)
    if ds_config["zero_optimization"]["stage"] == 3:
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # every parameter is partitioned
    torch.manual_seed(0)
    return Engine(build_objective(config, VOCABULARY), config, ds_config, ranks)


def update(engine: Engine, number: int) -> None:
    """One update of rows that are the same on every rank."""
    batch = joined(global_rows(number)[:2])
    selection = engine.module.select(batch)
    engine.set_learning_rate(1e-2)
    engine.micro_step(batch, selection, torch.full((len(engine.module.heads),), 0.01), last=True)


def predict(engine: Engine) -> list[list[int]]:
    """The predictions of each head for rows that are the same on every rank."""
    batch = joined(global_rows(7))
    engine.eval()
    found = engine.predict(batch, engine.module.select(batch))
    engine.train()
    return [guesses_N.tolist() for guesses_N in found]


def case(stage: int, run: Path, sets: dict, ranks: distributed.Ranks) -> dict:
    settings = make_config(stage).model_dump()
    settings |= {"probes": sets | {"max_texts": 30}, "run": settings["run"] | {"directory": str(run)}}
    config = Config.model_validate(settings)
    probes = RunProbes(config, ranks)
    later = StopsLater if ranks.rank == ranks.world_size - 1 else StopRequest
    with_probes, without = start(config, ranks), start(config, ranks)
    vectors = probes.vectors(with_probes, StopRequest())
    first = probes.measure(with_probes, StopRequest())
    predicted = predict(with_probes)
    update(with_probes, 1)
    second = probes.measure(with_probes, StopRequest())
    cut_short = probes.measure(with_probes, later())
    modes = with_probes.module.training
    update(with_probes, 2)
    for number in (1, 2):
        update(without, number)
    return {
        "vectors": vectors.tolist() if ranks.rank == 0 else None,
        "first": first,
        "predicted": predicted,
        "second": second,
        "cut_short": ranks.gather(json.dumps(cut_short)),
        "trains_again": modes,
        "unchanged": same(shared(with_probes.state()), shared(without.state())),
    }


def main(run: Path, sets: dict, output: Path) -> None:
    torch.set_num_threads(1)
    ranks = distributed.start()
    results = {f"zero{stage}": case(stage, run, sets, ranks) for stage in ((0, 2, 3) if ranks.world_size > 1 else (0,))}
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))
