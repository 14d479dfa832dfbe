"""Owns the fixed batches that validation reads: the first rows of a split, planned once for the whole run.

Legend: T tokens, D documents of rows that were read, P pieces of the plan, R rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from data_pipeline.manifest import Manifest
from train.data.batch import Batch, ReadRows, join_rows, make_batch, read_rows
from train.data.order import FILLER_ROW, Share
from train.data.packing import PackingRules, plan_rows
from train.data.reader import ShardReader
from train.data.remote import BlockStore

_EPOCH = -1  # of the masks, which are the same every time
_LONG_ENOUGH = 32  # ordinary tokens of a document that is worth showing


class HeldOutRows:
    """This rank's share of the first `max_rows` rows of a split, in the order of the text.

    All ranks get the same number of batches, the last ones filled up with filler rows; together they have each row
    once at any world size.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        rules: PackingRules,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        max_rows: int,
        store: BlockStore | None = None,
        *,
        word_starts: bool = True,
    ) -> None:
        """Plan the rows, which reads no more blocks than needed. Raises UserError for an unknown split."""
        self._plan = plan_rows(manifest, split, rules, max_rows, store)
        self._reader = ShardReader(manifest, split, self._plan, store)
        self._special_ids = manifest.special_ids
        self._word_starts = word_starts
        self.rows = min(self._plan.rows, max_rows)
        round_size = world_size * micro_batch_size
        self._share = Share(rank, world_size, micro_batch_size, -(-self.rows // round_size) * round_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches, the same ones each time; blocks are verified the first time alone."""
        row_ids_AM = self._share.positions(0)
        row_ids_AM[row_ids_AM >= self.rows] = FILLER_ROW
        self._reader.prefetch(self._plan.blocks_of(row_ids_AM[row_ids_AM != FILLER_ROW]))
        for row_ids_M in row_ids_AM:
            yield make_batch(
                row_ids_M, self._plan, self._reader, self._special_ids, _EPOCH, word_starts=self._word_starts
            )

    def documents(self, count: int) -> ReadRows | None:
        """The first `count` documents that are long enough, or else the longest ones: the same on every rank.

        Fewer where the rows hold fewer, or are damaged; None where there is none. Reads whole rows.
        """
        first_R1 = self._plan.row_pieces_R1[: self.rows + 1]
        length_P = self._plan.piece_length_P[: first_R1[-1]].astype(np.int64)
        missing_P = np.maximum(0, _LONG_ENOUGH - length_P)
        chosen_P = np.sort(np.argsort(missing_P, kind="stable")[:count])
        row_R = np.unique(np.searchsorted(first_R1, chosen_P, side="right") - 1)
        if not row_R.size:
            return None
        read = read_rows(row_R, self._plan, self._reader, self._special_ids, word_starts=self._word_starts)
        row_D = read.row_ids_D
        _, first_R, row_of_D = np.unique(row_D, return_index=True, return_inverse=True)
        piece_D = self._plan.row_pieces_R1[row_D] + np.arange(row_D.size) - first_R[row_of_D]
        return _of_documents(read, (row_D != FILLER_ROW) & np.isin(piece_D, chosen_P))


def first_documents(sets: Sequence[HeldOutRows], count: int) -> Batch | None:
    """One batch of `count` fixed documents, the first ones of each data set, with the masks of validation.

    None where there are none, or none is asked for. Raises UserError where a store is away for too long.
    """
    shares = [count // len(sets) + (number < count % len(sets)) for number in range(len(sets))]
    found = [rows.documents(share) for rows, share in zip(sets, shares, strict=True) if share]
    parts = [part for part in found if part is not None and part.lengths_D.size]
    return join_rows(parts, _EPOCH) if parts else None


def _of_documents(read: ReadRows, kept_D: np.ndarray) -> ReadRows:
    kept_T = np.repeat(kept_D, read.lengths_D)
    starts_T = read.word_starts_T
    return replace(
        read,
        ids_T=read.ids_T[kept_T],
        word_starts_T=None if starts_T is None else starts_T[kept_T],
        lengths_D=read.lengths_D[kept_D],
        row_ids_D=read.row_ids_D[kept_D],
        row_offsets_D=read.row_offsets_D[kept_D],
        rows=np.unique(read.row_ids_D[kept_D]).size,
        fillers=0,
        damaged=0,
    )
