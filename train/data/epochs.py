"""Owns the walk through one data set, epoch after epoch: its batches, what a checkpoint keeps, going on from that.

The cursor alone says where to go on: nothing is replayed, at 90 % of ten million rows as at the first.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import xxhash

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from train.data.batch import Batch, join_rows, read_layout
from train.data.layout import Layout, lay_out
from train.data.order import FILLER_ROW, ORDER_VERSION, Cursor, EpochOrder, Indices, Share, advance, epoch_order
from train.data.packing import RowPlan
from train.data.reader import ShardReader
from train.data.remote import BlockStore
from train.data.splits import find_split
from train.monitor.logs import log

ONLY_SOURCE = "data"  # the name of a data set that is no part of a mixture
_PIECES_AT_ONCE = 16384  # of a rank, laid out ahead of use


class EpochWalk:
    """The rows of one split in the order of their epochs."""

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        plan: RowPlan,
        seed: int,
        *,
        repeat: bool = True,
        store: BlockStore | None = None,
        word_starts: bool = True,
    ) -> None:
        """Open nothing yet. Raises UserError for an unknown or empty split."""
        self.word_starts = word_starts  # whether the batches have them
        self.plan = plan
        self.reader = ShardReader(manifest, split, plan, store)
        if not plan.rows:
            raise UserError(f"split {split!r} of {manifest.directory} holds no documents; build it from more text")
        self.identity = manifest.identity
        self.special_ids = manifest.special_ids
        self.start = Cursor(0, 0)
        self._manifest = manifest
        self._checksums = [block.checksum for shard in find_split(manifest, split).shards for block in shard.blocks]
        self._seed = seed
        self._repeat = repeat
        self._order: tuple[int, int, EpochOrder] | None = None  # of the epoch and the blocks asked for last
        self._ahead: dict[tuple[Cursor, Share], list[Layout]] = {}

    def batches(self, cursor: Cursor, share: Share) -> list[Batch]:
        """This rank's micro-batches of the global batch at `cursor`."""
        plan, reader, ids, words = self.plan, self.reader, self.special_ids, self.word_starts
        return [
            join_rows([read_layout(layout, plan, reader, ids, word_starts=words)], cursor.epoch)
            for layout in self._layouts(cursor, share)
        ]

    def prefetch(self, cursor: Cursor, share: Share) -> None:
        """Have the blocks of this rank's part of the global batch at `cursor` fetched in the background."""
        self.prefetch_rows(self.order(cursor).rows_at(share.positions(cursor.position).ravel()))

    def prefetch_rows(self, row_N: Indices) -> None:
        """Have the blocks of these rows fetched in the background, the first one needed first."""
        self.reader.prefetch(self.plan.blocks_of(row_N[row_N != FILLER_ROW]))

    @property
    def is_remote(self) -> bool:
        """Whether there are blocks to fetch ahead."""
        return self.reader.is_remote

    def advance(self, cursor: Cursor, share: Share) -> Cursor:
        """The cursor after the global batch at `cursor`."""
        return advance(cursor, self._epoch_rows(cursor), share.global_batch_size)

    def at(self, cursor: Cursor, step: int) -> Cursor:
        """The cursor itself: nothing changes at a step."""
        del step
        return cursor

    def is_over(self, cursor: Cursor, share: Share) -> bool:
        """Whether no row is left to read, for a walk that does not repeat."""
        del share
        return cursor.epoch > 0 and not self._repeat

    def order(self, cursor: Cursor) -> EpochOrder:
        """The order of the cursor's epoch."""
        found = self._order  # once: the prefetch thread and the main thread may ask for two epochs at a time
        if found is None or found[:2] != (cursor.epoch, cursor.blocks):
            rows_B = self.plan.rows_B[: self._blocks(cursor)]
            self._order = found = cursor.epoch, cursor.blocks, epoch_order(rows_B, self._seed, cursor.epoch)
        return found[2]

    @property
    def plans(self) -> list[tuple[str, float, RowPlan]]:
        """(name, share of all rows read, plan) of each data set."""
        return [("The training split", 1.0, self.plan)]

    def _layouts(self, cursor: Cursor, share: Share) -> list[Layout]:
        """Of the micro-batches of this rank; those of many steps are made at once, as small arrays cost more time."""
        size = share.global_batch_size
        if (cursor, share) not in self._ahead:
            pieces_a_step = size * len(self.plan.piece_length_P) // (self.plan.rows * share.world_size)
            # The first batch of all comes at once.
            steps = max(1, _PIECES_AT_ONCE // max(1, pieces_a_step)) if self._ahead else 1
            starts = range(cursor.position, min(cursor.position + size * steps, self._epoch_rows(cursor)), size)
            position_SAM = np.stack([share.positions(start) for start in starts])
            row_ids_NM = self.order(cursor).rows_at(position_SAM).reshape(-1, share.micro_batch_size)
            layouts = iter(lay_out(row_ids_NM, self.plan))
            cursors = (replace(cursor, position=start) for start in starts)
            micro_batches = position_SAM.shape[1]
            self._ahead = {(at, share): list(islice(layouts, micro_batches)) for at in cursors}
        return self._ahead[cursor, share]

    @property
    def damage(self) -> dict[str, str]:
        """What was wrong with the damaged blocks that this rank met so far, by names that are the same on all ranks."""
        return {f"{self._manifest.identity}/{number}": words for number, words in dict(self.reader.damage).items()}

    def progress(self, cursor: Cursor) -> dict[str, float]:
        """Epochs done, for the metrics."""
        return {"epoch": cursor.epoch + cursor.position / self._epoch_rows(cursor)}

    def row_names(self, row_ids_N: Indices, epoch: int, cursor: Cursor) -> list[str]:
        """SOURCE/EPOCH/ROW of rows of a batch of `epoch`."""
        del cursor
        return [f"{ONLY_SOURCE}/{epoch}/{row}" for row in row_ids_N.tolist()]

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """What a checkpoint keeps to go on at `cursor`: the same on every rank, under 300 bytes as canonical JSON.

        `blocks` is the number of blocks that the epoch goes over, `content` a hash of their checksums, `plan` the
        digest of their rows.
        """
        blocks = self._blocks(cursor)
        return {
            "data_identity": self._manifest.identity,
            "order_version": ORDER_VERSION,
            "seed": self._seed,
            "epoch": cursor.epoch,
            "position": cursor.position,
            "sequence_length": self.plan.rules.sequence_length,
            "blocks": blocks,
            "content": self._content(blocks),
            "plan": self._plan_digest(blocks),
        }

    def resume(self, state: Mapping[str, Any], *, grown: bool = False) -> Cursor:
        """The cursor that `state` speaks of. Raises UserError where the run would repeat or miss rows, naming why.

        With `grown` the data set may have more blocks than the state's, behind those. The epoch begun goes on over the
        old ones, so that each row is read once; the next epoch takes in all.
        """
        same_data = state.get("data_identity") == self._manifest.identity
        if not same_data and not grown:
            raise UserError(
                f"the data set changed: the checkpoint was trained on {state.get('data_identity')}, this one is "
                f"{self._manifest.identity}; point data.path at the old one, start a new run directory, or set "
                "data.continue_grown=true if blocks were only added"
            )
        cursor = self._cursor(state)
        self._check_rules(state, cursor)
        if not same_data:
            log.warning(
                "The data set has %s rows where it had %s: epoch %d goes on over the old ones, the next takes in all.",
                f"{self.plan.rows:,}",
                f"{self._epoch_rows(cursor):,}",
                cursor.epoch,
            )
        return cursor

    def _cursor(self, state: Mapping[str, Any]) -> Cursor:
        blocks, content = state.get("blocks"), state.get("content")
        if type(blocks) is not int or not 0 < blocks <= len(self._checksums) or content != self._content(blocks):
            raise UserError(
                f"the data set did not only grow: the first {blocks} blocks of {self._manifest.identity} are not those "
                f"of {state.get('data_identity')}, which the checkpoint was trained on; point data.path at the old one "
                "or start a new run directory"
            )
        return Cursor(state["epoch"], state["position"], blocks if blocks < len(self._checksums) else 0)

    def _check_rules(self, state: Mapping[str, Any], cursor: Cursor) -> None:
        mine = self.state(cursor)
        for name in ("order_version", "seed", "sequence_length", "plan"):
            # At the beginning of an epoch no row of it has been read: another packing repeats and misses none.
            if state.get(name) != mine[name] and not (name == "plan" and cursor.position == 0):
                raise UserError(
                    f"{name} of the data stream is {mine[name]} but {state.get(name)} in the checkpoint"
                    + (" (data.piece_length, data.piece_overlap, or blocks lost or restored)" * (name == "plan"))
                    + "; go on with the old value or start a new run directory"
                )

    def _blocks(self, cursor: Cursor) -> int:
        return cursor.blocks or len(self._checksums)

    def _epoch_rows(self, cursor: Cursor) -> int:
        return int(self.plan.last_row_B[self._blocks(cursor) - 1])

    def _content(self, blocks: int) -> str:
        return xxhash.xxh3_64_hexdigest("".join(self._checksums[:blocks]).encode())

    def _plan_digest(self, blocks: int) -> str:
        return self.plan.digest if blocks == len(self._checksums) else self.plan.first_blocks(blocks).digest
