"""Verification of a data set: every size, checksum, count, bound and id range, and what is wrong by name.

Worker processes check pieces, runs of blocks; this one puts what they find in order. Legend: V size of the vocabulary.
"""

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.checks.check_blocks import Piece, Rules, open_plain, piece_checker, unreadable
from data_pipeline.checks.checking import bar, limited
from data_pipeline.durable import PARTIAL
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, ShardEntry, load_token_counts
from data_pipeline.output import SHARD_NAME
from data_pipeline.parallel import map_in_order
from data_pipeline.report import counted, megabytes

PIECE_BYTES = 128 << 20  # a shard of 64 blocks is one piece
PROCESS_BYTES = 256 << 20  # are checked in the time that starting a process takes
_CHUNK = 1 << 20


def verify(manifest: Manifest, workers: int = 1) -> list[str]:
    """What is wrong with the data set, a line each, naming shard, block and byte; empty when all is well.

    The lines are the same for any number of `workers` (processes), a bounded number for each shard. Memory:
    a block and some counts of the vocabulary for each worker. Raises UserError when a worker process is killed.
    """
    problems = [*_verify_tokenizer(manifest), *limited(_extra_files(manifest), manifest.directory)]
    counts_V = {name: np.zeros(manifest.vocabulary_size, np.int64) for name in manifest.splits}
    work = list(_work(manifest))
    found = map_in_order(piece_checker, (_rules(manifest),), (piece for *_, piece in work), _processes(work, workers))
    lines: list[str] = []
    with bar("verify", _bytes(manifest)) as add:
        for (split, shard, piece), findings in zip(work, found, strict=True):
            counts_V[split] += findings.counts_V
            lines += findings.problems
            add(piece.end - piece.start)
            if piece.is_last:
                problems += _shard_problems(piece.path, shard, lines, findings.checksum)
                lines = []
    # The counts of a damaged block are missing in the sum: a difference would only repeat what is named above.
    return problems + _verify_token_counts(manifest, None if problems else counts_V.get("train"))


def summary(manifest: Manifest, seconds: float) -> str:
    """One sentence on a data set in which `verify` found no problem within `seconds`."""
    splits, size = manifest.splits.values(), _bytes(manifest)
    return (
        f"Data set {manifest.identity[:12]} in {manifest.directory} is whole: "
        f"{counted(sum(len(split.shards) for split in splits), 'shard')}, {megabytes(size)}, "
        f"{counted(sum(split.documents for split in splits), 'document')}, "
        f"{counted(sum(split.tokens for split in splits), 'token')} checked in {seconds:,.1f} s "
        f"({size / 1e6 / max(seconds, 1e-3):,.0f} MB/s)."
    )


def _rules(manifest: Manifest) -> Rules:
    outside = {name: manifest.special_ids[name] for name in ("pad", "cls", "sep", "mask")}
    return Rules(manifest.token_dtype, manifest.vocabulary_size, outside)


def _bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)


def _work(manifest: Manifest) -> Iterator[tuple[str, ShardEntry, Piece]]:
    """Every piece with the name of its split and with its shard."""
    for name, split in manifest.splits.items():
        number = 0
        for shard in split.shards:
            yield from ((name, shard, piece) for piece in _pieces(manifest.directory / shard.name, shard, number))
            number += len(shard.blocks)


def _processes(work: list[tuple[str, ShardEntry, Piece]], workers: int) -> int:
    size = sum(piece.end - piece.start for *_, piece in work)
    return max(1, min(workers, len(work), size // PROCESS_BYTES))


def _pieces(path: Path, shard: ShardEntry, number: int) -> Iterator[Piece]:
    """The shard, whose first block is `number`, in pieces of at most PIECE_BYTES or one block; one when it has none."""
    first, start = 0, 0
    for index, block in enumerate(shard.blocks):
        if index > first and block.offset + block.bytes - start > PIECE_BYTES:
            yield (piece := Piece(path, shard.bytes, shard.blocks[first:index], number + first, start, False))
            first, start = index, piece.end
    yield Piece(path, shard.bytes, shard.blocks[first:], number + first, start, True)


def _verify_tokenizer(manifest: Manifest) -> Iterator[str]:
    path = manifest.tokenizer_folder / "tokenizer.json"
    try:
        checksum = xxhash.xxh3_128_hexdigest(path.read_bytes())
    except OSError as error:
        yield unreadable(path, error)
        return
    if checksum != manifest.tokenizer_checksum:
        yield f"{path}: damaged or another tokenizer: the checksum is not the manifest's"


def _extra_files(manifest: Manifest) -> Iterator[str]:
    known = {shard.name for split in manifest.splits.values() for shard in split.shards}
    for path in sorted(manifest.directory.iterdir()):
        if path.name not in known and SHARD_NAME.fullmatch(path.name.removesuffix(PARTIAL)):
            yield f"{path}: not in the manifest, but a reader that takes every shard of the folder takes it too"


def _verify_token_counts(manifest: Manifest, expected_V: npt.NDArray[np.int64] | None) -> list[str]:
    try:
        found_V = load_token_counts(manifest)
    except DataError as error:
        return [str(error)]
    if expected_V is not None and not np.array_equal(found_V, expected_V):
        return [f"{manifest.directory / manifest.token_counts_name}: not the counts of the ids in the train split"]
    return []


def _shard_problems(path: Path, shard: ShardEntry, lines: list[str], checksum: str | None) -> list[str]:
    """The problems of the file, then those of its blocks; of what all say, as of a missing file, one line."""
    return list(dict.fromkeys([*_file_problems(path, shard, checksum), *limited(lines, path)]))


def _file_problems(path: Path, shard: ShardEntry, checksum: str | None) -> Iterator[str]:
    """Where no worker saw all of the file, its checksum is made here."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.bytes:
                yield f"{path}: {size:,} bytes, the manifest says {shard.bytes:,}"
            elif (checksum or _checksum(file)) != shard.checksum:
                yield f"{path}: damaged: the checksum of the file is not the manifest's"
    except OSError as error:
        yield unreadable(path, error)


def _checksum(file: FileIO) -> str:
    checksum, chunk = xxhash.xxh3_128(), memoryview(bytearray(_CHUNK))
    while size := file.readinto(chunk):
        checksum.update(chunk[:size])
    return checksum.hexdigest()
