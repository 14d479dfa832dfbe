"""A rank of the optimizers' test: updates with given gradients under every ZeRO stage and file, written as JSON.

The model is linear in its weights, so that a gradient is what the batch says. Gradients are small multiples of 1/16:
their sums over ranks and micro-batches are exact in every precision, and only the optimizers are compared.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from optimizers_reference import Slow
from torch import nn

from train import distributed
from train.config import Config
from train.ds_config import load_ds_config
from train.engine import Engine

UPDATES, MIDDLE, ACCUMULATION, RATE, BETAS, EPS = 12, 5, 2, 0.01, (0.9, 0.95), 1e-6
SHAPES = {"a": (7, 5), "b": (13, 3), "large": (300, 70), "row": (2, 11), "zero": (6, 4), "idle": (5, 2)}
GROUPS = [
    {"parameters": "planes.row.*", "weight_decay": 0.5},
    {"parameters": "planes.[br]*.weight", "learning_rate_ratio": 0.25},
    {"parameters": "planes.a.*", "learning_rate_ratio": 2.0, "weight_decay": 0.0},
]
# name: (rate, decay), by hand; `planes.row.weight` matches two patterns
EXPECTED = {
    "planes.a.weight": (0.02, 0.0),
    "planes.a.bias": (0.02, 0.0),
    "planes.b.weight": (0.0025, 0.1),
    "planes.b.bias": (0.01, 0.0),
    "planes.large.weight": (0.01, 0.1),
    "planes.large.bias": (0.01, 0.0),
    "planes.row.weight": (0.01, 0.5),
    "planes.row.bias": (0.01, 0.5),
    "planes.zero.weight": (0.01, 0.1),
    "planes.zero.bias": (0.01, 0.0),
    "planes.idle.weight": (0.01, 0.1),
    "planes.idle.bias": (0.01, 0.0),
}
CASES = {  # file, precision, changes of zero_optimization
    "0": ("zero0", "fp32", {}),
    "1": ("zero1", "fp32", {}),
    "2": ("zero2", "fp32", {}),
    "3": ("zero3", "fp32", {}),
    "3 in sub-groups": ("zero3", "fp32", {"sub_group_size": 30}),
    "1 bf16": ("zero1", "bf16", {}),
    "1 offload": ("zero1-offload", "fp32", {}),
    "2 offload": ("zero2-offload", "fp32", {}),
    "3 offload parameters": ("zero3-offload-parameters", "fp32", {}),
}
STAGES = ("0", "1", "2", "3 in sub-groups")
MOVES = (("0", "3 in sub-groups"), ("3 in sub-groups", "2"), ("1", "0"))  # the state of the middle goes on elsewhere
# by ranks and optimizer: everything once, and what differs with the number of ranks
PLAN = {
    1: {"lamb": ((*STAGES[1:],), ()), "stable-adamw": (("3 in sub-groups",), ())},
    2: {"lamb": ((*CASES,), MOVES), "stable-adamw": ((*STAGES, "1 offload"), ())},
    4: {"lamb": (("2", "3 in sub-groups"), ()), "stable-adamw": (("1", "3 in sub-groups"), ())},
}
Tables = dict[str, dict[str, torch.Tensor]]


class Plane(nn.Module):
    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[0]))

    def forward(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (self.weight.float() * weight).sum() + (self.bias.float() * bias).sum()


class Linear(nn.Module):
    """The loss is the product of the weights and a batch of the same shapes."""

    encoder = SimpleNamespace(base_name="none")  # by which the engine tells the parts of a model apart

    def __init__(self, weights: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.planes = nn.ModuleDict({name: Plane(shape) for name, shape in SHAPES.items()})
        with torch.no_grad():
            self.planes["zero"].weight.zero_()
            self.planes["idle"].weight.zero_()
            for name, parameter in self.named_parameters():
                parameter.copy_((weights[name] if weights else parameter).bfloat16())  # exact in every precision

    def forward(self, gradients: dict[str, torch.Tensor], selection: None) -> tuple[torch.Tensor, torch.Tensor]:
        losses = [
            plane(gradients[f"planes.{name}.weight"], gradients[f"planes.{name}.bias"])
            for name, plane in self.planes.items()
        ]
        return torch.stack(losses).sum()[None], torch.zeros(1, 2)


def parts(update: int, count: int) -> list[dict[str, torch.Tensor]]:
    """The gradients of an update, in `count` parts; some updates are 16 times as large, and `idle` has none."""
    random, among = torch.Generator().manual_seed(update), torch.Generator().manual_seed(update)
    scale = 1.0 if update % 4 == 3 else 1 / 16
    divided: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, parameter in Linear().named_parameters():
        whole = torch.randint(-16, 17, parameter.shape, generator=random)
        given = torch.randint(-4, 5, (count - 1, *parameter.shape), generator=among)
        for part, own in zip(divided, [*given, whole - given.sum(0)], strict=True):
            part[name] = own * scale * ("idle" not in name)
    return divided


def total(update: int) -> dict[str, torch.Tensor]:
    return parts(update, 1)[0]


def reference(name: str, updates: int) -> dict[str, torch.Tensor]:
    """The weights after `updates`, by the slow loop over whole tensors."""
    slow = {key: Slow(parameter.detach()) for key, parameter in Linear().named_parameters()}
    for update in range(updates):
        gradients = total(update)
        for key, one in slow.items():
            rate, decay = EXPECTED[key]
            getattr(one, name.replace("-", "_"))(gradients[key], rate, decay, BETAS, EPS)
    return {key: one.x for key, one in slow.items()}


def start(name: str, case: str, ranks: distributed.Ranks, weights: dict[str, torch.Tensor] | None = None) -> Engine:
    file, precision, changes = CASES[case]
    config = Config.model_validate(
        {
            "run": {"steps": 100},
            "data": {"path": "nowhere"},
            "batch": {"global_batch_size": ACCUMULATION * ranks.world_size, "micro_batch_size": 1},
            "optimizer": {
                "name": name,
                "learning_rate": RATE,
                "betas": BETAS,
                "eps": EPS,
                "weight_decay": 0.1,
                "gradient_clipping": 0.0,
                "groups": GROUPS,
            },
            "schedule": {"warmup_steps": 2},
            "engine": {"ds_config": f"ds_configs/{file}.json", "precision": precision},
        }
    )
    ds_config = load_ds_config(config, ranks.world_size)
    ds_config["zero_optimization"] |= changes
    if file.startswith("zero3"):
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return Engine(Linear(weights), config, ds_config, ranks)


def train(engine: Engine, ranks: distributed.Ranks, batches: list[list[dict[str, torch.Tensor]]]) -> None:
    """One update for each of `batches`, whose parts are dealt to ranks and accumulation steps."""
    for divided in batches:
        engine.set_learning_rate(RATE)
        own = divided[ranks.rank * ACCUMULATION : (ranks.rank + 1) * ACCUMULATION]
        for number, gradients in enumerate(own, start=1):
            engine.micro_step(gradients, None, torch.ones(1), last=number == ACCUMULATION)


def shared(tables: Tables) -> Tables:
    """Rank 0's tables on every rank, as a checkpoint's files would be."""
    objects = [tables]
    torch.distributed.broadcast_object_list(objects, src=0)
    return objects[0]


def difference(tables: Tables, wanted: dict[str, torch.Tensor]) -> float:
    """Largest difference of a weight over the largest weight of its parameter."""
    if not tables["model"]:
        return 0.0
    errors = {
        key: float((tables["model"][key] - value).abs().max() / value.abs().max().clamp_min(1e-30))
        for key, value in wanted.items()
    }
    return max(errors.values())


def compare(name: str, ranks: distributed.Ranks) -> dict[str, float]:
    """The planned cases, and moves between them in the middle, against the slow loop."""
    cases, moves = PLAN[ranks.world_size][name]
    count = ACCUMULATION * ranks.world_size
    batches = [parts(update, count) for update in range(UPDATES)]
    wanted, found, middle = reference(name, UPDATES), {}, {}
    for case in cases:
        engine = start(name, case, ranks)
        train(engine, ranks, batches[:MIDDLE])
        middle[case] = engine.state()
        train(engine, ranks, batches[MIDDLE:])
        found[case] = difference(engine.state(), wanted)
    for source, target in moves:
        tables = shared(middle[source])
        engine = start(name, target, ranks, tables["model"])
        engine.load_state(tables, updates=MIDDLE)
        train(engine, ranks, batches[MIDDLE:])
        found[f"{source} -> {target}"] = difference(engine.state(), wanted)
    return found


def effective(case: str, ranks: distributed.Ranks) -> dict[str, list[tuple[float, float]]]:
    """(rate, decay) of every parameter as two updates of AdamW show them, with a state loaded in between.

    Element 0 has a gradient of 1 and begins at 0; element 1 has none and begins at 1: it only decays.
    """
    first = {key: torch.zeros_like(parameter) for key, parameter in Linear().named_parameters()}
    for value in first.values():
        value.view(-1)[1:] = 1
    part = {key: (1 - value) / (ACCUMULATION * ranks.world_size) for key, value in first.items()}
    batch = [part] * (ACCUMULATION * ranks.world_size)
    engine, seen = start("adamw", case, ranks, first), []
    for update in range(2):
        before = shared(engine.state())
        if update:
            engine = start("adamw", case, ranks, first)
            engine.load_state(before, updates=update)
        train(engine, ranks, [batch])
        seen.append((before["model"], shared(engine.state())["model"]))
    return {key: [_rate_and_decay(old[key], new[key]) for old, new in seen] for key in first}


def _rate_and_decay(old: torch.Tensor, new: torch.Tensor) -> tuple[float, float]:
    (moving, still), (moved, decayed) = old.flatten()[:2].tolist(), new.flatten()[:2].tolist()
    shrinking = 1 - decayed / still  # rate x decay
    rate = moving * (1 - shrinking) - moved
    return rate, shrinking / rate


def main(output: Path) -> None:
    """Write what was measured as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    results = {
        "world_size": ranks.world_size,
        "differences": {name: compare(name, ranks) for name in ("lamb", "stable-adamw")},
        "effective": {case: effective(case, ranks) for case in STAGES if ranks.world_size == 2},
    }
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
