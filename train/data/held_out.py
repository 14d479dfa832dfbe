"""Owns the fixed batches that validation reads: the first rows of a split, planned once for the whole run."""

from collections.abc import Iterator

from data_pipeline.manifest import Manifest
from train.data.batch import Batch, make_batch
from train.data.order import FILLER_ROW, Share
from train.data.packing import PackingRules, plan_rows
from train.data.reader import ShardReader
from train.data.remote import BlockStore

_EPOCH = -1  # of the masks, which are the same every time


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
