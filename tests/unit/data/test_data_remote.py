"""Remote data sets: the bytes of the local files, by way of a cache that stays bounded and is shared by processes."""

import fcntl
import gc
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import BlockEntry, Manifest, load_manifest, write_manifest
from train.data.block_cache import BlockCache
from train.data.remote import BlockStore, is_remote, localize

ROOT = Path(__file__).resolve().parents[3]
pytest.importorskip("fsspec")


@pytest.fixture
def whole_set(make_data_set: Callable[..., Manifest]) -> Manifest:
    """Two shards of 30 blocks of different sizes, with a tokenizer and token counts as the pipeline writes them."""
    rng = np.random.default_rng(5)
    shards = [[rng.integers(1, 400, size=rng.integers(1, 12)).tolist() for _ in range(30)] for _ in range(2)]
    manifest = make_data_set(shards)
    folder = manifest.directory
    manifest.tokenizer_folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (manifest.tokenizer_folder / name).write_text(f'"content of {name}"', encoding="utf-8")
    np.save(folder / manifest.token_counts_name, np.arange(manifest.vocabulary_size, dtype=np.int64))
    return rewritten(manifest)


def rewritten(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest written anew with the checksums that its files have."""
    checksums = [
        xxhash.xxh3_128_hexdigest(path.read_bytes())
        for path in (manifest.tokenizer_folder / "tokenizer.json", manifest.directory / manifest.token_counts_name)
    ]
    values = {name: getattr(manifest, name) for name in ("token_dtype", "vocabulary_size", "special_ids", "splits")}
    options = {"settings": {}, "tokenizer_checksum": checksums[0], "token_counts_checksum": checksums[1]}
    return write_manifest(manifest.directory, **(values | options | changes))


def blocks_of(manifest: Manifest) -> list[tuple[str, BlockEntry]]:
    return [(shard.name, block) for shard in manifest.splits["train"].shards for block in shard.blocks]


def local_bytes(manifest: Manifest, shard: str, entry: BlockEntry) -> bytes:
    with (manifest.directory / shard).open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.bytes)


@pytest.fixture
def open_store(whole_set: Manifest, tmp_path: Path) -> Iterator[Callable[..., BlockStore]]:
    """A function that opens a store of the data set's folder by its file:// URL; all are closed at the end."""
    stores = []

    def open_it(cache_bytes: int = 1 << 30, **options: Any) -> BlockStore:
        url = f"file://{whole_set.directory}"
        stores.append(BlockStore(url, whole_set, tmp_path / "cache", cache_bytes, **(options | {"patience": 0.5})))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def cached_bytes(cache: Path) -> int:
    """Bytes of all files of the cache, those being written included; its lock keeps it as it is meanwhile."""
    with (cache / "usage").open("rb") as usage:
        fcntl.flock(usage, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in cache.iterdir() if path.name != "usage")


def test_urls_are_remote_and_paths_are_not() -> None:
    """Whatever has a scheme is a store, whatever a file system could hold is none."""
    assert all(map(is_remote, ("s3://b/x", "gs://b/x", "https://h/x", "S3://b", "memory://x", "file:///x")))
    assert not any(map(is_remote, ("/data/x", "data", "./s3:/b", "C:/x", "", "a b://c", "//host/x")))


def test_localize_brings_the_small_files_and_no_shard(whole_set: Manifest, tmp_path: Path) -> None:
    """The manifest opened from the cache differs from the one of the data set in its folders alone."""
    folder = localize(f"file://{whole_set.directory}", tmp_path / "cache")
    found = load_manifest(folder)
    assert (found.identity, found.splits) == (whole_set.identity, whole_set.splits)
    assert folder == tmp_path / "cache" / whole_set.identity
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    expected = [path for path in whole_set.directory.rglob("*") if path.is_file() and path.suffix != ".tar"]
    assert files == {path.relative_to(whole_set.directory): path.read_bytes() for path in expected}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [whole_set.identity]
    assert localize(f"file://{whole_set.directory}/", tmp_path / "cache") == folder


def test_localize_by_many_at_once_gives_one_whole_folder(whole_set: Manifest, tmp_path: Path) -> None:
    """Eight threads begin together; each gets a folder that opens, and nothing else is left behind."""
    cache, found, barrier = tmp_path / "cache", [], threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        found.append(load_manifest(localize(f"file://{whole_set.directory}", cache)).identity)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [whole_set.identity] * 8
    assert [path.name for path in cache.iterdir()] == [whole_set.identity]


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("<html>please log in</html>", encoding="utf-8")


def _other_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")


def _no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def _other_counts(folder: Path) -> None:
    np.save(folder / "token-counts.npy", np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (_no_manifest, UserError, r"manifest\.json: the store has no such file"),
        (_other_manifest, DataError, r"manifest\.json"),
        (_other_tokenizer, DataError, r"tokenizer/tokenizer\.json: not the tokenizer of the manifest"),
        (_no_tokenizer, UserError, r"tokenizer/tokenizer\.json: the store has no such file"),
        (_other_counts, DataError, r"token-counts\.npy: damaged"),
    ],
)
def test_localize_names_the_url_of_what_is_wrong_and_leaves_nothing(
    whole_set: Manifest, tmp_path: Path, change: Callable[[Path], None], kind: type[Exception], text: str
) -> None:
    """One line that begins with the file's URL; no folder that a later run would take for whole."""
    change(whole_set.directory)
    with pytest.raises(kind, match=text) as caught:
        localize(f"file://{whole_set.directory}", tmp_path / "cache", patience=0.2)
    assert str(caught.value).startswith(f"file://{whole_set.directory}/")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_a_missing_driver_names_the_package(tmp_path: Path) -> None:
    """An address of a kind that nobody knows is the user's mistake as well."""
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(UserError, match=r"gs://b/x: .* pip install gcsfs$"):
            localize("gs://b/x", tmp_path)
    with pytest.raises(UserError, match=r"nonsense://b/x: no address of a store"):
        localize("nonsense://b/x", tmp_path)


