"""One rank of a few: holds parts of known tensors, changes them all the time, and commits snapshots of them.

Rank 0 prints, as one line of JSON, for each layout the steps whose tables were right when the commit ended.
"""

import json
import sys
import time

import torch

from train import distributed
from train.saving import Saves
from train.snapshot import TABLES, Piece, Snapshot, own_group

SHAPES = {"matrix": (5, 7), "vector": (11,), "scalar": (), "empty": (0, 4), "large": (300, 50), "last": (2,)}
STEPS = (1, 2, 3)


def whole(step, table, name):
    """What a snapshot of `step` holds; every element is another number."""
    shape = torch.Size(SHAPES[name])
    first = step * 1e6 + 1e5 * TABLES.index(table) + 16_000 * list(SHAPES).index(name)
    return torch.arange(first, first + shape.numel()).view(shape)


def equal_parts(rank, size, name):
    """As at stages 0 and 3: the same share of every tensor, which the last ranks have less of, or nothing."""
    numel = torch.Size(SHAPES[name]).numel()
    share = -(-numel // size)
    return min(rank * share, numel), min((rank + 1) * share, numel)


def end_to_end(rank, size, name):
    """As at stages 1 and 2: all tensors laid end to end and cut; most tensors lie on one rank."""
    sizes = {name: torch.Size(shape).numel() for name, shape in SHAPES.items()}
    before = sum(list(sizes.values())[: list(sizes).index(name)])
    bounds = [round(sum(sizes.values()) * i / size) for i in (rank, rank + 1)]
    begin, end = (min(max(bound - before, 0), sizes[name]) for bound in bounds)
    return (begin, end) if begin < end else (0, 0)


def all_on_one(rank, size, name):
    """Rank 1 has everything, the others nothing."""
    return (0, torch.Size(SHAPES[name]).numel() if rank == 1 else 0)


def play(ranks, layout):
    """The steps that came out right, on rank 0."""
    bounds = {name: layout(ranks.rank, ranks.world_size, name) for name in SHAPES}
    own = {name: [torch.zeros(end - begin) for _ in TABLES] for name, (begin, end) in bounds.items()}

    def write(step):
        for name, (begin, end) in bounds.items():
            for table, tensor in zip(TABLES, own[name], strict=True):
                tensor.copy_(whole(step, table, name).flatten()[begin:end])

    def pieces():
        for name, (begin, _) in bounds.items():
            yield Piece(name, torch.Size(SHAPES[name]), begin, tuple(own[name]))

    def commit(step):
        tables = snapshot.collect()
        time.sleep(0.2)  # as on a slow disk: the steps go on, the next snapshot may not come before this one is written
        same = [torch.equal(t, whole(step, table, name)) for table in tables for name, t in tables[table].items()]
        return json.dumps([step, len(same), all(same)])

    snapshot, saves, seen = Snapshot(ranks, own_group(ranks)), Saves(), []
    for step in STEPS:
        write(step)
        seen.append(saves.end(ranks, last=False))
        snapshot.take(pieces)
        saves.begin(ranks, step, lambda step=step: commit(step))
        write(-step)
        assert ranks.sum([1]) == [ranks.world_size]  # beside the commit
    seen.append(saves.end(ranks, last=True))
    saves.close()
    return [json.loads(ended[1]) for ended in seen if ended]


def refused(ranks):
    """What a snapshot says of pieces that leave something out."""
    try:
        Snapshot(ranks, ranks.host_group).take(lambda: iter([Piece("w", torch.Size([4]), 0, (torch.zeros(1),) * 3)]))
    except RuntimeError as error:
        return str(error)
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = distributed.start()
    result = {layout.__name__: play(ranks, layout) for layout in (equal_parts, end_to_end, all_on_one)}
    result["refused"] = refused(ranks)
    if ranks.rank == 0:
        sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    distributed.finish()
