"""Runs over damaged shards, through the real commands under torchrun, two gloo ranks."""

import json
import pydoc_data.topics
import shutil
from pathlib import Path

import pytest
from e2e_commands import TINY, command, metrics

LAUNCH = ["train", "launch", "--nproc-per-node", 2, "pretrain", "configs/demo.yaml", *TINY]
SETTINGS = ["run.steps=40", "validation.interval_steps=1000", "validation.max_rows=4"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A data set of five blocks: a block holds documents of one source."""
    folder = tmp_path_factory.mktemp("sources")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    files = []
    for number in range(5):
        files.append(folder / f"{number}.jsonl")
        files[-1].write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs[number::5]))
    tokenizer = ["--input", *files, "--output", folder / "tokenizer", "--vocab-size", 600]
    assert command("data_pipeline", "tokenizer", *tokenizer).returncode == 0
    build = ["--tokenizer", folder / "tokenizer", "--output", folder / "shards", "--workers", 1]
    for number, file in enumerate(files):
        build += ["--source", f"s{number}={file}"]
    done = command("data_pipeline", "build", *build)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture
def damaged(sources, tmp_path) -> Path:
    """The same with a bit changed in the third block."""
    folder = Path(shutil.copytree(sources, tmp_path / "shards"))
    (shard,) = json.loads((folder / "manifest.json").read_bytes())["splits"]["train"]["shards"]
    content = bytearray((folder / shard["name"]).read_bytes())
    content[shard["blocks"][2][0] + 2000] ^= 1
    (folder / shard["name"]).write_bytes(content)
    return folder


@pytest.mark.slow
def test_a_run_over_little_damage_names_it_counts_it_and_goes_on(damaged, tmp_path):
    """Reference: the rows of the metrics, and the log of each rank, which names the block once."""
    run = tmp_path / "run"
    done = command(*LAUNCH, *SETTINGS, f"data.path={damaged}", f"run.directory={run}", "data.max_damaged_share=1.0")
    assert done.returncode == 0, done.stderr
    counts = [record["damaged_rows"] for record in metrics(run)]
    assert counts == sorted(counts) and 20 < counts[-1] < 40 * 8 / 2, "about a fifth of 320 rows"
    blocks = [record["damaged_blocks"] for record in metrics(run)]
    assert blocks == sorted(blocks) and blocks[-1] == 1, "both ranks met it"
    for rank in (0, 1):
        log = (run / f"log-rank{rank}.txt").read_text()
        assert log.count("block 000000002: the checksum is") == 1
        assert log.count("WARNING") == 2, "the block, and the incident of the first rows"


def test_a_run_over_much_damage_ends_on_all_ranks_and_goes_on_after_the_repair(damaged, sources, tmp_path):
    """Reference: exit code 3 with one line, a checkpoint of the step reached, then the last step of the run."""
    run = tmp_path / "run"
    words = [*LAUNCH, *SETTINGS, f"data.path={damaged}", f"run.directory={run}"]
    done = command(*words)
    assert done.returncode == 3
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("bertmae: ") and "above data.max_damaged_share 0.001" in line
    assert "Traceback" not in done.stderr
    reached = metrics(run)[-1]["step"]
    assert 1 <= reached < 40 and metrics(run)[-1]["damaged_rows"] <= 10
    assert (run / "checkpoints" / f"step-{reached:08d}").exists()
    shutil.copy(sources / "train-000000.tar", damaged / "train-000000.tar")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert f"(step {reached}," in done.stdout
    assert [record["step"] for record in metrics(run)] == list(range(1, 41))
