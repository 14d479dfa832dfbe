"""Owns mixtures of data sets: which source each row of a batch comes from, in exact proportions at every step.

The rows of a mixture are cut into super-blocks of 1,000. The first n super-blocks hold as many rows of each source as
its weight says (proportions.py), in a keyed order inside each super-block. Every source has epochs of its own, which
go on through changes of the weights.

Legend: K sources, N positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import UserError
from train.data.batch import Batch, ReadRows, join_rows, read_rows
from train.data.epochs import EpochWalk
from train.data.order import FILLER_ROW, ORDER_VERSION, Cursor, Indices, Share, epoch_key, permute
from train.data.packing import RowPlan
from train.data.proportions import in_parts, source_counts

SUPER_BLOCK = 1000
_ROWS_AT_ONCE = 8192  # of a rank, drawn ahead of use
_EPOCH_BITS = 40  # of a row's number for the masks: its epoch stands above the number of its row


_Part = tuple[int, int, Indices]  # a source, its epoch, rows
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Stage:
    """What holds from optimizer step `step` on: the sources, packed for one sequence length, and their weights."""

    step: int
    sources_K: tuple[EpochWalk, ...]
    weights_K: tuple[float, ...]
    shrink: int = 1  # a global batch and a micro-batch have so many times fewer rows


class MixtureWalk:
    """The rows of several data sets. The cursor's `begun` are the rows of each source read before its stage."""

    def __init__(self, stages: Sequence[Stage], names_K: Sequence[str], seed: int, *, repeat: bool = True) -> None:
        """The first stage begins at step 0. Every source reads its split in the order of `seed`."""
        self._stages = stages
        self._names_K = names_K
        self._seed = seed
        self._repeat = repeat
        self._last: tuple[int, int, tuple[Indices, Indices]] | None = None  # the super-block asked for last
        self._ahead: dict[tuple[Cursor, Share], list[list[_Part]]] = {}
        self.start = Cursor(0, 0, begun=(0,) * len(names_K))

    def at(self, cursor: Cursor, step: int) -> Cursor:
        """The cursor in the stage of optimizer step `step`.

        Where the sequence length changes with the stage, each source begins a new epoch of its new rows.
        """
        number = max(index for index, stage in enumerate(self._stages) if stage.step <= step)
        if number <= cursor.epoch:
            return cursor
        old, new = self._stages[cursor.epoch], self._stages[number]
        read_K = self._read(cursor)
        for k, (before, after) in enumerate(zip(old.sources_K, new.sources_K, strict=True)):
            if before.plan.digest != after.plan.digest:
                read_K[k] = -(-read_K[k] // before.plan.rows) * after.plan.rows
        return Cursor(number, 0, begun=tuple(read_K))

    def batches(self, cursor: Cursor, share: Share) -> list[Batch]:
        """This rank's micro-batches of the global batch at `cursor`."""
        sources_K = self._stages[cursor.epoch].sources_K
        return [
            join_rows([_read_rows(sources_K, source, epoch, row_N) for source, epoch, row_N in parts], epoch=0)
            for parts in self._parts(cursor, share)
        ]

    def prefetch(self, cursor: Cursor, share: Share) -> None:
        """Have the blocks of this rank's part of the global batch at `cursor` fetched in the background."""
        stage = self._stages[cursor.epoch]
        position_N = shrunk(share, stage.shrink).positions(cursor.position).ravel()
        source_N, number_N = self._draw(cursor, position_N)
        for k, source in enumerate(stage.sources_K):
            if source.is_remote:
                for _, _, row_N in _rows_by_epoch(source, number_N[source_N == k]):
                    source.prefetch_rows(row_N)

    @property
    def is_remote(self) -> bool:
        """Whether there are blocks to fetch ahead."""
        return any(source.is_remote for stage in self._stages for source in stage.sources_K)

    def advance(self, cursor: Cursor, share: Share) -> Cursor:
        """The cursor after the global batch at `cursor`."""
        rows = shrunk(share, self._stages[cursor.epoch].shrink).global_batch_size
        return replace(cursor, position=cursor.position + rows)

    def is_over(self, cursor: Cursor, share: Share) -> bool:
        """Whether the next global batch asks more of a source than its first epoch has, where it must not repeat."""
        if self._repeat:
            return False
        rows_K = [source.plan.rows for source in self._stages[cursor.epoch].sources_K]
        after_K = self._read(self.advance(cursor, share))
        return any(read > rows for read, rows in zip(after_K, rows_K, strict=True))

    @property
    def plans(self) -> list[tuple[str, float, RowPlan]]:
        """(name, share of all rows read, plan) of each source at the start."""
        stage = self._stages[0]
        total = sum(stage.weights_K)
        named = zip(self._names_K, stage.weights_K, stage.sources_K, strict=True)
        return [
            (f"Source {name} ({weight / total:.1%})", weight / total, source.plan) for name, weight, source in named
        ]

    @property
    def damage(self) -> dict[str, str]:
        """What was wrong with the damaged blocks that this rank met so far, by names that all ranks share."""
        sources = [source for stage in self._stages for source in stage.sources_K]
        return {block: words for source in sources for block, words in source.damage.items()}

    def progress(self, cursor: Cursor) -> dict[str, float]:
        """Epochs done of each source, for the metrics."""
        named = zip(self._names_K, self._read(cursor), self._stages[cursor.epoch].sources_K, strict=True)
        return {f"epoch_{name}": read / source.plan.rows for name, read, source in named}

    def row_names(self, row_ids_N: Indices, epoch: int, cursor: Cursor) -> list[str]:
        """SOURCE/EPOCH/ROW of rows of a batch, `cursor` being where its step ended; `epoch` says nothing here."""
        del epoch
        epoch_N, place_N = np.divmod(row_ids_N, 1 << _EPOCH_BITS)
        end_K = np.cumsum([source.plan.rows for source in self._stages[cursor.epoch].sources_K])
        source_N = np.searchsorted(end_K, place_N, side="right")
        row_N = place_N - np.concatenate([[0], end_K])[source_N]
        named = zip(source_N.tolist(), epoch_N.tolist(), row_N.tolist(), strict=True)
        return [f"{self._names_K[k]}/{number}/{row}" for k, number, row in named]

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """What a checkpoint keeps: the same on every rank, under 300 bytes as canonical JSON for four sources."""
        stage = self._stages[cursor.epoch]
        digests = "".join(source.plan.digest for source in stage.sources_K)
        return {
            "sources": [source.identity[:8] for source in stage.sources_K],
            "weights": list(in_parts(stage.weights_K)),
            "order_version": ORDER_VERSION,
            "seed": self._seed,
            "stage": cursor.epoch,
            "position": cursor.position,
            "begun": list(cursor.begun),
            "plan": xxhash.xxh3_64_hexdigest(digests.encode()),
        }

    def resume(self, state: Mapping[str, Any]) -> Cursor:
        """The cursor that `state` speaks of. Raises UserError where the run would repeat or miss rows, naming why."""
        number = state.get("stage")
        if type(number) is not int or not 0 <= number < len(self._stages):
            raise UserError(
                f"the checkpoint is at stage {number} of its mixture, the configuration has {len(self._stages)}: go on "
                "with the old data.sources, data.weights_at and data.sequence_length_at or start a new run directory"
            )
        cursor = Cursor(number, state["position"], begun=tuple(state["begun"]))
        mine = self.state(cursor)
        for name in ("order_version", "seed", "sources", "weights", "plan"):
            if state.get(name) != mine[name]:
                raise UserError(
                    f"{name} of the data stream is {mine[name]} but {state.get(name)} in the checkpoint; go on with "
                    "the old value (data.weights_at changes weights at a step) or start a new run directory"
                )
        return cursor

    def _parts(self, cursor: Cursor, share: Share) -> list[list[_Part]]:
        """Of each micro-batch of this rank; those of many steps are drawn at once, as small arrays cost more time."""
        if (cursor, share) not in self._ahead:
            stage = self._stages[cursor.epoch]
            mine = shrunk(share, stage.shrink)
            # No more than an epoch of the smallest source: each epoch has an order of its own to be made.
            rows = min(_ROWS_AT_ONCE, *(source.plan.rows for source in stage.sources_K))
            steps = max(1, rows * mine.world_size // mine.global_batch_size) if self._ahead else 1
            starts = range(cursor.position, cursor.position + mine.global_batch_size * steps, mine.global_batch_size)
            position_SAM = np.stack([mine.positions(start) for start in starts])
            parts = iter(_in_parts(stage, *self._draw(cursor, position_SAM.ravel()), mine.micro_batch_size))
            cursors = (replace(cursor, position=start) for start in starts)
            self._ahead = {(at, share): list(islice(parts, position_SAM.shape[1])) for at in cursors}
        return self._ahead[cursor, share]

    def _read(self, cursor: Cursor) -> list[int]:
        """Rows read of each source so far, over all its epochs."""
        block, within = divmod(cursor.position, SUPER_BLOCK)
        counts_K = self._counts(cursor.epoch, block * SUPER_BLOCK)
        source_N, _ = self._super_block(cursor.epoch, block)
        since_K = np.bincount(source_N[:within], minlength=len(counts_K)).tolist()
        return [sum(counts) for counts in zip(cursor.begun, counts_K, since_K, strict=True)]

    def _draw(self, cursor: Cursor, position_N: Indices) -> tuple[Indices, Indices]:
        """(source, number among all rows ever read of that source) of the row at each position of the stage."""
        source_N, number_N = np.empty_like(position_N), np.empty_like(position_N)
        block_N, within_N = np.divmod(position_N, SUPER_BLOCK)
        for block in np.unique(block_N).tolist():
            here_N = block_N == block
            drawn_N, number_in_stage_N = (array[within_N[here_N]] for array in self._super_block(cursor.epoch, block))
            source_N[here_N] = drawn_N
            number_N[here_N] = np.array(cursor.begun)[drawn_N] + number_in_stage_N
        return source_N, number_N

    def _super_block(self, stage: int, block: int) -> tuple[Indices, Indices]:
        """(source, number in the stage among the rows of that source) of each row of a super-block."""
        found = self._last  # once: the prefetch thread and the main thread may ask for two super-blocks at a time
        if found is None or found[:2] != (stage, block):
            before_K = np.array(self._counts(stage, block * SUPER_BLOCK))
            rows_K = np.array(self._counts(stage, (block + 1) * SUPER_BLOCK)) - before_K
            key = epoch_key(epoch_key(self._seed, stage), block)
            slot_N = permute(np.arange(SUPER_BLOCK), SUPER_BLOCK, key)
            source_N = np.searchsorted(np.cumsum(rows_K), slot_N, side="right")
            number_N = np.empty_like(source_N)
            # A source is read in its own order: what a super-block left half done has read the first of its rows.
            number_N[np.argsort(source_N, kind="stable")] = np.concatenate(
                [np.arange(first, first + rows) for first, rows in zip(before_K, rows_K, strict=True)]
            )
            self._last = found = stage, block, (source_N, number_N)
        return found[2]

    def _counts(self, stage: int, rows: int) -> list[int]:
        return source_counts(in_parts(self._stages[stage].weights_K), rows)


def shrunk(share: Share, divisor: int) -> Share:
    """The share of batches with so many times fewer rows; the number of micro-batches stays."""
    micro, rows = share.micro_batch_size // divisor, share.global_batch_size // divisor
    return replace(share, micro_batch_size=micro, global_batch_size=rows)


def _in_parts(stage: Stage, source_N: Indices, number_N: Indices, micro_batch_size: int) -> list[list[_Part]]:
    """The rows of each micro-batch, those of one source and epoch together."""
    micro_batches = len(source_N) // micro_batch_size
    parts: list[list[_Part]] = [[] for _ in range(micro_batches)]
    micro_N = np.repeat(np.arange(micro_batches), micro_batch_size)
    for k, source in enumerate(stage.sources_K):
        of_source_N = source_N == k
        for epoch, here_N, row_N in _rows_by_epoch(source, number_N[of_source_N]):
            bounds = np.searchsorted(micro_N[of_source_N][here_N], np.arange(micro_batches + 1)).tolist()
            for micro, (begin, end) in enumerate(pairwise(bounds)):
                if begin < end:
                    parts[micro].append((k, epoch, row_N[begin:end]))
    return parts


def _read_rows(sources_K: Sequence[EpochWalk], k: int, epoch: int, row_N: Indices) -> ReadRows:
    """Rows of source k, whose ids say the source and its epoch as well."""
    source = sources_K[k]
    rows = read_rows(row_N, source.plan, source.reader, source.special_ids, word_starts=source.word_starts)
    base = (epoch << _EPOCH_BITS) + sum(other.plan.rows for other in sources_K[:k])
    return replace(rows, row_ids_D=np.where(rows.row_ids_D == FILLER_ROW, FILLER_ROW, rows.row_ids_D + base))


def _rows_by_epoch(source: EpochWalk, number_N: Indices) -> Iterator[tuple[int, Mask, Indices]]:
    """(epoch, which they are, rows) of the rows with these numbers among all that are ever read of a source."""
    epoch_N, place_N = np.divmod(number_N, source.plan.rows)
    for epoch in np.unique(epoch_N).tolist():
        here_N = epoch_N == epoch
        yield epoch, here_N, source.order(Cursor(epoch, 0)).rows_at(place_N[here_N])
