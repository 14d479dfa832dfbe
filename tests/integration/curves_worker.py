"""A rank of the test of loss curves: fifty updates under every ZeRO file, and by plain PyTorch in one process.

Run on every rank with a file for the results; many cases in one start, because starting costs seconds.
"""

import json
import sys
from pathlib import Path

import torch
import zero_worker
from zero_worker import FILES

from train import distributed
from train.config import Config

UPDATES = 50


def make_config(file: int | str, precision: str = "fp32", autocast: bool = False) -> Config:
    """Shallow, and with rates at which a wrong decay of either group would be seen in the loss."""
    values = zero_worker.make_config(file, precision, autocast).model_dump()
    values["objective"]["name"] = "mlm"
    values["model"]["encoder"]["num_hidden_layers"] = 1
    values["model"]["gradient_checkpointing"] = False
    values["optimizer"] |= {"learning_rate": 5e-3, "weight_decay": 0.5}
    return Config.model_validate(values)


def main(output: Path) -> None:
    """Write the largest distances from the reference as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    _, norms, losses, _ = zero_worker.plain(UPDATES, make_config(0))
    results: dict = {"world_size": ranks.world_size, "fall": losses[0] - losses[-1], "files": {}}
    for file in FILES:
        config = make_config(file)
        engine, _ = zero_worker.start(file, ranks, config=config)
        own = [zero_worker.step(engine, config, ranks, update) for update in range(UPDATES)]
        results["files"][file] = {
            "losses": max(abs(loss - other) for (_, loss), other in zip(own, losses, strict=True)),
            "norms": max(abs(norm - other) / other for (norm, _), other in zip(own, norms, strict=True)),
        }
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
