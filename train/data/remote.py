"""Owns data sets in stores (s3://, gs://, https://): small files in a local folder, blocks by ranged requests."""

import mmap
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from weakref import WeakValueDictionary

import xxhash

from data_pipeline.durable import PARTIAL, write_file, writing
from data_pipeline.errors import BertmaeError, DataError, UserError
from data_pipeline.manifest import MANIFEST_NAME, BlockEntry, Manifest, load_manifest, load_token_counts
from data_pipeline.shards import block_checksum
from train.data.block_cache import BlockCache
from train.data.remote_folder import NotThereError, RemoteFolder
from train.monitor.logs import log

_TOKENIZER_JSON = "tokenizer.json"
# The pipeline writes the first two always and the others where the user's tokenizer has them.
_TOKENIZER_FILES = (_TOKENIZER_JSON, "tokenizer_config.json")
_MORE_TOKENIZER_FILES = ("vocab.txt", "special_tokens_map.json", "added_tokens.json")
_BLOCKS_FOLDER = "blocks"
_AHEAD = 512  # blocks that may wait to be fetched ahead
_KEPT_SHARE = 16  # blocks held for later are at most 1/16 of the cache
_CHECKSUM = re.compile(r"[0-9a-f]{16}")


def is_remote(path: str) -> bool:
    """Whether a path of a data set is a URL of a store, not a folder."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


def localize(url: str, cache: Path, *, patience: float = 60.0, stall: float = 10.0) -> Path:
    """Bring the small files of a data set to `cache`/<identity>, whole or not at all, checked against its manifest.

    The folder has manifest.json, the tokenizer and the token counts; shards stay where they are. Any number of
    processes may do this at once. `patience` and `stall` are seconds, as in BlockStore. Raises UserError where the
    data set is not there, is refused, or the store does not answer; DataError where its files do not fit together.
    """
    remote = RemoteFolder(url, patience, stall)
    try:
        remote.read(MANIFEST_NAME, 0, 1)  # a server that ignores ranges shows itself with a small file
        content = remote.read(MANIFEST_NAME)
        folder = cache / sha256(content).hexdigest()
        if not folder.is_dir():
            _fetch_folder(remote, content, folder)
    finally:
        remote.close()
    return folder


class BlockStore:
    """Verified blocks of a remote data set, by way of a cache that the processes of a node may share.

    Any number of threads may use one store. A block fetched is verified against the manifest, then kept as a file of
    `cache`; the least recently used files go when `cache_bytes` would be exceeded.
    """

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        cache: Path,
        cache_bytes: int,
        *,
        threads: int = 4,
        patience: float = 600.0,
        stall: float = 10.0,
        keep: int = 0,
    ) -> None:
        """Open the cache, a folder on a disk of this node; the store is asked nothing yet.

        `threads` fetch ahead. A read fails when the store gives no answer for `patience` seconds, one request fails
        after `stall` seconds without a byte and is repeated. The `keep` blocks used last are held, fewer in a small
        cache. Raises UserError for a cache that cannot be written and a driver that is not installed.
        """
        self._remote = RemoteFolder(url, patience, stall)
        self._identity = manifest.identity
        self._cache = BlockCache(cache / _BLOCKS_FOLDER, cache_bytes)
        self._held: WeakValueDictionary[str, mmap.mmap] = WeakValueDictionary()
        # What is held cannot be evicted: the ranks of a node must leave room in a small cache.
        self._keep, self._keep_bytes, self._kept_bytes = keep, cache_bytes // _KEPT_SHARE, 0
        self._kept: OrderedDict[str, mmap.mmap] = OrderedDict()  # the last used at the end
        self._verified: set[str] = set()
        self._fetching: dict[str, Future[memoryview]] = {}
        self._lock = threading.Lock()
        self._ahead = ThreadPoolExecutor(threads, thread_name_prefix="block-store")
        self._places = threading.Semaphore(_AHEAD)
        self._full = False

    def get(self, shard: str, entry: BlockEntry) -> memoryview:
        """The verified bytes of a block, read-only; they stay valid, and in the cache, as long as a view is held.

        Each block held costs a file descriptor: hold a few hundred at most. Raises DataError for a block whose bytes
        are wrong twice, a shard that is missing or too short; UserError for a store that is away longer than
        `patience` or refuses; ValueError once closed.
        """
        name = self._name(shard, entry)
        held = self._held.get(name)
        if held is not None:
            return self._used(name, held)
        with self._lock:
            fetching = self._fetching.get(name)
            mine: Future[memoryview] = Future()
            if fetching is None:
                self._fetching[name] = mine
        return fetching.result() if fetching is not None else self._settle(mine, name, shard, entry)

    def prefetch(self, blocks: Iterable[tuple[str, BlockEntry]]) -> None:
        """Fetch blocks (shard, entry) ahead in the background; returns at once.

        At most 512 blocks wait; what is more is left out, so ask again as blocks are used. A failure is not raised
        here: who needs the block meets it.
        """
        for shard, entry in blocks:
            if self._cache.touch(self._name(shard, entry)):
                continue
            if not self._places.acquire(blocking=False):
                return
            self._ahead.submit(self._fetch_ahead, shard, entry)

    def peek(self, shard: str, start: int, length: int) -> bytes:
        """`length` bytes of a shard from byte `start`: neither verified nor cached. Raises what `get` raises."""
        try:
            return self._remote.read(shard, start, length)
        except NotThereError as error:
            raise DataError(f"{error}; upload the data set again") from error

    def name(self, shard: str) -> str:
        """What messages call a shard: its address."""
        return self._remote.name(shard)

    def close(self) -> None:
        """Cut off what is being fetched and end the threads. Views handed out stay valid."""
        self._remote.close()
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()

    def _name(self, shard: str, entry: BlockEntry) -> str:
        """A cached file is named by its content, so a data set that grew finds its old blocks there."""
        if not _CHECKSUM.fullmatch(entry.checksum):  # a manifest from elsewhere must not reach outside the cache
            raise DataError(f"{self._remote.name(MANIFEST_NAME)}: {entry.checksum!r} in {shard} is no checksum")
        return f"{entry.checksum}-{entry.bytes}"

    def _settle(self, mine: Future[memoryview], name: str, shard: str, entry: BlockEntry) -> memoryview:
        """Do what `mine` promises to the other threads that want this block."""
        try:
            view = self._cached(name, entry) or self._fetch(name, shard, entry)
            mine.set_result(view)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._fetching[name]
        return view

    def _cached(self, name: str, entry: BlockEntry) -> memoryview | None:
        mapped = self._cache.open(name)
        if mapped is None:
            return None
        if name not in self._verified and (
            len(mapped) != entry.bytes or block_checksum(memoryview(mapped)) != entry.checksum
        ):
            log.warning("%s: a damaged block in the cache; fetching it again", name)
            self._cache.remove(name)
            return None
        return self._hold(name, mapped)

    def _fetch(self, name: str, shard: str, entry: BlockEntry) -> memoryview:
        content = self._verified_bytes(shard, entry)
        mapped = self._cache.add(name, content)
        if mapped is not None:
            return self._hold(name, mapped)
        if not self._full:
            self._full = True
            log.warning("the cache of %s is too small for the blocks in use; give it more bytes", self._remote.name(""))
        return memoryview(content)

    def _verified_bytes(self, shard: str, entry: BlockEntry) -> bytes:
        for _ in range(2):  # the network may have done it; twice the same is the shard
            content = self.peek(shard, entry.offset, entry.bytes)
            found = block_checksum(content)
            if found == entry.checksum:
                return content
        raise DataError(
            f"{self._remote.name(shard)}, block at byte {entry.offset:,}: the checksum is {found} where the manifest "
            f"has {entry.checksum}; upload the shard again"
        )

    def _hold(self, name: str, mapped: mmap.mmap) -> memoryview:
        self._verified.add(name)
        self._held[name] = mapped
        return self._used(name, mapped)

    def _used(self, name: str, mapped: mmap.mmap) -> memoryview:
        with self._lock:
            replaced = self._kept.pop(name, b"")
            self._kept[name] = mapped
            self._kept_bytes += len(mapped) - len(replaced)
            while len(self._kept) > self._keep or self._kept_bytes > self._keep_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest)
        return memoryview(mapped)

    def _fetch_ahead(self, shard: str, entry: BlockEntry) -> None:
        try:
            self.get(shard, entry)
        except (BertmaeError, ValueError) as error:
            log.debug("fetching ahead: %s", error)
        finally:
            self._places.release()


def _fetch_folder(remote: RemoteFolder, manifest: bytes, folder: Path) -> None:
    """Fetch the small files into a folder beside `folder` and rename it; who comes second throws its own away."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(suffix=PARTIAL, dir=folder.parent, ignore_cleanup_errors=True) as name:
            new = Path(name) / folder.name
            new.mkdir()
            write_file(new / MANIFEST_NAME, manifest)
            try:
                _fetch_files(remote, load_manifest(new))
            except DataError as error:
                raise DataError(str(error).replace(f"{new}/", remote.name(""))) from error
            try:
                new.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise


def _fetch_files(remote: RemoteFolder, manifest: Manifest) -> None:
    counts = manifest.token_counts_name
    write_file(manifest.directory / counts, remote.read(counts))
    load_token_counts(manifest)
    manifest.tokenizer_folder.mkdir()
    for name in (*_TOKENIZER_FILES, *_MORE_TOKENIZER_FILES):
        path = manifest.tokenizer_folder / name
        try:
            content = remote.read(f"{manifest.tokenizer_folder.name}/{name}")
        except UserError as error:
            # S3 says "access denied" for what is not there to those who may not list the bucket.
            if name in _TOKENIZER_FILES:
                raise
            log.debug("optional: %s", error)
            continue
        write_file(path, content)
        if name == _TOKENIZER_JSON and xxhash.xxh3_128_hexdigest(content) != manifest.tokenizer_checksum:
            raise DataError(f"{path}: not the tokenizer of the manifest; upload the whole data set again")
