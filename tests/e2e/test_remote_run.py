"""Runs that read from an S3 server through a proxy that goes away, by the real commands, two gloo ranks."""

import json
import pydoc_data.topics
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_commands import ROOT, TINY, command, metrics, start

from data_pipeline.manifest import load_manifest
from train.data.order import lanes_for

pytest.importorskip("s3fs", reason='needs s3fs: pip install -e ".[test]"')
pytest.importorskip("moto", reason='needs moto: pip install -e ".[test]"')
pytest.importorskip("flask_cors", reason='needs flask and flask-cors: pip install -e ".[test]"')

sys.path.insert(0, str(ROOT / "tests" / "integration"))
from range_server import RangeHandler, file_server
from s3_server import s3_server
from store_proxy import StoreProxy

LAUNCH = ["train", "launch", "--nproc-per-node", 2, "pretrain", "configs/demo.yaml", *TINY]
STEPS = 60
SETTINGS = [f"run.steps={STEPS}", "validation.interval_steps=30", "validation.max_rows=8"]
# Far fewer bytes than the data set has: blocks are fetched again and again to the end of the run.
SMALL_CACHE = "data.cache_gigabytes=0.0001"
SOURCES = 40  # a block holds documents of one source


@pytest.fixture(scope="module")
def many_blocks(tmp_path_factory) -> Path:
    """A data set of 40 small blocks and some held-out documents."""
    folder = tmp_path_factory.mktemp("blocks")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    build = ["--tokenizer", folder / "tokenizer", "--output", folder / "shards", "--workers", 1]
    files = [folder / f"{number}.jsonl" for number in range(SOURCES)]
    for number, file in enumerate(files):
        file.write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs[number::SOURCES]))
        build += ["--source", f"s{number}={file}"]
    tokenizer = ["--input", *files, "--output", folder / "tokenizer", "--vocab-size", 600]
    assert command("data_pipeline", "tokenizer", *tokenizer).returncode == 0
    done = command("data_pipeline", "build", *build, "--validation-fraction", 0.02)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture(scope="module")
