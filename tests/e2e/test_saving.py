"""Checkpoints beside training, through the real commands: what is in them, when they come, killed, on a full disk."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_commands import ROOT, command, environment, metrics, start

from train.checkpoint import newest_whole
from train.checkpoint_folder import verify

STEPS = 40
# At stage 0 the optimizer's tensors are whole: what is not copied would be written as later steps leave it.
SETTINGS = ["schedule.name=constant", "checkpoint.keep_last=100", "engine.ds_config=ds_configs/zero0.json"]
FILES = ("model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors")


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)


def start_script(*words: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*map(str, words)], cwd=ROOT, env=variables, **pipes)


def saved_steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def done_steps(run: Path) -> int:
    return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0


def content(run: Path, step: int) -> list[bytes]:
    return [(run / "checkpoints" / f"step-{step:08d}" / file).read_bytes() for file in FILES]


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory) -> Path:
    """A run whose last step is 16: nothing happened after its last checkpoint."""
    run = tmp_path_factory.mktemp("runs") / "short"
    done = command("train", "pretrain", *tiny, *SETTINGS, "run.steps=16", f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(short, tiny, tmp_path):
    """Reference: `short`, bit for bit. The kill comes when training is steps ahead of the checkpoint being written."""
    run = tmp_path / "killed"
    given = [*tiny, *SETTINGS, f"run.steps={STEPS}", "checkpoint.interval_steps=8", f"run.directory={run}"]
    worker = Path(__file__).with_name("slow_saving_worker.py")
    process = start_script(sys.executable, worker, 0.7, "pretrain", *given)
    partial = run / "checkpoints" / ".step-00000016.partial"
    wait_for(lambda: (partial / "model.safetensors").exists() and done_steps(run) > 16, process)
    process.kill()
    process.communicate()
    assert partial.exists(), "the checkpoint was committed before the kill"
    found, problems = newest_whole(run / "checkpoints")
    assert (found.step, problems) == (8, [])
    assert (run / "checkpoints" / "latest").read_text() == "step-00000008\n"
    # Slow again: training is ahead of every write, and the files must hold nothing of it.
    process = start_script(sys.executable, worker, 0.2, "pretrain", *given)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert "(step 8," in output
    assert content(run, 16) == content(short, 16)
    assert saved_steps(run) == [0, 8, 16, 24, 32, 40]
    assert not list((run / "checkpoints").glob(".*"))
    told = [int(step) for step in re.findall(r"step (\d+): checkpoint committed", output)]
    assert told == [16, 24, 32, 40]  # in order, and before the run says that it is done
    assert output.index("step 40: checkpoint committed") < output.index("Done: ")
    manifests = [(run / "checkpoints" / f"step-{step:08d}" / "manifest.json").stat().st_mtime_ns for step in told]
    assert manifests == sorted(manifests)


def test_good_checkpoints_are_kept_and_their_steps_recorded(tiny, tmp_path):
    """Reference: the validation losses in metrics.jsonl, and the multiples of keep_every."""
    run = tmp_path / "kept"
    intervals = ["checkpoint.interval_steps=7", "checkpoint.keep_every=11", "checkpoint.keep_last=1"]
    validation = ["validation.interval_steps=3", "validation.max_rows=16", "checkpoint.keep_best=true"]
    # A learning rate that grows until the loss does: the best validation is not the last one.
    rate = ["optimizer.learning_rate=0.3", f"schedule.warmup_steps={STEPS}", "optimizer.gradient_clipping=0.0"]
    given = [*tiny, *intervals, *validation, *rate, f"run.steps={STEPS}", f"run.directory={run}"]
    done = command("train", "pretrain", *given)
    assert done.returncode == 0, done.stderr
    losses = {r["step"]: r["validation_loss"] for r in metrics(run) if r.get("validation_loss") is not None}
    best = min(losses, key=losses.get)
    assert best != STEPS and best % 11, "another learning rate must be chosen for this test"
    assert saved_steps(run) == sorted({11, 22, 33, STEPS, best})
    assert (run / "checkpoints" / "best").read_text() == f"step-{best:08d}\n"
    assert all(verify(path) is None for path in (run / "checkpoints").glob("step-*"))
    falling = {s for s, loss in losses.items() if loss < min([v for t, v in losses.items() if t < s], default=1e9)}
    expected = {7, 14, 21, 28, 35, 11, 22, 33, STEPS} | falling
    recorded = {r["step"]: r["checkpoint_seconds"] for r in metrics(run) if "checkpoint_seconds" in r}
    assert recorded.keys() == expected
    assert all(0 <= seconds < 60 for seconds in recorded.values())
    listed = command("train", "checkpoint", "list", run)
    assert listed.returncode == 0, listed.stderr
    [line] = [line for line in listed.stdout.splitlines() if line.endswith(", best")]
    assert line.split()[0] == str(best)
    assert len(re.findall(r"whole.*, kept for good", listed.stdout)) == 3


def test_minutes_decide_too(tiny, tmp_path):
    """Reference: an interval that is over at every step."""
    run = tmp_path / "minutes"
    intervals = ["checkpoint.interval_minutes=0.000001", "run.steps=5", "schedule.warmup_steps=2"]
    done = command("train", "pretrain", *tiny, *SETTINGS, *intervals, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    assert saved_steps(run) == [0, 1, 2, 3, 4, 5]


def test_a_failed_commit_ends_all_ranks_with_one_line(tiny, tmp_path):
    """Reference: the system's reason. A file where a temporary folder would be cleared away is no full disk."""
    run = tmp_path / "failed"
    given = [*tiny, *SETTINGS, "run.steps=2000", "checkpoint.interval_steps=10", f"run.directory={run}"]
    process = start("train", "launch", "--nproc-per-node", 2, "pretrain", *given)
    wait_for((run / "checkpoints" / "latest").exists, process)
    (run / "checkpoints" / ".step-00009999.partial").write_bytes(b"")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 4, output
    assert "Traceback" not in output
    assert len(re.findall(r"^bertmae: .*cannot write the checkpoint: Not a directory; make room", output, re.M)) == 1


