"""Owns how many rows may be missing: a little damage costs a few rows, much of it ends the run."""

# While fewer rows were seen, this many count as seen: the first damaged row alone says little about the share.
LEAST_ROWS = 10_000


def is_too_much(damaged_rows: int, rows_seen: int, max_share: float) -> bool:
    """Whether more than `max_share` of the rows seen so far, over all ranks, could not be read."""
    return damaged_rows > max_share * max(rows_seen, LEAST_ROWS)
