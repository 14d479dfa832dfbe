"""Data sets behind S3 and HTTP: real servers on this machine, and everything a network does to what they answer."""

import gc
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from range_server import RangeHandler, RangelessHandler, SigningHandler, file_server
from remote_sets import blocks_of, local_bytes, reads_all, write_small_set
from s3_server import s3_server
from store_proxy import StoreProxy

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import Manifest, load_manifest
from train.data.remote import BlockStore, localize

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs", reason='needs s3fs: pip install -e ".[test]"')
pytest.importorskip("moto", reason='needs moto: pip install -e ".[test]"')
pytest.importorskip("flask_cors", reason='needs flask and flask-cors: pip install -e ".[test]"')

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "corpus"
FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 75\r\n\r\n"
    b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>   "
)
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 small blocks."""
    return write_small_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def s3_port(data_set: Manifest) -> Iterator[int]:
    """Port of an S3 server that holds the data set at s3://corpus/sets/one."""
    with s3_server(data_set.directory, BUCKET, "sets/one") as port:
        yield port


@pytest.fixture
def proxy(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProxy]:
    """The proxy before the S3 server; AWS_ENDPOINT_URL points at it, as it does at any server that speaks S3."""
    opened = StoreProxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{opened.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield opened
    opened.set("")
    opened.off()


@pytest.fixture
def open_store(data_set: Manifest, tmp_path: Path) -> Iterator[Callable[..., BlockStore]]:
    """A function that opens a store with short times; all are closed at the end."""
    stores = []

    def open_it(url: str = f"s3://{BUCKET}/sets/one", **options: Any) -> BlockStore:
        defaults = {"cache": tmp_path / "cache", "cache_bytes": 1 << 30, "patience": 20.0, "stall": 1.0}
        stores.append(BlockStore(url, data_set, **(defaults | options)))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the log says, also where another test has started the log of a run."""
    from train.monitor.logs import log

    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger="bertmae")
    return caplog


def test_a_data_set_in_s3_is_the_local_one(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], tmp_path: Path
) -> None:
    """Manifest and blocks; and no byte of a shard is fetched that is not of the blocks asked for."""
    folder = localize(f"s3://{BUCKET}/sets/one", tmp_path)
    assert load_manifest(folder).splits == data_set.splits
    store, before = open_store(), proxy.bytes
    block = blocks_of(data_set)[3]
    assert store.get(*block) == local_bytes(data_set, *block)
    assert block[1].bytes <= proxy.bytes - before < 1.2 * block[1].bytes
    store.prefetch(blocks_of(data_set))
    assert reads_all(store, data_set)
    before = proxy.bytes
    assert reads_all(store, data_set)
    assert proxy.bytes == before  # from the cache


@pytest.mark.parametrize("fault", ["cut", "stall", "flip", UNAVAILABLE], ids=["cut", "stall", "flip", "503"])
def test_an_answer_spoilt_now_and_then_costs_a_retry(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], fault: str | bytes
) -> None:
    """Cut short, never ending, with another byte, an error of the server: the block is right all the same."""
    store = open_store()
    blocks = blocks_of(data_set)
    store.get(*blocks[0])
    for block in blocks[1:3]:
        proxy.set(fault, times=1)
        assert store.get(*block) == local_bytes(data_set, *block)
        assert proxy.faults == 1
        if fault == "stall":
            break


def test_bytes_wrong_twice_are_damage(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore]
) -> None:
    """DataError naming the shard's URL; nothing of it is kept, so the next read is right."""
    store, block = open_store(), blocks_of(data_set)[0]
    proxy.set("flip")
    with pytest.raises(DataError, match=r"s3://corpus/sets/one/train-000000\.tar, block at byte 0: the checksum is"):
        store.get(*block)
    proxy.set("")
    assert store.get(*block) == local_bytes(data_set, *block)


def test_a_store_that_comes_back_in_time_is_waited_for(
    data_set: Manifest,
    proxy: StoreProxy,
    open_store: Callable[..., BlockStore],
    messages: pytest.LogCaptureFixture,
) -> None:
    """The log says once that the store is away and once that it is back; every block is right."""
    store, blocks = open_store(), blocks_of(data_set)
    store.get(*blocks[0])
    proxy.off()
    timer = threading.Timer(1.5, proxy.on)
    timer.start()
    store.prefetch(blocks)
    assert reads_all(store, data_set)
    timer.join()
    said = [record.getMessage() for record in messages.records]
    assert sum("no answer" in text for text in said) == sum("answers again after" in text for text in said) == 1


@pytest.mark.parametrize("fault", ["off", "stall"])
def test_a_store_away_longer_than_patience_ends_the_run_and_a_resumed_one_goes_on(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], fault: str
) -> None:
    """UserError (exit 2) with the URL, the time and the last reason; what was read before is still in the cache."""
    patient, blocks = open_store(), blocks_of(data_set)  # a busy machine may need longer than the times below
    patient.get(*blocks[0])
    patient.close()
    store = open_store(patience=1.2, stall=0.3)
    proxy.off() if fault == "off" else proxy.set("stall")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^s3://corpus/sets/one/train-000000\.tar: no answer for 1 s \(last: .+\)"):
        store.get(*blocks[1])
    assert 1.0 < time.monotonic() - began < 8
    assert store.get(*blocks[0]) == local_bytes(data_set, *blocks[0])
    store.close()
    proxy.set("")
    if fault == "off":
        proxy.on()
    assert reads_all(open_store(), data_set)


