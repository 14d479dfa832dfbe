"""Checkpoints: whole or absent, verified, and never silently a start from zero."""

import errno
import json
import shutil
import subprocess

import pytest
import torch
from torch import nn

from train.checkpoint import load_weights, newest_whole, read_table, resume_point, save_checkpoint
from train.checkpoint_folder import verify
from train.errors import CheckpointError

FILES = ("model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors", "state.json", "manifest.json")


def tables(step):
    return {name.removesuffix(".safetensors"): {"w": torch.full((4,), float(step))} for name in FILES[:3]}


def save(folder, step, keep_last=2):
    return save_checkpoint(folder, step, tables(step), {"tokens_seen": step * 7}, keep_last)


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of the steps 10 and 20."""
    save(tmp_path / "checkpoints", 10)
    save(tmp_path / "checkpoints", 20)
    return tmp_path / "checkpoints"


@pytest.fixture
def run_worker(run_script):
    """Run a scenario of checkpoint_worker.py; its records."""
    return lambda *arguments, **options: [
        json.loads(line) for line in run_script("checkpoint_worker", *arguments, **options)
    ]


@pytest.fixture
def memory_disk(tmp_path):
    """The words before a command that give it a file system of 256 KiB at tmp_path; None where that is not allowed."""
    mount = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'
    wrapper = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        return None
    return wrapper


# ---------------------------------------------------------------------------------------------------------------------
# What comes back


def test_tensors_and_state_come_back_bit_for_bit(tmp_path):
    """Reference: what was saved, compared as bytes: NaN, infinities, -0.0, denormals, views, scalars, empty ones."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 1 / 3, 3.4e38])
    saved = {
        "model": {"a.b": torch.randn(3, 5).T, "scalar": torch.tensor(1 / 3), "empty": torch.empty(0, 4)},
        "exp_avg": {"a.b": special, "every second": torch.arange(10.0)[::2]},
        "exp_avg_sq": {},
    }
    state = {"tokens_seen": 2**62 + 1, "rate": 0.1 + 0.2, "text": "中文", "data": {"epoch": 1, "position": [2, None]}}
    path = save_checkpoint(tmp_path, 7, saved, state, 1)
    assert path == tmp_path / "step-00000007"
    for table, tensors in saved.items():
        found = read_table(path, table)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].shape == tensor.shape
            assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    checkpoint, problems = newest_whole(tmp_path)
    assert (checkpoint.path, checkpoint.step, checkpoint.state) == (path, 7, {"step": 7, **state})
    assert problems == []


def test_latest_names_the_newest_and_the_folder_holds_nothing_else(folder):
    """Reference: the layout that the documentation promises."""
    assert (folder / "latest").read_text() == "step-00000020\n"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000010", "step-00000020"]
    assert sorted(path.name for path in (folder / "step-00000020").iterdir()) == sorted(FILES)


def test_weights_are_copied_into_a_module_of_the_same_shape(tmp_path):
    """Reference: the module that was saved."""
    torch.manual_seed(0)
    saved, loaded = nn.Linear(3, 2), nn.Linear(3, 2)
    path = save_checkpoint(tmp_path, 1, {"model": dict(saved.named_parameters())}, {}, 1)
    load_weights(loaded, path)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2, bias=False), "parameter bias is missing in the model"),
        (nn.Sequential(nn.Linear(3, 2)), "is missing in the"),
        (nn.Linear(4, 2), r"parameter weight has another shape: \[2, 3\] there, \[2, 4\] here"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_name(tmp_path, model, message):
    """Reference: a Linear(3, 2)."""
    path = save_checkpoint(tmp_path, 1, {"model": dict(nn.Linear(3, 2).named_parameters())}, {}, 1)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, path)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def assert_falls_back(folder, file, what):
    checkpoint, problems = newest_whole(folder)
    assert checkpoint is not None, what
    assert checkpoint.step == 10, what
    assert len(problems) == 1, what
    assert problems[0].startswith(f"{folder / 'step-00000020'}: "), what
    assert len(problems[0].splitlines()) == 1, what


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_bit_is_found(folder, file):
    """Reference: the file before; one bit of every byte is flipped, another one from byte to byte."""
    path = folder / "step-00000020" / file
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        assert_falls_back(folder, file, f"byte {i}")
    path.write_bytes(content)
    assert newest_whole(folder)[0].step == 20


