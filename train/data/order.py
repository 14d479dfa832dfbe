"""Owns the order of rows: a pure function of (rows, seed, epoch, position), the same at any world size.

Legend: N indices, G rows of a global batch, A accumulation steps, M rows of a micro-batch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Stands in every checkpoint. Any change of the order or of the packing (packing.py) needs a new number: a run resumed
# under other rules would repeat some rows and miss others.
ORDER_VERSION = 1

FILLER_ROW = -1

_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1
_HALF_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next global batch begins: `position` rows of `epoch` have been consumed."""

    epoch: int
    position: int


def epoch_key(seed: int, epoch: int) -> int:
    """The 64-bit key of an epoch's order; no two epochs of one seed share a key."""
    return _mix((_mix(seed) + epoch) & _MASK_64)


def permute(index_N: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """Send each index of [0, size) to its place in a pseudo-random permutation of [0, size) chosen by `key`.

    Each index costs O(1), with nothing of length `size` in memory. Raises ValueError for an index outside.
    """
    if index_N.size and not 0 <= index_N.min() <= index_N.max() < size:
        raise ValueError(f"indices {index_N.min()} to {index_N.max()} are not all in [0, {size})")
    bits = max(2, (size - 1).bit_length())
    round_keys = [np.uint64(_mix(key + number * _GOLDEN)) for number in range(_HALF_ROUNDS)]
    value_N = _feistel(index_N.astype(np.uint64), bits, round_keys)
    # Cycle walking: the network permutes [0, 2^bits), less than twice `size`; what falls outside walks on until inside.
    outside = np.flatnonzero(value_N >= size)
    while outside.size:
        value_N[outside] = _feistel(value_N[outside], bits, round_keys)
        outside = outside[value_N[outside] >= size]
    return value_N.astype(np.int64)


def global_batch(cursor: Cursor, rows: int, global_batch_size: int, seed: int) -> npt.NDArray[np.int64]:
    """The G row ids of the global batch at `cursor`; FILLER_ROW where an epoch's last batch has no row left.

    Raises ValueError for a cursor outside the epoch.
    """
    if not 0 <= cursor.position < rows:
        raise ValueError(f"position {cursor.position} lies outside an epoch of {rows} rows")
    end = min(cursor.position + global_batch_size, rows)
    row_ids_G = np.full(global_batch_size, FILLER_ROW, dtype=np.int64)
    places = np.arange(cursor.position, end, dtype=np.int64)
    row_ids_G[: places.size] = permute(places, rows, epoch_key(seed, cursor.epoch))
    return row_ids_G


def advance(cursor: Cursor, rows: int, global_batch_size: int) -> Cursor:
    """The cursor after the global batch at `cursor`; a new epoch begins once every row was consumed."""
    position = cursor.position + global_batch_size
    return Cursor(cursor.epoch, position) if position < rows else Cursor(cursor.epoch + 1, 0)


def rank_rows(
    row_ids_G: npt.NDArray[np.int64], rank: int, world_size: int, micro_batch_size: int
) -> npt.NDArray[np.int64]:
    """The part of a global batch that `rank` computes: row ids [A, M], one line for each accumulation step.

    Raises ValueError where G is no multiple of world_size * micro_batch_size.
    """
    if row_ids_G.size % (world_size * micro_batch_size):
        raise ValueError(f"{row_ids_G.size} rows do not divide into {world_size} ranks x {micro_batch_size} rows")
    return row_ids_G.reshape(-1, world_size, micro_batch_size)[:, rank]


def _feistel(value_N: npt.NDArray[np.uint64], bits: int, round_keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of [0, 2^bits): each half is changed in turn by a keyed function of the other half."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low_N, high_N = value_N & low_mask, value_N >> low_bits
    for low_key, high_key in zip(round_keys[::2], round_keys[1::2], strict=True):
        low_N = low_N ^ (_mix_array(high_N ^ low_key) & low_mask)
        high_N = high_N ^ (_mix_array(low_N ^ high_key) & high_mask)
    return (high_N << low_bits) | low_N


def _mix_array(value_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 on uint64 arrays, which wrap around as it needs."""
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))


def _mix(value: int) -> int:
    """One step of splitmix64 on a Python integer: a bijection of 64-bit values."""
    state = np.array([(value + _GOLDEN) & _MASK_64], dtype=np.uint64)
    return int(_mix_array(state)[0])