def test_close_cuts_off_what_stalls_and_leaves_no_connection_and_no_thread(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore]
) -> None:
    """Close does not wait for the stall's end, nor for the patience of those who fetch ahead or wait for a block."""
    before = {thread for thread in threading.enumerate() if thread.name.startswith("block-store")}
    store, failures = open_store(stall=30.0, patience=600.0), []
    store.get(*blocks_of(data_set)[0])
    proxy.set("stall")

    def wait_for_a_block() -> None:
        try:
            store.get(*blocks_of(data_set)[-1])
        except ValueError as error:
            failures.append(str(error))

    waiting = threading.Thread(target=wait_for_a_block)
    waiting.start()
    store.prefetch(blocks_of(data_set)[:10])
    while proxy.faults < 5:
        time.sleep(0.01)
    began = time.monotonic()
    store.close()
    waiting.join()
    assert time.monotonic() - began < 1
    assert failures == [f"s3://{BUCKET}/sets/one is closed"]
    assert {thread for thread in threading.enumerate() if thread.name.startswith("block-store")} == before
    assert left_alone(proxy)


def left_alone(proxy: StoreProxy) -> bool:
    """Whether soon nobody is connected."""
    gc.collect()
    deadline = time.monotonic() + 5
    while proxy.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    return not proxy.connections


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"s3://{BUCKET}/sets/two", r"s3://corpus/sets/two/manifest\.json: the store has no such file"),
        ("s3://nothing-here/one", r"s3://nothing-here/one/manifest\.json: the store has no such file"),
    ],
)
def test_a_wrong_address_is_told_at_once(proxy: StoreProxy, tmp_path: Path, url: str, text: str) -> None:
    """No such key, no such bucket: one line, without the patience that a store away is given."""
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^{text}"):
        localize(url, tmp_path)
    assert time.monotonic() - began < 5


def test_a_refusal_is_told_at_once(
    data_set: Manifest, proxy: StoreProxy, open_store: Callable[..., BlockStore], tmp_path: Path
) -> None:
    """403 for the manifest and for a block."""
    store = open_store()
    proxy.set(FORBIDDEN)
    for read in (partial(localize, f"s3://{BUCKET}/sets/one", tmp_path), partial(store.get, *blocks_of(data_set)[0])):
        with pytest.raises(UserError, match=r"the store refuses to give it \(Access Denied\); check the credentials"):
            read()


def test_missing_credentials_are_told_at_once(
    proxy: StoreProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment has none, nor any file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"Unable to locate credentials.*check the credentials.*FSSPEC_S3_ANON=true$"):
        localize(f"s3://{BUCKET}/sets/one", tmp_path)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": "true"})  # what fsspec makes of FSSPEC_S3_ANON=true
    assert localize(f"s3://{BUCKET}/sets/one", tmp_path).is_dir()


def test_no_network_is_told_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: StoreProxy) -> None:
    """Nobody listens at that port."""
    proxy.off()
    with pytest.raises(UserError, match=rf"manifest\.json: no answer for 0 s \(last: .*{proxy.port}.*\)"):
        localize(f"s3://{BUCKET}/sets/one", tmp_path, patience=0.3)


@pytest.fixture
def serve(data_set: Manifest) -> Iterator[Callable[[type[RangeHandler]], str]]:
    """A function that serves the data set over HTTP; its URL."""
    with ExitStack() as servers:
        yield lambda handler: f"http://127.0.0.1:{servers.enter_context(file_server(data_set.directory, handler))}"


def test_a_data_set_behind_http_is_the_local_one(
    data_set: Manifest,
    serve: Callable[[type[RangeHandler]], str],
    open_store: Callable[..., BlockStore],
    tmp_path: Path,
) -> None:
    """A signature in the query goes with every request, and into no message."""
    url = serve(SigningHandler)
    assert load_manifest(localize(f"{url}/?signature=secret", tmp_path)).identity == data_set.identity
    assert reads_all(open_store(f"{url}?signature=secret"), data_set)
    with pytest.raises(UserError, match=rf"^{url}/manifest\.json: the store refuses to give it \(HTTP 401") as caught:
        localize(f"{url}/?signature=wrong", tmp_path)
    assert "signature" not in str(caught.value)
    with pytest.raises(UserError, match=rf"^{url}/other/manifest\.json: the store has no such file"):
        localize(f"{url}/other?signature=secret", tmp_path)


def test_a_store_that_is_closed_keeps_no_connection(
    data_set: Manifest, serve: Callable[[type[RangeHandler]], str], open_store: Callable[..., BlockStore]
) -> None:
    """Connections are kept between reads, and no longer."""
    proxy = StoreProxy(int(serve(SigningHandler).rpartition(":")[2]))
    store = open_store(f"http://127.0.0.1:{proxy.port}?signature=secret")
    assert reads_all(store, data_set)
    assert proxy.connections
    store.close()
    assert left_alone(proxy)
    proxy.off()


def test_a_server_without_ranges_is_refused(serve: Callable[[type[RangeHandler]], str], tmp_path: Path) -> None:
    """It would send whole shards; the first small file tells."""
    with pytest.raises(UserError, match="the server ignores ranges"):
        localize(f"{serve(RangelessHandler)}?signature=secret", tmp_path)


def test_a_server_of_an_unknown_authority_is_refused_at_once(
    data_set: Manifest, proxy: StoreProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For s3 and for https: one line with the way out, without the patience that a store away is given."""
    trustme = pytest.importorskip("trustme", reason='needs trustme: pip install -e ".[test]"')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with file_server(data_set.directory, tls=context) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        for address in (f"s3://{BUCKET}/sets/one", f"https://127.0.0.1:{port}"):
            began = time.monotonic()
            with pytest.raises(UserError, match=rf"^{address}/manifest\.json: the server's certificate is not trusted"):
                localize(address, tmp_path)
            assert time.monotonic() - began < 5
