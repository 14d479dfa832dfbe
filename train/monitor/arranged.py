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
    "seconds of a step and its parts": [
        "speed/step_seconds",
        "speed/data_wait_seconds",
        "speed/forward_seconds",
        "speed/backward_seconds",
        "speed/optimizer_seconds",
        "speed/checkpoint_seconds",
    ],
    "memory in GB: peak, reserved": ["memory/"],
}
_PROGRESS = {
    "tokens seen": ["progress/tokens_seen"],
    "epoch of each source": ["progress/epoch", "epoch/"],
    "mask rate: share of the tokens that each head predicts": ["masks/"],
    "padding: share of the rows' room that no token takes": ["data/padding_share"],
    "quarantined: damaged blocks, and rows of them": ["progress/damaged_blocks", "progress/damaged_rows"],
}
_HEALTH = {
    "goodput": ["goodput/goodput"],
    "seconds since the first start": ["goodput/.*_seconds_total"],
    "restarts: starts of the run, with the first": ["goodput/starts"],
    "skipped steps: updates left out": ["optimizer/skipped_updates"],
}


def first_page(heads: Sequence[str], *, is_scaled: bool, is_shared: bool) -> Summary:
    """The page of a run with these heads; `is_scaled`: fp16 scales the loss, `is_shared`: several ranks."""
    scale = {"loss scale": ["other/loss_scale"]} if is_scaled else {}
    compared = {"data and forward over the ranks, in seconds of a step": ["ranks/.*_seconds"]} if is_shared else {}
    page = {
        "Learning": _learning(heads, ""),
        "Optimizer": {
            "learning rate": ["optimizer/learning_rate"],
            "gradient norm": ["optimizer/grad_norm"],
            "gradient norm of each part": ["grad_norm/"],
            **scale,
        },
        "Speed": _SPEED | compared,
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
