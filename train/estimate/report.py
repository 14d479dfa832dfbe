"""An estimate as people read it, and as machines do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from train.config import Config
from train.estimate.communication import seconds
from train.estimate.memory import CONTEXT, Memory
from train.estimate.plan import DAY, Choice, Cluster, Estimate, Speed, room
from train.monitor.progress import duration

_GB = 1e9


def lines(config: Config, cluster: Cluster, found: Estimate) -> Iterator[str]:
    """Sentences and tables."""
    yield from _head(config, cluster, found)
    yield ""
    yield from _memory(config, cluster, found)
    yield ""
    yield from _communication(config, cluster, found)
    yield ""
    yield from _time(config, cluster, found)
    yield ""
    yield "These are estimates; docs/performance.md says how they are made and what they leave out."


def as_json(cluster: Cluster, found: Estimate) -> dict[str, Any]:
    """The same numbers: bytes, seconds, operations."""
    return {
        "gpu": cluster.gpu.name,
        "gpus": cluster.gpus,
        "gpus_per_node": cluster.gpus_per_node,
        "network_gbit_per_node": cluster.network_gbit,
        "mfu": cluster.mfu,
        "vocabulary": found.text.vocabulary,
        "tokens_per_row": found.text.tokens_per_row,
        "parameters": found.parameters,
        "flops_per_token": found.flops_per_token,
        "usable_bytes": room(cluster),
        "ds_config": found.own.name,
        "suggested_micro_batch_size": found.suggested,
        "memory": [_choice_json(choice) for choice in found.choices],
        "communication_bytes_per_step": {
            name: {"reduced": sent.reduced, "gathered": sent.gathered} for name, sent in found.traffic.items()
        },
        "run": {"tokens": found.tokens, **_speed_json(found.speed), "kilowatt_hours": found.kilowatt_hours},
        "scaling": [_speed_json(speed) for speed in found.scaling if isinstance(speed, Speed)],
    }


def _choice_json(choice: Choice) -> dict[str, Any]:
    if choice.refused:
        return {"ds_config": choice.name, "refused": choice.refused}
    sides = (("recomputed", choice.recomputed, choice.most_recomputed), ("kept", choice.kept, choice.most_kept))
    return {"ds_config": choice.name} | {
        name: {**_parts(memory), "peak": memory.peak, "host": memory.host, "largest_micro_batch_size": most}
        for name, memory, most in sides
        if memory is not None
    }


def _parts(memory: Memory) -> dict[str, float]:
    return {name: getattr(memory, name) for name in ("weights", "gradients", "optimizer", "activations", "temporary")}


def _speed_json(speed: Speed) -> dict[str, Any]:
    return {
        "gpus": speed.gpus,
        "micro_batch_size": speed.micro_batch,
        "gradient_accumulation_steps": speed.accumulation,
        "arithmetic_seconds": speed.arithmetic,
        "communication_seconds": speed.communication,
        "communication_seconds_waited_for": speed.waits,
        "step_seconds": speed.step,
        "tokens_per_day": speed.tokens_per_day,
        "days": speed.days,
        "efficiency": speed.efficiency,
        "fits": speed.fits,
    }


def _head(config: Config, cluster: Cluster, found: Estimate) -> Iterator[str]:
    count = found.parameters
    parts = ", ".join(f"{name} {count[name] / 1e6:,.1f} M" for name in ("encoder", "decoder", "heads") if count[name])
    words = found.text.words.format(tokens=found.text.tokens_per_row)
    yield f"Model: {count['total'] / 1e6:,.1f} M parameters ({parts}), a vocabulary of {found.text.vocabulary:,}."
    yield f"Data: {words}."
    yield (
        f"Arithmetic: {found.flops_per_token / 1e9:,.2f} GFLOP a token, forward and backward, objective "
        f"{config.objective.name}; {found.tokens / 1e9:,.1f} billion tokens in {config.run.steps:,} steps."
    )
    peak = cluster.gpu.peak(config.engine.precision)
    nodes = (
        "1 node" if cluster.nodes == 1 else f"{cluster.nodes} nodes, {cluster.network_gbit:,.0f} Gbit/s between them"
    )
    yield (
        f"Devices: {cluster.gpus} x {cluster.gpu.name} on {nodes}; each {peak:,.0f} TFLOP/s in "
        f"{config.engine.precision}, {cluster.gpu.memory:,.0f} GB, "
        f"{cluster.gpu.link:,.0f} GB/s to its neighbours, {cluster.gpu.watts:,.0f} W."
    )


def _memory(config: Config, cluster: Cluster, found: Estimate) -> Iterator[str]:
    micro, again = config.batch.micro_batch_size, config.model.gradient_checkpointing
    yield (
        f"Memory of each device in GB (10^9 bytes), with micro-batches of {micro} rows; {room(cluster) / _GB:.1f} of "
        f"{cluster.gpu.memory:.0f} are for tensors ({CONTEXT / _GB} for CUDA and libraries, 4 % for fragments):"
    )
    head = ["ds_config", "weights", "gradients", "optimizer", "activations", "temporary", "peak", "fits", "most rows"]
    recomputed = [_row(choice, choice.recomputed, choice.most_recomputed, cluster) for choice in found.choices]
    kept = [_row(choice, choice.kept, choice.most_kept, cluster) for choice in found.choices]
    yield f"  with gradient checkpointing{' (this run)' if again else ''}"
    yield from table([*head, "host"], recomputed)
    yield f"  without{'' if again else ' (this run)'}"
    yield from table([*head, "host"], kept)
    for choice in found.choices:
        if choice.refused:
            yield f"  {choice.name} is not for this run: {choice.refused}"
    if found.suggested is None:
        yield f"Not one row fits under {found.own.name}: take one of the lines above in which it does."
    else:
        yield (
            f"Suggestion for {found.own.name}: batch.micro_batch_size={found.suggested}, the largest that fits and "
            f"divides the {config.batch.global_batch_size // cluster.gpus} rows of a device evenly."
        )


def _row(choice: Choice, memory: Memory | None, most: int, cluster: Cluster) -> list[str]:
    if memory is None:
        return [choice.name, *["-"] * 9]
    cells = [f"{value / _GB:.2f}" for value in _parts(memory).values()]
    fits = "yes" if memory.fits(cluster.gpu.memory * _GB) else "no"
    return [choice.name, *cells, f"{memory.peak / _GB:.2f}", fits, f"{most}", f"{memory.host / _GB:.2f}"]


def _communication(config: Config, cluster: Cluster, found: Estimate) -> Iterator[str]:
    yield (
        f"Communication: GB that each device sends in a step of {found.speed.accumulation} accumulation steps, and how "
        "long that takes:"
    )
    rows = []
    for name, sent in found.traffic.items():
        time, waits = seconds(sent, cluster.links, cluster.gpus, found.speed.arithmetic)
        cells = [f"{part / _GB:.2f}" for part in (sent.reduced, sent.gathered)]
        rows.append([name, *cells, f"{time:.3f} s", f"{waits:.3f} s"])
    yield from table(["ds_config", "gradients", "weights", "time", "the step waits"], rows)


def _time(config: Config, cluster: Cluster, found: Estimate) -> Iterator[str]:
    speed = found.speed
    yield (
        f"Time with {found.own.name} at an MFU of {cluster.mfu:.2f} for a device alone: a step takes "
        f"{speed.step:.3f} s ({speed.arithmetic:.3f} s arithmetic, {speed.waits:.3f} s waiting for communication), "
        f"{speed.tokens_per_day / 1e9:,.2f} billion tokens a day."
    )
    yield (
        f"The {config.run.steps:,} steps take {duration(speed.days * DAY)} and {found.kilowatt_hours:,.0f} kWh "
        f"(the cards at {cluster.gpu.watts:,.0f} W; hosts and cooling come on top)."
    )
    yield "The same run on other numbers of devices, at the same global batch:"
    head = ["devices", "micro-batch", "accumulation", "step", "of it waiting", "billion tokens a day", "the run"]
    yield from table([*head, "efficiency", "fits"], [_scaled(config, speed) for speed in found.scaling])


def _scaled(config: Config, speed: Speed | int) -> list[str]:
    if isinstance(speed, int):
        return [f"{speed}", "more devices than rows", *["-"] * 7]
    return [
        f"{speed.gpus}",
        f"{speed.micro_batch}",
        f"{speed.accumulation}",
        f"{speed.step:.3f} s",
        f"{speed.waits:.3f} s",
        f"{speed.tokens_per_day / 1e9:,.2f}",
        duration(speed.days * DAY),
        f"{speed.efficiency:.0%}",
        "yes" if speed.fits else "no",
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width, numbers to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