@pytest.mark.parametrize("file", FILES)
def test_any_truncation_and_any_appended_byte_is_found(folder, file):
    """Reference: the file before, cut to every shorter length."""
    path = folder / "step-00000020" / file
    content = path.read_bytes()
    shorter = [content[:length] for length in range(len(content))]
    if file == "manifest.json":
        shorter.pop()  # without its last newline it says the same
    for other in [*shorter, content + b"\0"]:
        path.write_bytes(other)
        assert_falls_back(folder, file, f"{len(other)} bytes")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_found_and_named(folder, file):
    """Reference: the list of files."""
    (folder / "step-00000020" / file).unlink()
    assert_falls_back(folder, file, file)
    assert file in newest_whole(folder)[1][0]


def test_a_file_in_the_place_of_a_folder_is_found(folder):
    """Reference: the checkpoint before."""
    shutil.rmtree(folder / "step-00000020")
    (folder / "step-00000020").write_bytes(b"")
    assert_falls_back(folder, "", "a file")


def test_a_checkpoint_of_another_version_is_not_taken(folder):
    """Reference: the version this code writes."""
    manifest = folder / "step-00000020" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    assert_falls_back(folder, "manifest.json", "version")
    assert "version 2" in newest_whole(folder)[1][0]


def test_a_missing_newest_folder_is_told(folder):
    """Reference: `latest`."""
    shutil.rmtree(folder / "step-00000020")
    checkpoint, problems = newest_whole(folder)
    assert checkpoint.step == 10
    assert problems == [f"{folder / 'step-00000020'}: named by `latest`, but missing"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xff", b"nonsense\n", b"step-00000010\n", b"step-00000020"])
def test_a_damaged_latest_changes_nothing(folder, content):
    """Reference: the folders themselves, which alone decide."""
    (folder / "latest").unlink() if content is None else (folder / "latest").write_bytes(content)
    checkpoint, problems = resume_point(folder, 20)
    assert (checkpoint.step, problems) == (20, [])


def test_every_table_of_a_damaged_file_is_an_error_with_a_name(folder):
    """Reference: the file's name."""
    path = folder / "step-00000020"
    for file in FILES[:3]:
        (path / file).write_bytes(b"no tensors here")
        with pytest.raises(CheckpointError, match=file):
            read_table(path, file.removesuffix(".safetensors"))


# ---------------------------------------------------------------------------------------------------------------------
# Where a run goes on


def test_only_a_run_that_never_began_starts_from_zero(tmp_path):
    """Reference: no folder, an empty folder, and what a process killed in its very first save leaves."""
    assert resume_point(tmp_path / "checkpoints", 0) == (None, [])
    (tmp_path / "checkpoints").mkdir()
    assert resume_point(tmp_path / "checkpoints", 0) == (None, [])
    (tmp_path / "checkpoints" / ".step-00000000.partial").mkdir()
    assert resume_point(tmp_path / "checkpoints", 0) == (None, [])


def remove_everything(folder):
    shutil.rmtree(folder)


def empty_it(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def leave_latest(folder):
    for path in folder.glob("step-*"):
        shutil.rmtree(path)


def damage_both(folder):
    (folder / "step-00000010" / "state.json").write_text("")
    shutil.rmtree(folder / "step-00000020")
    (folder / "step-00000020").mkdir()
    (folder / "latest").unlink()


@pytest.mark.parametrize(
    ("loss", "steps_done"),
    [(remove_everything, 1), (empty_it, 25), (leave_latest, 0), (leave_latest, 25), (damage_both, 0), (damage_both, 9)],
)
def test_a_run_that_began_and_has_nothing_whole_is_an_error(folder, loss, steps_done):
    """Reference: DeepSpeed, which returns None with a warning there. Metrics, `latest` or a folder prove the start."""
    loss(folder)
    with pytest.raises(CheckpointError) as caught:
        resume_point(folder, steps_done)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert len(message.splitlines()) == 1
    assert f"the run reached step {steps_done}" in message
    assert str(folder) in message
    if loss is damage_both:
        assert all(f"step-000000{step}" in message for step in (10, 20))


def test_the_older_whole_one_is_taken_with_a_sentence_for_the_damaged_one(folder):
    """Reference: the folder before the damage."""
    (folder / "step-00000020" / "exp_avg.safetensors").write_bytes(b"")
    checkpoint, problems = resume_point(folder, 25)
    assert checkpoint.step == 10
    assert torch.equal(read_table(checkpoint.path, "model")["w"], torch.full((4,), 10.0))
    assert problems == [
        f"{folder / 'step-00000020'}: exp_avg.safetensors has 0 bytes instead of "
        f"{(folder / 'step-00000010' / 'exp_avg.safetensors').stat().st_size}"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Old ones go, and only old ones


@pytest.mark.parametrize("keep_last", [1, 2, 3, 10])
def test_the_newest_ones_are_kept(tmp_path, keep_last):
    """Reference: the last of the list of saved steps."""
    saved = [0, 5, 10, 99, 100, 1000, 12345678]
    for i, step in enumerate(saved):
        save(tmp_path, step, keep_last)
        assert steps_in(tmp_path) == saved[: i + 1][-keep_last:]
    assert all(verify(path) is None for path in tmp_path.glob("step-*"))


def test_the_checkpoint_just_written_stays_though_damaged_ones_are_newer(tmp_path):
    """Reference: what a run needs that fell back from step 40 to 10 and is stopped at 15."""
    for step in (10, 30, 40):
        save(tmp_path, step, keep_last=5)
    for step in (30, 40):
        (tmp_path / f"step-000000{step}" / "manifest.json").unlink()
    assert newest_whole(tmp_path)[0].step == 10
    save(tmp_path, 15, keep_last=2)
    assert newest_whole(tmp_path)[0].step == 15
    assert verify(tmp_path / "step-00000010") is None
    save(tmp_path, 20, keep_last=1)
    assert newest_whole(tmp_path)[0].step == 20


def test_one_that_cannot_be_removed_stays_and_the_new_one_counts(tmp_path, monkeypatch):
    """Reference: the folder that the system does not let go, as an NFS server may; the one after is whole."""

    def refuse(path):
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    save(tmp_path, 10, keep_last=1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(tmp_path, 20, keep_last=1)
    monkeypatch.undo()
    assert newest_whole(tmp_path)[0].step == 20
    assert steps_in(tmp_path) == [10, 20]
    assert (tmp_path / "latest").read_text() == "step-00000020\n"


def test_all_files_are_readable_as_those_that_python_writes(tmp_path):
    """Reference: the mode of state.json; safetensors gives its files to their owner alone."""
    save(tmp_path, 10)
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "step-00000010").iterdir()}
    assert len(modes) == 5 and set(modes.values()) == {modes["state.json"]}


@pytest.mark.parametrize("is_new_whole", [True, False])
def test_a_process_killed_between_the_renames_of_a_replacement_loses_nothing(tmp_path, is_new_whole):
    """Reference: the new one where it is whole, else the old one; both had the name of the step."""
    folder = tmp_path / "checkpoints"
    final, partial = save(folder, 0), folder / ".step-00000000.partial"
    shutil.copytree(final, partial)
    (partial / "new").touch()
    if not is_new_whole:
        (partial / "manifest.json").unlink()
    final.rename(folder / ".step-00000000.damaged")
    found, problems = resume_point(folder, 0)
    assert (found.step, problems) == (0, [])
    assert (final / "new").exists() == is_new_whole


def test_a_copy_under_another_name_is_never_counted_or_removed(tmp_path):
    """Reference: the copy."""
    save(tmp_path, 10, keep_last=1)
    for name in ("step-00000010-before-the-change", "step-00000010.old"):
        shutil.copytree(tmp_path / "step-00000010", tmp_path / name)
    (tmp_path / "step-00000010.tar").write_bytes(b"x")
    save(tmp_path, 20, keep_last=1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000010-before-the-change",
        "step-00000010.old",
        "step-00000010.tar",
        "step-00000020",
    ]


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_of_the_same_step_makes_way(folder, file):
    """Reference: a first save of that step."""
    (folder / "step-00000020" / file).unlink()
    (folder / "step-00000020" / "stray").mkdir()
    save(folder, 20)
    assert newest_whole(folder)[0].step == 20
    assert sorted(path.name for path in (folder / "step-00000020").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000010", "step-00000020"]


# ---------------------------------------------------------------------------------------------------------------------
# Writing fails


def assert_refused(record, step, reason):
    """One clear line with exit code 4, nothing half-written, and the older checkpoint as it was."""
    kind, code, line = record["error"]
    assert (kind, code) == ("CheckpointError", 4)
    assert len(line.splitlines()) == 1
    assert f"step-{step:08d}: cannot write the checkpoint: " in line
    assert reason in line
    assert record["right"]
    assert record["problems"] == []
    assert {name for name in record["names"] if not name.startswith("step-")} == {"latest"}


def test_a_full_disk_at_any_moment_leaves_the_older_checkpoint_whole(tmp_path, run_worker, memory_disk):
    """Reference: a real file system of 256 KiB, with room for 0, 1, 2, ... pages of 4 KiB until the save succeeds."""
    if memory_disk is None:
        pytest.skip("this machine lets nobody mount a small file system")
    *failed, last = run_worker("full_disk", tmp_path, wrapper=memory_disk)
    assert len(failed) > 3  # at each of the tables at least
    for record in failed:
        assert_refused(record, 2, "No space left on device")
    # Where only `latest` has no room the new one is whole already, and it counts.
    assert {record["step"] for record in failed[:-1]} == {1}
    assert {record["step"] for record in failed[-1:]} <= {1, 2}
    assert (last["step"], last["names"]) == (2, ["latest", "step-00000001", "step-00000002"])


def test_a_file_that_cannot_be_written_leaves_the_older_checkpoint_whole(tmp_path, run_worker):
    """Reference: the system's limit on the size of a file, hit at every file of a checkpoint in turn."""
    records = run_worker("file_limit", tmp_path)
    assert [record["file"] for record in records] == ["model", "exp_avg", "exp_avg_sq", "state", "manifest"]
    for record in records:
        assert_refused(record, 2, "File too large")
        assert (record["step"], record["names"]) == (1, ["latest", "step-00000001"])


def test_a_place_that_is_no_folder_is_one_clear_line(tmp_path):
    """Reference: the file system."""
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint: File exists"):
        save(tmp_path / "checkpoints", 1)
    with pytest.raises(CheckpointError, match="No such file"):
        save(tmp_path / "nowhere" / "checkpoints", 1)


def test_a_process_killed_before_any_file_operation_leaves_a_whole_newest(tmp_path, run_worker, memory_disk):
    """Reference: the checkpoint before and the one being written; either may be found, nothing else, and the next save
    clears up what the killed one left."""
    records = run_worker("killed_everywhere", tmp_path, wrapper=memory_disk or ())
    for case, (before, written) in {"new": (2, 3), "keep one": (2, 3), "replace a damaged one": (1, 2)}.items():
        tries = [record for record in records if record["case"] == case]
        assert [record["status"] for record in tries] == [-9] * (len(tries) - 1) + [0]
        assert len(tries) > 20
        found = [record["step"] for record in tries]
        assert found == sorted(found)  # once committed, always found
        assert set(found) == {before, written}
        assert all(record["right"] for record in tries)
    for record in records:
        assert (record["after"]["step"], record["after"]["right"]) == (4, True)
        assert all(name == "latest" or name.startswith("step-") for name in record["after"]["names"])


def test_a_process_killed_at_random_moments_leaves_a_whole_newest(tmp_path, run_worker):
    """Reference: tensors that are a function of the step; checkpoints of 2 MB, 12 kills in a row."""
    records = run_worker("killed_at_random", tmp_path, 12)
    assert len(records) == 12
    assert all(record["right"] and record["step"] >= record["start"] for record in records)
    assert records[-1]["step"] > 1
