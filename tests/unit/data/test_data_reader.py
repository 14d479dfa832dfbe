"""Reading blocks: what was stored comes back, and every kind of damage is named by shard, block and reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import Manifest
from train.data.reader import ShardReader


def damage(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_blocks_come_back_as_they_were_stored(make_data_set: Callable, stored_documents: Callable, dtype: str) -> None:
    """Reference: the tarfile module and numpy.load."""
    manifest = make_data_set([[[5, 1, 30]], [[12], [8, 9]]], dtype=dtype)
    reader = ShardReader(manifest, "train")
    stored = stored_documents(manifest, "train")
    assert reader.blocks == len(stored) == 3
    for number, documents in enumerate(stored):
        block = reader.block(number)
        assert block.ids_T.tolist() == [token for ids, _ in documents for token in ids]
        starts = np.unpackbits(block.word_bits, count=block.ids_T.size, bitorder="little").astype(bool)
        assert starts.tolist() == [start for _, starts in documents for start in starts]


def test_a_flipped_byte_anywhere_in_a_block_names_shard_block_and_reason(data_set: Manifest) -> None:
    """Reference: the blocks beside it, which read as before."""
    shard = data_set.splits["train"].shards[0]
    for where in (0, 600, shard.blocks[1].bytes // 2, shard.blocks[1].bytes - 1):
        path = data_set.directory / shard.name
        damage(path, shard.blocks[1].offset + where)
        reader = ShardReader(data_set, "train")
        with pytest.raises(DataError, match=r"train-000000\.tar, block 000000001: the checksum is") as caught:
            reader.block(1)
        assert "\n" not in str(caught.value)
        assert reader.block(0).ids_T.size and reader.block(2).ids_T.size
        damage(path, shard.blocks[1].offset + where)


def test_a_truncated_shard_loses_only_the_blocks_that_are_gone(data_set: Manifest) -> None:
    """Reference: the sizes in the manifest."""
    shard = data_set.splits["train"].shards[0]
    path = data_set.directory / shard.name
    path.write_bytes(path.read_bytes()[: shard.blocks[2].offset - 1])
    reader = ShardReader(data_set, "train")
    assert reader.block(0).ids_T.size
    for number in (1, 2):
        with pytest.raises(DataError, match=rf"train-000000\.tar, block 00000000{number}: the shard ends at byte"):
            reader.block(number)


def test_an_empty_or_missing_shard_is_named(data_set: Manifest) -> None:
    """Reference: the other shard, which reads as before."""
    path = data_set.directory / "train-000001.tar"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000001\.tar, block 000000003: the shard ends at byte 0"):
        ShardReader(data_set, "train").block(3)
    path.unlink()
    reader = ShardReader(data_set, "train")
    with pytest.raises(DataError, match=r"train-000001\.tar, block 000000004: No such file"):
        reader.block(4)
    assert reader.block(0).ids_T.size


def test_a_block_is_verified_once(data_set: Manifest) -> None:
    """Reference: the same block after damage: bytes already seen whole are not hashed again by the same reader."""
    reader = ShardReader(data_set, "train")
    first = reader.block(0)
    damage(data_set.directory / "train-000000.tar", data_set.splits["train"].shards[0].blocks[0].bytes - 1)
    assert reader.block(0) is first


def test_an_unknown_split_names_those_there_are(data_set: Manifest) -> None:
    """Reference: the manifest."""
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        ShardReader(data_set, "test")
