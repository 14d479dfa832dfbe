"""Owns the order of rows: a pure function of (rows of each block, seed, epoch, position), the same at any world size.

The blocks of an epoch are permuted, and their rows stand one after another. That sequence of R rows is cut into C
lanes; inside a lane, rows are permuted in windows. Position p of the epoch lies in lane p mod C, so one batch draws
from as many lanes as it has rows, while a block stays with one lane: where the number of ranks divides C, and each
batch begins at a multiple of it, one rank alone reads the block.

Legend: B blocks, R rows of an epoch, N positions, C lanes, G rows of a global batch, A accumulation steps,
M rows of a micro-batch, F rounds of a Feistel network.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

# Stands in every checkpoint. Any change of the order or of the packing (packing.py) needs a new number: a run resumed
# under other rules would repeat some rows and miss others.
ORDER_VERSION = 2

FILLER_ROW = -1
# Numbers with many divisors, so that the usual numbers of ranks divide them.
LANES = (960, 480, 240, 120, 60, 24, 12, 4, 2, 1)
BLOCKS_PER_LANE = 4  # at least
WINDOW_BLOCKS = 32

_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1
_HALF_ROUNDS = 8

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next global batch begins: `position` rows of `epoch` have been consumed."""

    epoch: int
    position: int
    blocks: int = 0  # the epoch goes over the first so many blocks alone; 0: over all
    begun: tuple[int, ...] = ()  # of a mixture, whose `epoch` is the number of its stage: see mixture.py


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows of a global batch one rank computes, and in which micro-batches."""

    rank: int
    world_size: int
    micro_batch_size: int
    global_batch_size: int

    def __post_init__(self) -> None:
        """Raises ValueError where G is no multiple of world_size * micro_batch_size."""
        if self.global_batch_size % (self.world_size * self.micro_batch_size):
            sizes = f"{self.world_size} ranks x {self.micro_batch_size} rows"
            raise ValueError(f"{self.global_batch_size} rows do not divide into {sizes}")

    def positions(self, start: int) -> Indices:
        """The positions [A, M] of the global batch [start, start + G): those with (p - start) mod world_size = rank."""
        mine_N = np.arange(start + self.rank, start + self.global_batch_size, self.world_size, dtype=np.int64)
        return mine_N.reshape(-1, self.micro_batch_size)


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of one epoch: made in O(B), after which each row costs O(log B)."""

    rows: int
    lanes: int
    window_rows: int
    key: int
    first_row_B: Indices  # of each block in the order of the epoch: its first row in the order of the text
    bounds_B1: Indices  # where the rows of each block begin in the order of the epoch
    _narrow: int = field(init=False)  # rows of the shorter lanes; the first `_wide` lanes have one more
    _wide: int = field(init=False)

    def __post_init__(self) -> None:
        """The lengths of the lanes."""
        object.__setattr__(self, "_narrow", self.rows // self.lanes)
        object.__setattr__(self, "_wide", self.rows % self.lanes)

    def rows_at(self, position_N: Indices) -> Indices:
        """The row at each position of the epoch, FILLER_ROW from position `rows` on. ValueError for a negative one."""
        if position_N.size and position_N.min() < 0:
            raise ValueError(f"position {position_N.min()} lies before the epoch")
        row_N = np.full(position_N.shape, FILLER_ROW, dtype=np.int64)
        inside_N = position_N < self.rows
        place_N = self._places(position_N[inside_N])
        slot_N = np.searchsorted(self.bounds_B1, place_N, side="right") - 1
        row_N[inside_N] = self.first_row_B[slot_N] + place_N - self.bounds_B1[slot_N]
        return row_N

    def lane_bounds(self) -> Indices:
        """Where each lane begins in the sequence of all rows, and the end of the last: [C + 1]."""
        lane_C1 = np.arange(self.lanes + 1)
        return lane_C1 * self._narrow + np.minimum(lane_C1, self._wide)

    def _places(self, position_N: Indices) -> Indices:
        """Where the row at each position stands in the sequence of all rows."""
        lane_N, index_N = position_N % self.lanes, position_N // self.lanes
        window_N = index_N // self.window_rows
        before_N = window_N * self.window_rows
        size_N = np.minimum(self.window_rows, self._narrow + (lane_N < self._wide) - before_N)
        key_N = _window_keys(self.key, lane_N, window_N)
        within_N = permute(index_N - before_N, size_N, key_N)
        return lane_N * self._narrow + np.minimum(lane_N, self._wide) + before_N + within_N


def epoch_order(rows_B: Indices, seed: int, epoch: int) -> EpochOrder:
    """The order of all rows, given how many each block has; no two epochs of one seed have the same."""
    key = epoch_key(seed, epoch)
    blocks, rows = len(rows_B), int(rows_B.sum())
    block_B = permute(np.arange(blocks), blocks, key)
    return EpochOrder(
        rows=rows,
        lanes=lanes_for(blocks),
        window_rows=max(1, round(WINDOW_BLOCKS * rows / max(1, blocks))),
        key=key,
        first_row_B=(np.cumsum(rows_B) - rows_B)[block_B],
        bounds_B1=np.concatenate([np.zeros(1, np.int64), np.cumsum(rows_B[block_B])]),
    )


def lanes_for(blocks: int) -> int:
    """The number of lanes, which follows from the data alone: the most that have BLOCKS_PER_LANE blocks each."""
    return next((lanes for lanes in LANES if blocks >= BLOCKS_PER_LANE * lanes), 1)


def window_blocks(blocks: int) -> int:
    """How many of so many blocks one window of every lane has together: what is read at one time."""
    return min(blocks, lanes_for(blocks) * WINDOW_BLOCKS)


def epoch_key(seed: int, epoch: int) -> int:
    """The 64-bit key of an epoch's order; no two epochs of one seed share a key."""
    return mix((mix(seed) + epoch) & _MASK_64)


def advance(cursor: Cursor, rows: int, global_batch_size: int) -> Cursor:
    """The cursor after the global batch at `cursor`; a new epoch begins once every row was consumed."""
    position = cursor.position + global_batch_size
    return replace(cursor, position=position) if position < rows else Cursor(cursor.epoch + 1, 0)


def permute(index_N: Indices, size: int | Indices, key: int | Words) -> Indices:
    """Send each index of [0, size) to its place in a pseudo-random permutation of [0, size) chosen by `key`.

    `size` and `key` may differ from index to index. Each index costs O(1), with nothing of length `size` in memory.
    Raises ValueError for an index outside.
    """
    size_N = np.broadcast_to(np.asarray(size, dtype=np.int64), index_N.shape)
    if ((index_N < 0) | (index_N >= size_N)).any():
        raise ValueError(f"indices {index_N.min()} to {index_N.max()} are not all in [0, {size_N.max()})")
    bits_N = np.maximum(2, np.frexp((size_N - 1).astype(np.float64))[1]).astype(np.uint64)
    round_keys_FN = _round_keys(key, index_N.shape)
    value_N = _feistel(index_N.astype(np.uint64), bits_N, round_keys_FN)
    # Cycle walking: the network permutes [0, 2^bits), less than twice `size`; what falls outside walks on until inside.
    outside = np.flatnonzero(value_N >= size_N)
    while outside.size:
        value_N[outside] = _feistel(value_N[outside], bits_N[outside], round_keys_FN[:, outside])
        outside = outside[value_N[outside] >= size_N[outside]]
    return value_N.astype(np.int64)


def mix(value: int) -> int:
    """One step of splitmix64 on a Python integer: a bijection of 64-bit values."""
    state = np.array([(value + _GOLDEN) & _MASK_64], dtype=np.uint64)
    return int(_mix_array(state)[0])


def _window_keys(key: int, lane_N: Indices, window_N: Indices) -> Words:
    """A key for each window of each lane of the epoch with this key."""
    lane_key_N = _mix_array(np.uint64(key) + (lane_N.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    return _mix_array(lane_key_N + (window_N.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def _round_keys(key: int | Words, shape: tuple[int, ...]) -> Words:
    """The F round keys of each index."""
    start_N = np.atleast_1d(np.asarray(key if isinstance(key, np.ndarray) else key & _MASK_64, np.uint64))
    rounds_F1 = np.arange(1, _HALF_ROUNDS + 1, dtype=np.uint64)[:, None]
    return np.broadcast_to(_mix_array(start_N + rounds_F1 * np.uint64(_GOLDEN)), (_HALF_ROUNDS, *shape))


def _feistel(value_N: Words, bits_N: Words, round_keys_FN: Words) -> Words:
    """A bijection of [0, 2^bits): each half is changed in turn by a keyed function of the other half."""
    one, low_bits_N = np.uint64(1), bits_N // np.uint64(2)
    low_mask_N = (one << low_bits_N) - one
    high_mask_N = (one << (bits_N - low_bits_N)) - one
    low_N, high_N = value_N & low_mask_N, value_N >> low_bits_N
    for low_key_N, high_key_N in zip(round_keys_FN[::2], round_keys_FN[1::2], strict=True):
        low_N = low_N ^ (_mix_array(high_N ^ low_key_N) & low_mask_N)
        high_N = high_N ^ (_mix_array(low_N ^ high_key_N) & high_mask_N)
    joined_N: Words = (high_N << low_bits_N) | low_N
    return joined_N


def _mix_array(value_N: Words) -> Words:
    """The finalizer of splitmix64 on uint64 arrays, which wrap around as it needs."""
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))
