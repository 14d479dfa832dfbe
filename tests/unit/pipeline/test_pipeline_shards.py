"""The shard format: plain tar for others, exact views for us, and no malformed byte that passes or crashes."""

import io
import tarfile
import warnings

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shards import MEMBERS, ShardWriter, block_checksum, encode_block, read_block, word_starts


def random_block(seed, documents, dtype=np.uint16):
    """Arrays of a block: ids, document bounds, word starts."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, documents)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
    ids = rng.integers(0, np.iinfo(dtype).max, offsets[-1], dtype, endpoint=True)
    return ids, offsets, rng.random(offsets[-1]) < 0.6


def write_shard(path, blocks, source="text"):
    with ShardWriter(path) as shard:
        for number, (ids, offsets, starts) in enumerate(blocks):
            shard.write(encode_block(number, ids, offsets, starts, source), ids.size, offsets.size - 1)
        return shard.finish()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_read_block_returns_what_was_written_as_views(tmp_path, dtype):
    """Reference: the arrays that were written."""
    blocks = [random_block(seed, documents, dtype) for seed, documents in enumerate([1, 7, 300])]
    entry = write_shard(tmp_path / "train-000000.tar", blocks)
    content = memoryview((tmp_path / "train-000000.tar").read_bytes())
    assert len(content) == entry.bytes
    for block, (ids, offsets, starts) in zip(entry.blocks, blocks, strict=True):
        buffer = content[block.offset : block.offset + block.bytes]
        read = read_block(buffer, block.tokens, block.documents)
        assert block_checksum(buffer) == block.checksum
        assert read.ids_T.dtype == dtype
        np.testing.assert_array_equal(read.ids_T, ids)
        np.testing.assert_array_equal(read.offsets_D1, offsets)
        np.testing.assert_array_equal(word_starts(read), starts)
        assert np.shares_memory(read.ids_T, np.frombuffer(content, np.uint8)), "a copy was made"


def test_webdataset_reads_the_same_arrays(tmp_path):
    """Reference: webdataset's own reader and decoder."""
    blocks = [random_block(seed, 50) for seed in range(3)]
    path = tmp_path / "train-000000.tar"
    write_shard(path, blocks, source="书")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the file to the garbage collector
        samples = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["000000000", "000000001", "000000002"]
    for sample, (ids, offsets, starts) in zip(samples, blocks, strict=True):
        np.testing.assert_array_equal(sample["ids.npy"], ids)
        np.testing.assert_array_equal(sample["offsets.npy"], offsets)
        bits = np.unpackbits(sample["words.npy"], bitorder="little")[: ids.size]
        np.testing.assert_array_equal(bits.astype(bool), starts)
        assert sample["json"] == {"source": "书", "documents": 50, "tokens": ids.size}


def test_tar_headers_hold_nothing_of_the_machine(tmp_path):
    """Reference: tarfile's reading of the headers."""
    entry = write_shard(tmp_path / "train-000000.tar", [random_block(0, 5), random_block(1, 5)])
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{block:09d}.{member}" for block in range(2) for member in MEMBERS]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert (member.mode, member.pax_headers, member.type) == (0o644, {}, tarfile.REGTYPE)
    assert members[-1].offset_data + members[-1].size <= entry.bytes - 1024


def test_the_bytes_of_a_block_stay_as_they_are():
    """Reference: a checksum written down; when it moves, every data set in the world gets another identity."""
    block = encode_block(
        7, np.arange(3, dtype=np.uint16), np.array([0, 3], np.uint32), np.array([1, 0, 1], bool), "text"
    )
    assert block_checksum(block) == "59b78d807a320dc6"


def test_an_interrupted_shard_leaves_no_file(tmp_path):
    """Leaving the `with` by an exception removes the temporary file."""
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path / "train-000000.tar") as shard:
        shard.write(encode_block(0, *random_block(0, 5), "text"), 1, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar.partial"]
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


BLOCK = encode_block(0, *random_block(3, 20), "text")
TOKENS, DOCUMENTS = random_block(3, 20)[0].size, 20


@settings(max_examples=400, deadline=None)
@given(position=st.integers(0, len(BLOCK) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_a_data_error_or_another_checksum(position, bit):
    """Never another exception, never the same checksum."""
    damaged = bytearray(BLOCK)
    damaged[position] ^= 1 << bit
    assert block_checksum(bytes(damaged)) != block_checksum(BLOCK)
    try:
        read_block(memoryview(bytes(damaged)), TOKENS, DOCUMENTS)
    except DataError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=2048))
def test_foreign_bytes_are_a_data_error(content):
    """Never another exception."""
    with pytest.raises(DataError):
        read_block(memoryview(content), TOKENS, DOCUMENTS)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, len(BLOCK) - 1))
def test_a_truncated_block_is_a_data_error(size):
    """At every length."""
    with pytest.raises(DataError):
        read_block(memoryview(BLOCK)[:size], TOKENS, DOCUMENTS)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [([0, 5, 5, 9], "do not rise"), ([1, 5, 6, 9], "do not rise"), ([0, 5, 6, 8], "do not rise"), ([0, 9], "elements")],
)
def test_document_bounds_that_do_not_fit_are_refused(bounds, reason):
    """Empty documents, a wrong start, a wrong end, another number of documents."""
    block = encode_block(0, np.arange(9, dtype=np.uint16), np.array(bounds, np.uint32), np.ones(9, bool), "text")
    with pytest.raises(DataError, match=reason):
        read_block(memoryview(block), 9, 3)


def test_an_object_array_is_refused_without_unpickling(tmp_path):
    """A member that numpy would unpickle is only looked at."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    start = 512
    content = buffer.getvalue() + bytes(-len(buffer.getvalue()) % 512)
    info = tarfile.TarInfo("000000000.ids.npy")
    info.size = len(buffer.getvalue())
    forged = info.tobuf(tarfile.USTAR_FORMAT) + content + BLOCK[start:]
    with pytest.raises(DataError):
        read_block(memoryview(forged), 1, 1)
