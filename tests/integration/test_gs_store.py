"""Data sets behind Google Cloud Storage: a real server of its API on this machine, and what a network does to it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_sets import blocks_of, local_bytes, reads_all, write_small_set
from store_proxy import StoreProxy

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import Manifest, load_manifest
from train.data.remote import BlockStore, localize

pytest.importorskip("gcsfs", reason='needs gcsfs: pip install -e ".[test]"')
pytest.importorskip("gcp_storage_emulator", reason='needs gcp-storage-emulator: pip install -e ".[test]"')

from gs_server import gs_server

ADDRESS = "gs://corpus/sets/one"


def answer(status: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 small blocks."""
    return write_small_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def gs_port(data_set: Manifest) -> Iterator[int]:
    """Port of a server that holds the data set at gs://corpus/sets/one."""
    with gs_server(data_set.directory, "corpus", "sets/one") as port:
        yield port


@pytest.fixture
def proxy(gs_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProxy]:
    """The proxy before the server; STORAGE_EMULATOR_HOST points at it."""
    opened = StoreProxy(gs_port)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{opened.port}")
    yield opened
    opened.set("")
    opened.off()


@pytest.fixture
def open_store(data_set: Manifest, tmp_path: Path, proxy: StoreProxy) -> Iterator[Callable[..., BlockStore]]:
    """A function that opens a store with short times; all are closed at the end."""
    stores = []

    def open_it(**options: Any) -> BlockStore:
        defaults = {"cache": tmp_path / "cache", "cache_bytes": 1 << 30, "patience": 20.0, "stall": 1.0}
        stores.append(BlockStore(ADDRESS, data_set, **(defaults | options)))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def test_a_data_set_behind_gs_is_the_local_one(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], tmp_path: Path
) -> None:
    """Manifest and blocks; and no byte of a shard is fetched that is not of the blocks asked for."""
    assert load_manifest(localize(ADDRESS, tmp_path)).splits == data_set.splits
    store, before = open_store(), proxy.bytes
    block = blocks_of(data_set)[3]
    assert store.get(*block) == local_bytes(data_set, *block)
    assert block[1].bytes <= proxy.bytes - before < 1.2 * block[1].bytes
    store.prefetch(blocks_of(data_set))
    assert reads_all(store, data_set)


@pytest.mark.parametrize("fault", ["cut", "stall", "flip", answer(b"503 Service Unavailable")])
def test_an_answer_spoilt_now_and_then_costs_a_retry_of_ours(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], fault: str | bytes
) -> None:
    """The block is right all the same, and soon: the driver does not repeat by itself."""
    store, block = open_store(), blocks_of(data_set)[1]
    proxy.set(fault, times=1)
    began = time.monotonic()
    assert store.get(*block) == local_bytes(data_set, *block)
    assert proxy.faults == 1
    assert time.monotonic() - began < 4


def test_a_store_that_comes_back_in_time_is_waited_for(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore]
) -> None:
    """Every block is right."""
    store = open_store()
    store.get(*blocks_of(data_set)[0])
    proxy.off()
    timer = threading.Timer(1.5, proxy.on)
    timer.start()
    assert reads_all(store, data_set)
    timer.join()


def test_a_store_away_longer_than_patience_ends_the_run_in_one_line(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], capfd: pytest.CaptureFixture[str]
) -> None:
    """UserError with the address and the last reason, and nothing of the driver's on the screen."""
    store = open_store(patience=1.2, stall=0.3)
    proxy.off()
    with pytest.raises(UserError, match=rf"^{ADDRESS}/train-000000\.tar: no answer for 1 s \(last: Cannot connect"):
        store.get(*blocks_of(data_set)[1])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "told"), [(b"403 Forbidden", "the store refuses to give it"), (b"401 Unauthorized", "the store refuses")]
)
def test_a_refusal_is_told_at_once(proxy: StoreProxy, tmp_path: Path, status: bytes, told: str) -> None:
    """One line with the address, without the patience that a store away is given."""
    proxy.set(answer(status))
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^{ADDRESS}/manifest.json: {told}") as caught:
        localize(ADDRESS, tmp_path)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["gs://corpus/sets/two", "gs://nothing-here/one"])
def test_a_wrong_address_is_told_at_once(proxy: StoreProxy, tmp_path: Path, address: str) -> None:
    """No such file, no such bucket."""
    with pytest.raises(UserError, match=f"^{address}/manifest.json: the store has no such file"):
        localize(address, tmp_path)


def test_a_shard_that_ends_too_early_is_damage(data_set: Manifest, open_store: Callable[..., BlockStore]) -> None:
    """Partly there, and not at all: the server gives less than was asked for."""
    shard, size = data_set.splits["train"].shards[0].name, (data_set.directory / "train-000000.tar").stat().st_size
    for start in (size - 10, size + 1000):
        with pytest.raises(DataError, match=rf"ends at byte {size:,}, expected {start + 100:,}; upload it again"):
            open_store().peek(shard, start, 100)
