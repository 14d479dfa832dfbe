"""One rank of a few: plays the agreements of train/distributed.py and prints what it saw as one line of JSON."""

import json
import os
import sys
from types import SimpleNamespace

import torch

from train import distributed
from train.distributed import on_first_rank, together
from train.errors import BertmaeError, CheckpointError, DataError, UserError
from train.monitor.recorder import summed
from train.preflight.equality import refuse_differences


def caught(ranks, error, agreement=together):
    """Class, exit code, `everywhere` and text of what an action that raises `error` (None: nothing) leads to here."""

    def action():
        if error is not None:
            raise error

    try:
        agreement(ranks, action)
    except BertmaeError as agreed:
        return [type(agreed).__name__, agreed.exit_code, agreed.everywhere, str(agreed)]
    return None


def data_set(is_other):
    """As much of a data set as is compared."""
    return SimpleNamespace(manifest=SimpleNamespace(identity="other" if is_other else "one"))


def play(ranks):
    """What this rank saw of each agreement, by name."""
    rank, last = ranks.rank, ranks.world_size - 1
    by_rank = [None, CheckpointError(f"of {rank}"), DataError(f"of {rank}")]
    seen = {
        "sum": ranks.sum([rank, 1, 2**40 * rank, -rank]),
        "together": together(ranks, lambda: f"of rank {rank}"),
        "first": on_first_rank(ranks, lambda: {"中文": [rank, None, 0.1 + 0.2, "x" * 70_000], "rank": rank}),
        "nothing": on_first_rank(ranks, lambda: None),
        "one fails": caught(ranks, DataError(f"of 中 {rank}") if rank == last else None),
        "all fail": caught(ranks, UserError(f"of {rank}")),
        "two fail": caught(ranks, by_rank[rank]),
        "base": caught(ranks, BertmaeError("plain") if rank == 0 else None),
        "gathered": ranks.gather("中" * rank),
        "other data": caught(ranks, None, lambda ranks, _: refuse_differences(ranks, [data_set(rank == last)])),
        "same data": refuse_differences(ranks, [data_set(False)]),
        "hosts": ranks.hosts_R,
        "first fails": caught(ranks, CheckpointError("no room"), on_first_rank),
    }
    ranks.barrier()
    # fp32 has no room for these; fp64 adds them exactly, in any order.
    sums = (torch.tensor([2.0**30 + rank], dtype=torch.float64), torch.tensor([[rank, 2]]))
    seen["summed"] = summed([sums, sums], ranks)
    seen["after"] = ranks.sum([1])
    return seen


def main():
    ranks = distributed.start()
    result = {"world_size": ranks.world_size, "device": str(ranks.device), "RANK": os.environ["RANK"], **play(ranks)}
    distributed.finish()
    distributed.finish()
    is_exiting = sys.argv[1:] == ["exits"]
    if is_exiting:  # mpiexec cuts the long lines of several ranks and mixes the parts
        result = {name: result[name] for name in ("RANK", "world_size", "after")}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    if is_exiting:
        return  # mpiexec takes another end for a failure
    # As train/__main__.py does: threads of the libraries now and then abort the interpreter's teardown.
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
