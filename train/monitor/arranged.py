"""TensorBoard's first page ("Custom Scalars"): which curves stand together, and in which order.

A tag stands for every curve whose name begins like it, as a regular expression.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars

from train.monitor.tensorboard import BY_TOKENS

_SPEED = {
    "tokens/s": ["speed/tokens_per_second$", "speed/tokens_per_second_per_device$"],
    "TFLOP/s of each device": ["speed/tflops_per_second"],
    "MFU": ["speed/mfu"],
    "seconds of a step": ["speed/step_seconds", "speed/data_wait_seconds", "speed/checkpoint_seconds"],
    "memory in GB: peak, reserved": ["memory/"],
}
_PROGRESS = {
    "tokens seen": ["progress/tokens_seen"],
    "epoch of each source": ["progress/epoch"],
    "padding: share of the rows' room that no token takes": ["data/padding_share"],
    "damaged rows": ["progress/damaged_rows"],
}
_HEALTH = {
    "goodput": ["goodput/goodput"],
    "seconds since the first start": ["goodput/.*_seconds_total"],
    "starts of the run": ["goodput/starts"],
    "updates left out": ["optimizer/skipped_updates"],
}


def first_page(heads: Sequence[str], *, is_scaled: bool) -> Summary:
    """The page of a run whose objective has these heads; `is_scaled` where fp16 scales the loss."""
    scale = {"loss scale": ["other/loss_scale"]} if is_scaled else {}
    page = {
        "Learning": _learning(heads, ""),
        "Optimizer": {
            "learning rate": ["optimizer/learning_rate"],
            "gradient norm": ["optimizer/grad_norm"],
            **scale,
            "share of the tokens that is predicted": [".*_target_share"],
        },
        "Speed": _SPEED,
        "Data": _PROGRESS,
        "Health": _HEALTH,
        "Learning, by tokens seen": _learning(heads, BY_TOKENS),
    }
    charts = {part: {title: ["Multiline", tags] for title, tags in shown.items()} for part, shown in page.items()}
    return custom_scalars(charts)


def _learning(heads: Sequence[str], before: str) -> dict[str, list[str]]:
    """The sum that is minimised, then loss and accuracy of each head, in training and on held-out documents."""
    charts = {"loss": [f"{before}loss/total$", f"{before}loss/validation$"]}
    for kind in ("loss", "accuracy"):
        charts |= {
            f"{head}: {kind}": [f"{before}{kind}/{head}$", f"{before}{kind}/validation_{head}"] for head in heads
        }
    return charts
