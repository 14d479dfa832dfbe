"""Verification of a data set: every size, checksum, count, bound and id range, and what is wrong by name."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.durable import PARTIAL
from data_pipeline.errors import DataError
from data_pipeline.manifest import BlockEntry, Manifest, ShardEntry, load_token_counts
from data_pipeline.output import SHARD_NAME
from data_pipeline.shards import END_OF_TAR, block_checksum, map_shard, read_block, word_starts


def verify(manifest: Manifest) -> list[str]:
    """What is wrong with the data set, a line each, naming shard, block and reason; empty when all is well."""
    problems = [*_verify_tokenizer(manifest), *_verify_extra_files(manifest)]
    counts_V = {name: np.zeros(manifest.vocabulary_size, np.int64) for name in manifest.splits}
    for name, split in manifest.splits.items():
        number = 0
        for shard in split.shards:
            problems += _verify_shard(manifest, shard, number, counts_V[name])
            number += len(shard.blocks)
    # The counts of a damaged block are missing in the sum: a difference would only repeat what is named above.
    return problems + _verify_token_counts(manifest, None if problems else counts_V.get("train"))


def _verify_tokenizer(manifest: Manifest) -> Iterator[str]:
    path = manifest.tokenizer_folder / "tokenizer.json"
    try:
        checksum = xxhash.xxh3_128_hexdigest(path.read_bytes())
    except OSError as error:
        yield f"{path}: cannot read: {error.strerror}"
        return
    if checksum != manifest.tokenizer_checksum:
        yield f"{path}: damaged or another tokenizer: the checksum is not the manifest's"


def _verify_extra_files(manifest: Manifest) -> Iterator[str]:
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


def _verify_shard(
    manifest: Manifest, shard: ShardEntry, first_number: int, counts_V: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Problems of one shard; the counts of its sound blocks are added to `counts_V`."""
    path = manifest.directory / shard.name
    try:
        content = map_shard(path)
    except DataError as error:
        yield str(error)
        return
    if len(content) != shard.bytes:
        yield f"{path}: {len(content):,} bytes, the manifest says {shard.bytes:,}"
    elif xxhash.xxh3_128_hexdigest(content) != shard.checksum:
        yield f"{path}: damaged: the checksum of the file is not the manifest's"
    for index, block in enumerate(shard.blocks):
        try:
            counts_V += _block_counts(manifest, content, block, first_number + index)
        except DataError as error:
            yield f"{path}: block {first_number + index:09d} at byte {block.offset:,}: {error}"
    end = shard.blocks[-1].offset + shard.blocks[-1].bytes if shard.blocks else 0
    if content[end:] != END_OF_TAR:
        yield f"{path}: no end-of-archive record after the last block, at byte {end:,}"


def _block_counts(manifest: Manifest, shard: memoryview, entry: BlockEntry, number: int) -> npt.NDArray[np.int64]:
    """How often each id occurs in a block, int64[V]. Raises DataError saying what is wrong with the block."""
    buffer = shard[entry.offset : entry.offset + entry.bytes]
    if len(buffer) != entry.bytes:
        raise DataError(f"the shard ends {entry.bytes - len(buffer):,} bytes too early")
    if block_checksum(buffer) != entry.checksum:
        raise DataError("damaged: the checksum is not the manifest's")
    block = read_block(buffer, entry.tokens, entry.documents)
    if bytes(buffer[:10]) != f"{number:09d}.".encode():
        raise DataError(f"is numbered {bytes(buffer[:9])!r}")
    if block.ids_T.dtype.name != manifest.token_dtype:
        raise DataError(f"ids are {block.ids_T.dtype.name}, the manifest says {manifest.token_dtype}")
    if block.ids_T.size and block.ids_T.max() >= manifest.vocabulary_size:
        raise DataError(f"id {block.ids_T.max()} is not below the vocabulary size {manifest.vocabulary_size}")
    counts_V = np.bincount(block.ids_T, minlength=manifest.vocabulary_size)
    for name in ("pad", "cls", "sep", "mask"):
        if counts_V[manifest.special_ids[name]]:
            raise DataError(f"the special token {name} stands inside")
    if not word_starts(block)[block.offsets_D1[:-1]].all():
        raise DataError("a document does not start with the start of a word")
    return counts_V