def in_own_mounts(mounts: str, *words: object) -> list[object]:
    """The words before a command that let it see what the shell line `mounts` does; skips where that is not allowed."""
    wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mounts} && exec "$@"', *words]
    if shutil.which("unshare") is None or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount file systems")
    return wrapper


def test_a_folder_that_is_read_only_is_one_line(short, tiny):
    """Reference: exit code 2 and the system's reason; root ignores permissions, but not a mount that is read-only."""
    wrapper = in_own_mounts('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', short)
    before = {path: path.stat().st_mtime_ns for path in short.rglob("*")}
    for words in (["pretrain", *tiny, f"run.directory={short}"], ["export", short, "--output", short / "model"]):
        process = start_script(*wrapper, sys.executable, "-m", "train", *words)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 2, output
        assert re.search(r"^bertmae: .*cannot be written \(Read-only file system\)", output, re.M), output
        assert "Traceback" not in output
    assert before == {path: path.stat().st_mtime_ns for path in short.rglob("*")}


def test_exports_that_find_no_room_cost_warnings_and_no_checkpoint(tiny, tmp_path):
    """Reference: the steps of the run and its checkpoints. The exports lie on a file system too small for one."""
    run = tmp_path / "run"
    (run / "exports").mkdir(parents=True)
    wrapper = in_own_mounts('mount -t tmpfs -o size=64k tmpfs "$0"', run / "exports")
    given = [*tiny, *SETTINGS, "run.steps=4", "schedule.warmup_steps=2", "checkpoint.export_every=2"]
    process = start_script(*wrapper, sys.executable, "-m", "train", "pretrain", *given, f"run.directory={run}")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert re.findall(r"step (\d): no export was written to .*: No space left on device", output) == ["2", "4"]
    assert saved_steps(run) == [0, 2, 4]
    assert verify(run / "checkpoints" / "step-00000004") is None


@pytest.fixture
def on_small_disk(short, tmp_path):
    """Start a run whose checkpoints lie on a file system with room for one and a half, and the filler that takes
    more."""
    size = sum(len(part) for part in content(short, 16))
    run = tmp_path / "small"
    (run / "checkpoints").mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={5 * size // 2} tmpfs "$0" && head -c {size} /dev/zero > "$0/filler"'
    wrapper = in_own_mounts(mount, run / "checkpoints")

    def begin(*words: object) -> tuple[Path, subprocess.Popen[str], Path]:
        given = ["pretrain", *words, f"run.directory={run}", "checkpoint.interval_steps=5", "checkpoint.keep_last=1"]
        process = start_script(*wrapper, sys.executable, "-m", "train", *given)
        return run, process, Path(f"/proc/{process.pid}/root") / (run / "checkpoints" / "filler").relative_to("/")

    return begin


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_no_run(tiny, on_small_disk):
    """Reference: the undisturbed records. The filler goes when the run has said that the disk is full."""
    run, process, filler = on_small_disk(*tiny, "run.steps=60", "schedule.warmup_steps=2")
    log = run / "log-rank0.txt"
    wait_for(lambda: log.exists() and "is full; training goes on" in log.read_text(), process)
    filler.unlink()
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert [record["step"] for record in metrics(run)] == list(range(1, 61))
    text = log.read_text()
    assert text.index("step 5: no checkpoint was written") < text.index("step 60: checkpoint committed")


def test_a_disk_that_is_full_at_the_end_is_an_error(tiny, on_small_disk):
    """Reference: exit code 4 and one line; a run without its last checkpoint is not done."""
    _, process, _ = on_small_disk(*tiny, "run.steps=8", "schedule.warmup_steps=2")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 4, output
    assert "Traceback" not in output
    assert "step 5: no checkpoint was written" in output
    assert len(re.findall(r"^bertmae: .*step-00000008: cannot write the checkpoint: No space left", output, re.M)) == 1
    assert "Done: " not in output
