"""One rank of a few: plays the agreements of train/distributed.py and prints what it saw as one line of JSON."""

import json
import os
import sys

import torch

from train import distributed
from train.distributed import on_first_rank, together
from train.errors import BertmaeError, CheckpointError, DataError, UserError
from train.monitor.recorder import summed


def fail(error):
    raise error


def caught(action):
    """Class, exit code, `everywhere` and text of the expected error of `action`."""
    try:
        action()
    except BertmaeError as error:
        return [type(error).__name__, error.exit_code, error.everywhere, str(error)]
    return None


def play(ranks):
    """What this rank saw of each agreement, by name."""
    rank, last = ranks.rank, ranks.world_size - 1
    seen = {
        "sum": ranks.sum([rank, 1, 2**40 * rank, -rank]),
        "together": together(ranks, lambda: f"of rank {rank}"),
        "first": on_first_rank(ranks, lambda: {"中文": [rank, None, 0.1 + 0.2, "x" * 70_000], "rank": rank}),
        "nothing": on_first_rank(ranks, lambda: None),
        "one fails": caught(
            lambda: together(ranks, lambda: fail(DataError(f"shard 中 of {rank}")) if rank == last else 1)
        ),
        "all fail": caught(lambda: together(ranks, lambda: fail(UserError(f"seen by {rank}")))),
        "two fail": caught(
            lambda: together(
                ranks, lambda: fail([UserError, CheckpointError, DataError][rank](f"{rank}")) if rank else 1
            )
        ),
        "first fails": caught(lambda: on_first_rank(ranks, lambda: fail(CheckpointError("no room")))),
        "base": caught(lambda: together(ranks, lambda: fail(BertmaeError("plain")) if rank == 0 else 1)),
    }
    ranks.barrier()
    # 2**53 + 1 is lost in fp64, 1/3 in fp32: the sum is that of fp64, whatever the ranks hold.
    sums = (torch.tensor([1 / 3 + rank], dtype=torch.float64), torch.tensor([[rank, 2]]))
    seen["summed"] = summed([sums, sums], ranks)
    seen["after"] = ranks.sum([1])
    return seen


def main():
    ranks = distributed.start()
    result = {"world_size": ranks.world_size, "device": str(ranks.device), "RANK": os.environ["RANK"], **play(ranks)}
    distributed.finish()
    distributed.finish()
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
