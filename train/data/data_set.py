"""Owns what a data set is to training: its manifest, and the store that has its shards where they are not local."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.manifest import Manifest, load_manifest
from train.data.order import window_blocks
from train.data.remote import BlockStore

GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class DataSet:
    """`path` is a folder or a URL, as the user wrote it; `store` is None where the shards lie in manifest.directory."""

    path: str
    manifest: Manifest
    store: BlockStore | None = None

    def window_bytes(self, split: str) -> tuple[int, int]:
        """(blocks, bytes) that one window of all lanes of the order reads before it comes to the next blocks."""
        blocks = [block.bytes for shard in self.manifest.splits[split].shards for block in shard.blocks]
        window = window_blocks(len(blocks))
        return window, window * sum(blocks) // max(1, len(blocks))


def open_data_set(path: str, folder: Path, cache: Path, cache_bytes: int, patience: float, keep: int) -> DataSet:
    """A data set whose small files lie in `folder`; for a URL, its blocks come by way of `cache`.

    `keep` blocks are held open. Raises what load_manifest and BlockStore raise.
    """
    manifest = load_manifest(folder)
    if folder == Path(path):
        return DataSet(path, manifest)
    return DataSet(path, manifest, BlockStore(path, manifest, cache, cache_bytes, patience=patience, keep=keep))