def test_blocks_are_those_of_the_local_files(whole_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """Fetched, held, from the cache, and from the cache of a process before: always the shard's bytes, read-only."""
    store = open_store()
    for shard, entry in blocks_of(whole_set):
        assert store.get(shard, entry) == local_bytes(whole_set, shard, entry)
        assert store.get(shard, entry) == local_bytes(whole_set, shard, entry)
        assert store.get(shard, entry).readonly
    expected = [local_bytes(whole_set, shard, entry) for shard, entry in blocks_of(whole_set)]
    for path in whole_set.directory.glob("*.tar"):
        path.unlink()
    other = open_store()
    assert [bytes(other.get(shard, entry)) for shard, entry in blocks_of(whole_set)] == expected


def test_peek_gives_any_part_of_a_shard(whole_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """Reference: a slice of the local file."""
    shard = whole_set.splits["train"].shards[1]
    content = (whole_set.directory / shard.name).read_bytes()
    store = open_store()
    for start, length in ((0, 1), (700, 2000), (len(content) - 5, 5)):
        assert store.peek(shard.name, start, length) == content[start : start + length]


def test_the_cache_stays_within_its_limit_and_never_loses_what_is_held(
    whole_set: Manifest, tmp_path: Path, open_store: Callable[..., BlockStore]
) -> None:
    """Four threads read at random, each holding its last three views; the folder is measured after each read."""
    blocks = blocks_of(whole_set)
    limit = sum(entry.bytes for _, entry in blocks) // 3
    store, cache = open_store(limit), tmp_path / "cache" / "blocks"
    failures, largest = [], []

    def work(seed: int) -> None:
        rng, held = random.Random(seed), []
        for _ in range(150):
            shard, entry = rng.choice(blocks)
            held = [*held[-2:], (store.get(shard, entry), shard, entry)]
            largest.append(cached_bytes(cache))
            for view, its_shard, its_entry in held:
                if view != local_bytes(whole_set, its_shard, its_entry):
                    failures.append("other bytes")
                if not (cache / f"{its_entry.checksum}-{its_entry.bytes}").exists():
                    failures.append("removed while held")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert limit / 2 < max(largest) <= limit


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Reference: a list in the order of use."""
    cache, order, rng = BlockCache(tmp_path, 1600), [], random.Random(3)
    for number in range(50):
        if order and rng.random() < 0.5:
            name = rng.choice(order)
            assert cache.touch(name) if number % 2 else cache.open(name)
            order.remove(name)
        else:
            name = f"{number}"
            cache.add(name, b"x" * 100)
        order.append(name)
        if len(order) > 16:  # one must go, and 1/16 of the limit goes with it
            order = order[2:]
        assert {path.name for path in tmp_path.iterdir()} == {*order, "usage"}
        time.sleep(0.006)  # times of files are as coarse as the kernel's tick


def test_blocks_beyond_a_full_cache_are_read_without_it(
    whole_set: Manifest, tmp_path: Path, open_store: Callable[..., BlockStore]
) -> None:
    """With all that fits held, the rest comes from memory: right bytes, nothing stored, nothing held removed."""
    blocks = blocks_of(whole_set)
    limit = sum(entry.bytes for _, entry in blocks) // 4
    store = open_store(limit)
    held = [(store.get(shard, entry), shard, entry) for shard, entry in blocks]
    assert all(view == local_bytes(whole_set, shard, entry) for view, shard, entry in held)
    assert limit / 2 < cached_bytes(tmp_path / "cache" / "blocks") <= limit


READER = """
import random, sys
from pathlib import Path
from data_pipeline.manifest import load_manifest
from train.data.remote import BlockStore
manifest, cache, limit, seed = load_manifest(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
blocks = [(shard.name, block) for shard in manifest.splits["train"].shards for block in shard.blocks]
content = {name: (manifest.directory / name).read_bytes() for name, _ in blocks}
store, rng, held = BlockStore(f"file://{manifest.directory}", manifest, cache, limit), random.Random(seed), []
print("ready", flush=True)
sys.stdin.readline()
for turn in range(250):
    shard, entry = rng.choice(blocks)
    store.prefetch(rng.sample(blocks, 2))
    held = [*held[-2:], (store.get(shard, entry), content[shard][entry.offset : entry.offset + entry.bytes])]
    assert all(view == expected for view, expected in held), turn
store.close()
print("done", flush=True)
"""


def test_processes_share_a_cache(whole_set: Manifest, tmp_path: Path) -> None:
    """Three processes read at random through one small cache: right bytes, and the limit holds for all together."""
    cache = tmp_path / "cache"
    limit = sum(entry.bytes for _, entry in blocks_of(whole_set)) // 3
    command = [sys.executable, "-c", READER, str(whole_set.directory), str(cache), str(limit)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen([*command, str(seed)], **pipes) for seed in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    largest = 0
    while any(process.poll() is None for process in processes):
        largest = max(largest, cached_bytes(cache / "blocks"))
    assert [process.communicate()[0] for process in processes] == ["done\n"] * 3
    assert limit / 2 < largest <= limit
    assert not list((cache / "blocks").glob("*.partial"))


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    """The lock on a file tells one from the other."""
    code = f"""
import time
from pathlib import Path
from train.data.block_cache import BlockCache
descriptor, path = BlockCache(Path({str(tmp_path)!r}), 1000)._reserve("block", 400)
print(path, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    partial = Path(process.stdout.readline().strip())
    BlockCache(tmp_path, 1000)
    assert partial.stat().st_size == 400
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache = BlockCache(tmp_path, 1000)
    assert not partial.exists()
    assert cache.add("another", b"y" * 900) is not None


def test_a_damaged_file_of_the_cache_is_fetched_again(
    whole_set: Manifest, tmp_path: Path, open_store: Callable[..., BlockStore]
) -> None:
    """A flipped byte, a file cut short and an empty file, as a loss of power leaves them."""
    blocks = blocks_of(whole_set)[:3]
    first = open_store()
    for shard, entry in blocks:
        first.get(shard, entry)
    contents = [local_bytes(whole_set, shard, entry) for shard, entry in blocks]
    damaged = (bytes([contents[0][0] ^ 1]) + contents[0][1:], contents[1][:-7], b"")
    for (_, entry), content in zip(blocks, damaged, strict=True):
        (tmp_path / "cache" / "blocks" / f"{entry.checksum}-{entry.bytes}").write_bytes(content)
    second = open_store()
    assert [bytes(second.get(shard, entry)) for shard, entry in blocks] == contents


def test_a_damaged_shard_is_named_at_once(whole_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """Wrong bytes, a shard cut short, a shard that is not there: DataError with the shard's URL, without waiting."""
    first, second = (shard.name for shard in whole_set.splits["train"].shards)
    blocks, store = blocks_of(whole_set), open_store()
    path = whole_set.directory / first
    content = bytearray(path.read_bytes())
    content[blocks[0][1].offset + 600] ^= 1
    path.write_bytes(content[: blocks[5][1].offset + 100])
    (whole_set.directory / second).unlink()
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"file://.*/{first}, block at byte 0: the checksum is"):
        store.get(*blocks[0])
    assert store.get(*blocks[1])
    for block in (blocks[5], blocks[6]):
        with pytest.raises(DataError, match=rf"file://.*/{first}: ends at byte"):
            store.get(*block)
    with pytest.raises(DataError, match=rf"file://.*/{second}: the store has no such file"):
        store.get(*blocks[-1])
    assert time.monotonic() - began < 0.4


def test_a_manifest_cannot_reach_outside_the_cache(whole_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """A checksum that is a path is refused."""
    document = json.loads((whole_set.directory / "manifest.json").read_bytes())
    document["splits"]["train"]["shards"][0]["blocks"][0][4] = "../../outside"
    (whole_set.directory / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DataError, match="is no checksum"):
        open_store().get(*blocks_of(load_manifest(whole_set.directory))[0])


def test_prefetched_blocks_are_in_the_cache(whole_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """Once they are, the store's shards may go."""
    blocks, store = blocks_of(whole_set), open_store()
    expected = [local_bytes(whole_set, shard, entry) for shard, entry in blocks]
    deadline = time.monotonic() + 10
    while not all(store._cache.touch(store._name(*block)) for block in blocks) and time.monotonic() < deadline:
        store.prefetch(blocks)
        time.sleep(0.01)
    for path in whole_set.directory.glob("*.tar"):
        path.unlink()
    assert [bytes(store.get(*block)) for block in blocks] == expected


def test_close_leaves_no_thread_and_no_open_file(whole_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """A view that is still held stays valid; with the last view its file is closed."""
    before = set(Path("/proc/self/fd").iterdir()), set(threading.enumerate())
    store = open_store()
    store.prefetch(blocks_of(whole_set))
    views = [store.get(*block) for block in blocks_of(whole_set)]
    store.close()
    assert all(view == local_bytes(whole_set, *block) for view, block in zip(views, blocks_of(whole_set), strict=True))
    assert set(threading.enumerate()) <= before[1]
    with pytest.raises(ValueError, match="closed"):
        store.peek(*blocks_of(whole_set)[0][:1], 0, 1)
    del views
    gc.collect()
    assert set(Path("/proc/self/fd").iterdir()) <= before[0]
