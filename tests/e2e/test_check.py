"""`python -m train check`: every finding a line, all of them listed, and nothing left behind."""

import shutil

from e2e_commands import command


def findings(done) -> dict[str, list[str]]:
    """The lines by their level; every line of the output has one."""
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert {level for level, _ in lines} <= {"ok", "warning", "wrong"}, done.stdout
    return {level: [text for other, text in lines if other == level] for level in ("ok", "warning", "wrong")}


def test_what_is_well_on_two_ranks_is_said_and_nothing_is_written(tiny, tmp_path):
    """Reference: the things a run needs, each with its own line; exit code 0."""
    words = ["train", "launch", "--nproc-per-node", 2, "check", *tiny, f"run.directory={tmp_path}/run"]
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    assert not found["wrong"]
    things = ["ranks: 2 on 1 host", "code and libraries", "shards", "DeepSpeed", "run.directory", "disk", "clocks"]
    assert all(any(line.startswith(thing) for line in found["ok"]) for thing in things), done.stdout
    assert any("all-reduce" in line and "GB/s" in line for line in found["ok"])
    assert not (tmp_path / "run").exists()


def test_everything_that_is_wrong_is_listed_before_exit_code_2(tiny, shards, tmp_path):
    """Reference: a damaged shard, a DeepSpeed configuration that is not there, a folder below a file, a probe whose
    file is not there; one call."""
    broken = shutil.copytree(shards, tmp_path / "shards")
    shard = next(broken.glob("train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])
    mistakes = [f"data.path={broken}", "engine.ds_config=nowhere.json", "run.directory=/dev/null/run"]
    mistakes.append("probes.similarity=[{name: x, path: gone.jsonl}]")
    done = command("train", "check", *tiny, *mistakes)
    assert done.returncode == 2, done.stdout + done.stderr
    wrong = findings(done)["wrong"]
    assert len(wrong) == 4, done.stdout
    things = (shard.name, "nowhere.json", "/dev/null", "gone.jsonl")
    assert [any(thing in line for line in wrong) for thing in things] == [True] * 4
    assert "Traceback" not in done.stderr