def local_run(many_blocks, tmp_path_factory) -> Path:
    """The run that reads the folder."""
    run = tmp_path_factory.mktemp("runs") / "local"
    done = command(*LAUNCH, *SETTINGS, f"data.path={many_blocks}", f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def s3_port(many_blocks) -> Iterator[int]:
    """Port of an S3 server that holds the data set at s3://corpus/set."""
    with s3_server(many_blocks, "corpus", "set") as port:
        yield port


@pytest.fixture
def proxy(s3_port, monkeypatch) -> Iterator[StoreProxy]:
    """What the runs take for the S3 server."""
    opened = StoreProxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{opened.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield opened
    opened.off()


def curve(run: Path) -> list[tuple]:
    """What must be bit-equal, held-out losses included."""
    names = ("step", "loss", "grad_norm", "tokens_seen", "epoch", "validation_loss")
    return [tuple(record.get(name) for name in names) for record in metrics(run)]


def logs(run: Path) -> str:
    return "".join(path.read_text() for path in sorted(run.glob("log-rank*.txt")))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[0])


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_a_run_from_a_store_that_goes_away_and_comes_back_is_the_local_run(local_run, proxy, tmp_path):
    """Reference: every loss, gradient norm and held-out loss of the run from the folder; the cache stays small."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    words = [*LAUNCH, *SETTINGS, SMALL_CACHE, "data.path=s3://corpus/set", f"data.cache={cache}"]
    process = start(*words, f"run.directory={run}")
    wait_for(lambda: steps_done(run) >= 5, process)
    proxy.off()
    wait_for(lambda: "no answer" in logs(run), process)
    time.sleep(1)
    waiting = steps_done(run)
    time.sleep(1)
    assert steps_done(run) == waiting < STEPS, "the run must need the store"
    proxy.on()
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert "answers again" in logs(run) and "damaged" not in logs(run)
    assert curve(run) == curve(local_run)
    assert re.search(r"at most 0.0001 GB a node; a window of all lanes has 4\d blocks, 0\.\d\d GB", output), output
    assert "is smaller than a window" in output
    assert sum(path.stat().st_size for path in (cache / "blocks").iterdir()) <= 100_000 + 100
    assert not list(cache.rglob("*.tar"))


@pytest.mark.slow
def test_a_store_that_stays_away_ends_all_ranks_and_the_run_goes_on_later(local_run, proxy, tmp_path):
    """Reference: exit code 2 with one line and a checkpoint, then the losses of the run from the folder."""
    run = tmp_path / "run"
    words = [*LAUNCH, *SETTINGS, SMALL_CACHE, "data.path=s3://corpus/set", f"data.cache={tmp_path / 'cache'}"]
    words += [f"run.directory={run}", "data.store_patience_seconds=3"]
    process = start(*words)
    wait_for(lambda: steps_done(run) >= 5, process)
    proxy.off()
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 2, output
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("bertmae: ")]
    assert len(lines) == 1 and "s3://corpus/set/train-" in lines[0] and "no answer for 3 s" in lines[0], output
    reached = metrics(run)[-1]["step"]
    assert 5 <= reached < STEPS and (run / "checkpoints" / f"step-{reached:08d}").exists()
    proxy.on()
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert f"(step {reached}," in done.stdout
    assert curve(run) == curve(local_run)


def test_a_run_that_waits_for_its_store_stops_when_asked(proxy, many_blocks, tmp_path):
    """Reference: exit code 75 within seconds, not within the patience, and a checkpoint of the step reached."""
    run = tmp_path / "run"
    words = [*LAUNCH, *SETTINGS, SMALL_CACHE, "data.path=s3://corpus/set", f"data.cache={tmp_path / 'cache'}"]
    process = start(*words, f"run.directory={run}")
    wait_for(lambda: steps_done(run) >= 5, process)
    proxy.off()
    wait_for(lambda: "no answer" in logs(run), process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=25)[0]
    assert process.returncode == 75, output
    reached = metrics(run)[-1]["step"]
    assert 5 <= reached < STEPS and (run / "checkpoints" / f"step-{reached:08d}").exists()


@pytest.mark.slow
def test_two_nodes_fetch_each_block_once_between_them(many_blocks, tmp_path, monkeypatch):
    """Reference: the requests that the server saw for whole blocks, and what each node has in its cache.

    Two nodes of two ranks, each with a home of its own, share this machine. A block belongs to one lane and with it to
    one rank, but for those at the border of two lanes.
    """
    pytest.importorskip("aiohttp", reason='needs aiohttp: pip install -e ".[test]"')
    asked: list[tuple[str, str]] = []

    class Listening(RangeHandler):
        def do_GET(self) -> None:
            asked.append((self.path.lstrip("/"), self.headers.get("Range", "")))
            super().do_GET()

    shards = load_manifest(many_blocks).splits["train"].shards
    whole = {
        (shard.name, f"bytes={block.offset}-{block.offset + block.bytes - 1}"): f"{block.checksum}-{block.bytes}"
        for shard in shards
        for block in shard.blocks
    }
    assert len(set(whole.values())) == len(whole) == SOURCES
    with file_server(many_blocks, Listening) as port, socket.create_server(("127.0.0.1", 0)) as free:
        words = ["train", "launch", "--nnodes", 2, "--nproc-per-node", 2, "--master-addr", "127.0.0.1"]
        words += ["--master-port", free.getsockname()[1]]
        free.close()
        settings = ["configs/demo.yaml", *TINY, "run.steps=30", "validation.interval_steps=100"]
        settings += [f"data.path=http://127.0.0.1:{port}", "data.cache=~/cache", f"run.directory={tmp_path / 'run'}"]
        agents = []
        for node in range(2):
            (tmp_path / f"node-{node}").mkdir()
            monkeypatch.setenv("HOME", str(tmp_path / f"node-{node}"))
            agents.append(start(*words, "--node-rank", node, "pretrain", *settings))
        outputs = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert metrics(tmp_path / "run")[-1]["epoch"] < 1, "in the next epoch a block may belong to another rank"
    fetched = Counter(whole[request] for request in asked if request in whole)
    names, borders = set(whole.values()), lanes_for(SOURCES) - 1
    cached = [names & {path.name for path in (tmp_path / f"node-{node}/cache/blocks").iterdir()} for node in range(2)]
    assert all(cached) and len(cached[0] | cached[1]) > SOURCES // 2
    assert len(cached[0] & cached[1]) <= borders
    assert set(fetched) == cached[0] | cached[1]
    assert sum(fetched.values()) <= len(fetched) + borders, "a block is asked for by one rank, at a border by two"
