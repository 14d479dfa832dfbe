"""Owns how many rows may be missing: a little damage costs a few rows, much of it ends the run."""

import json

from train.data.stream import Walk
from train.distributed import Ranks

# While fewer rows were seen, this many count as seen: the first damaged row alone says little about the share.
LEAST_ROWS = 10_000


def is_too_much(damaged_rows: int, rows_seen: int, max_share: float) -> bool:
    """Whether more than `max_share` of the rows seen so far, over all ranks, could not be read."""
    return damaged_rows > max_share * max(rows_seen, LEAST_ROWS)


def damaged_blocks(ranks: Ranks, walk: Walk) -> int:
    """How many different blocks some rank could not read so far. All ranks come here.

    Steps are prepared ahead: it may know of blocks whose rows are those of the next steps.
    """
    return len({block for blocks in ranks.gather(json.dumps([*walk.damage])) for block in json.loads(blocks)})
