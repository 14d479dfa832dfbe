"""The state of all ranks in host memory of rank 0: each rank copies its own part, and the parts meet beside training.

Legend: R ranks, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist

from train.distributed import Ranks

TABLES = ("model", "exp_avg", "exp_avg_sq")  # the weights and AdamW's two moments of each parameter
Tensors = dict[str, torch.Tensor]  # by parameter name


class Piece(NamedTuple):
    """What one rank holds of one parameter: a range of the flattened tensor; over all ranks the ranges fill it."""

    name: str
    shape: torch.Size  # of the whole parameter
    start: int
    values: tuple[torch.Tensor, ...]  # fp32 and one-dimensional, one for each of TABLES, all of one size


class Snapshot:
    """Memory for one copy of the state, made once and used again: `take`, `collect`, and `take` once more.

    Rank 0 has room for all of it, the others for their parts; pinned where the state is on a GPU. `collect` speaks in
    `group` (gloo) alone: where the group is its own, a thread may collect beside the collectives of the steps.
    """

    def __init__(self, ranks: Ranks, group: dist.ProcessGroup | None) -> None:
        self._ranks, self._group = ranks, group
        self._bounds_RP2: list[list[list[int]]] = []  # start and size of every piece
        self._own: list[torch.Tensor] = []  # of each table, on ranks other than 0: the pieces one after the other
        self._wholes: list[Tensors] = []  # of each table, on rank 0
        self._targets_P: list[tuple[torch.Tensor, ...]] = []  # where the pieces of this rank go

    @torch.no_grad()
    def take(self, pieces: Callable[[], Iterator[Piece]]) -> None:
        """Copy this rank's pieces, which may change when this returns. Every rank comes here.

        `pieces` gives the same names and ranges at every call; no piece is held for longer than its copy takes.
        """
        if not self._targets_P:
            self._make_room(pieces())
        for piece, targets in zip(pieces(), self._targets_P, strict=True):
            for target, values in zip(targets, piece.values, strict=True):
                target.copy_(values, non_blocking=True)
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()

    def collect(self) -> dict[str, Tensors]:
        """{table: whole tensors by parameter name} of what was taken, on rank 0; the tables of the others are empty.

        Every rank comes here. The tensors are the snapshot's own: the next `take` writes over them.
        """
        if self._ranks.rank == 0:
            for rank in range(1, self._ranks.world_size):
                self._receive(rank)
            return dict(zip(TABLES, self._wholes, strict=True))
        for part in self._own:
            dist.send(part, 0, group=self._group)
        return {table: {} for table in TABLES}

    def _make_room(self, pieces: Iterator[Piece]) -> None:
        names, shapes, bounds_P2 = [], [], []
        for piece in pieces:
            names.append(piece.name)
            shapes.append(piece.shape)
            bounds_P2.append([piece.start, piece.values[0].numel()])
        self._bounds_RP2 = self._told_by_all(bounds_P2)
        for name, shape, *bounds_R in zip(names, shapes, *self._bounds_RP2, strict=True):
            if sum(size for _, size in bounds_R) != shape.numel():
                raise RuntimeError(f"the pieces {bounds_R} of {name} are not its {shape.numel()} elements")
        sizes_P = [size for _, size in bounds_P2] if self._ranks.rank else [shape.numel() for shape in shapes]
        flats = [torch.empty(sum(sizes_P), pin_memory=self._ranks.device.type == "cuda") for _ in TABLES]
        if self._ranks.rank:
            self._own = flats
            self._targets_P = list(zip(*(flat.split(sizes_P) for flat in flats), strict=True))
            return
        for flat in flats:
            tensors = zip(flat.split(sizes_P), shapes, strict=True)
            self._wholes.append({name: t.view(shape) for name, (t, shape) in zip(names, tensors, strict=True)})
        self._targets_P = list(zip(*(_ranges(wholes, bounds_P2) for wholes in self._wholes), strict=True))

    def _told_by_all(self, bounds_P2: list[list[int]]) -> list[list[list[int]]]:
        own = torch.tensor(bounds_P2)
        if self._ranks.world_size == 1:
            return [bounds_P2]
        every = [torch.empty_like(own) for _ in range(self._ranks.world_size)]
        dist.all_gather(every, own, group=self._group)
        return [bounds.tolist() for bounds in every]

    def _receive(self, rank: int) -> None:
        """The parts of another rank, put into their places one table after the other."""
        bounds_P2 = self._bounds_RP2[rank]
        sizes_P = [size for _, size in bounds_P2]
        part = torch.empty(sum(sizes_P))
        for wholes in self._wholes:
            dist.recv(part, rank, group=self._group)
            for place, values in zip(_ranges(wholes, bounds_P2), part.split(sizes_P), strict=True):
                place.copy_(values)


def own_group(ranks: Ranks) -> dist.ProcessGroup | None:
    """Connections on which a thread may collect while the steps use the others. Every rank comes here."""
    return dist.new_group(backend="gloo") if ranks.world_size > 1 else None


def _ranges(wholes: Tensors, bounds_P2: list[list[int]]) -> list[torch.Tensor]:
    """The places of a rank's pieces in the whole tensors."""
    pairs = zip(wholes.values(), bounds_P2, strict=True)
    return [whole.view(-1)[start : start + size] for whole, (start, size) in pairs]
