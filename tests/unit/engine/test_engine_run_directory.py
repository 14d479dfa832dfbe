"""The run folder: one process at a time, one model for its whole life."""

import os
import subprocess
import threading

import pytest

from train.config_file import load_config
from train.errors import UserError
from train.run_directory import lock, settle


@pytest.fixture
def tokenizer(tmp_path):
    """A folder that stands for a tokenizer."""
    folder = tmp_path / "data" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


@pytest.fixture
def run(tmp_path):
    """An empty run folder."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def holder(start_script):
    """Start a process that holds a folder; the process and the line it said."""

    def start(folder):
        process = start_script("lock_worker", folder, stdin=subprocess.PIPE)
        return process, process.stdout.readline()

    return start


def test_the_folder_holds_the_whole_configuration_and_the_tokenizer(run, tokenizer, configure):
    """Reference: what was given, read back."""
    config = configure("run.seed=9")
    assert settle(run, config, {"bf16": {"enabled": False}}, tokenizer, begun=False) == []
    assert load_config(run / "config.yaml") == config
    assert (run / "ds_config.json").read_text() == '{\n  "bf16": {\n    "enabled": false\n  }\n}\n'
    assert (run / "tokenizer" / "vocab.txt").read_text() == "[PAD]\n"
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "ds_config.json", "tokenizer"]
    assert settle(run, config, {}, tokenizer) == []


@pytest.mark.parametrize(
    ("override", "key", "old"),
    [
        ("run.seed=1", "run.seed", "0"),
        ("data.sequence_length=8", "data.sequence_length", "16"),
        ("model.encoder.hidden_size=16", "model.encoder.hidden_size", "8"),
        ("model.encoder.hidden_dropout_prob=0.5", "model.encoder.hidden_dropout_prob", "0.0"),
        ("model.decoder.num_hidden_layers=3", "model.decoder.num_hidden_layers", "2"),
        ("objective.name=mae", "objective.name", "mlm"),
        ("objective.mask_ratio=0.3", "objective.mask_ratio", "0.15"),
    ],
)
def test_another_model_is_refused_with_the_key_and_both_values(run, tokenizer, configure, override, key, old):
    """Reference: the configuration of the first start, which stays as it was."""
    settle(run, configure(), {}, tokenizer)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        settle(run, configure(override), {}, tokenizer)
    message = str(caught.value)
    assert f"{run} holds a run with {key} = {old}, the configuration says {override.partition('=')[2]}" in message
    assert len(message.splitlines()) == 1
    assert (run / "config.yaml").read_bytes() == before


def test_what_may_change_is_taken_and_told(run, tokenizer, configure):
    """Reference: the list of changed fields with old and new value; the file then holds the new ones."""
    settle(run, configure(), {}, tokenizer)
    changed = configure(
        "run.steps=200",
        "batch.micro_batch_size=4",
        "optimizer.learning_rate=0.5",
        "schedule.name=cosine",
        "engine.ds_config=ds_configs/zero1.json",
        "checkpoint.keep_last=7",
        "model.gradient_checkpointing=false",
    )
    assert settle(run, changed, {}, tokenizer) == [
        "run.steps was 100 at the last start and is 200 now.",
        "model.gradient_checkpointing was True at the last start and is False now.",
        "batch.micro_batch_size was 2 at the last start and is 4 now.",
        "optimizer.learning_rate was 0.0001 at the last start and is 0.5 now.",
        "schedule.name was linear at the last start and is cosine now.",
        "engine.ds_config was ds_configs/zero2.json at the last start and is ds_configs/zero1.json now.",
        "checkpoint.keep_last was 3 at the last start and is 7 now.",
    ]
    assert load_config(run / "config.yaml") == changed
    assert settle(run, changed, {}, tokenizer) == []


def test_a_damaged_configuration_of_the_run_is_named(run, tokenizer, configure):
    """Reference: the path of the file, and that it is not the one that the user wrote."""
    (run / "config.yaml").write_text("run: [\n")
    with pytest.raises(UserError, match=r"config\.yaml.*own record of its last start"):
        settle(run, configure(), {}, tokenizer)


def test_a_missing_configuration_of_a_run_that_began_is_told(run, tokenizer, configure):
    """Reference: a run that never began, of which nothing is missing."""
    assert settle(run, configure(), {}, tokenizer, begun=False) == []
    (run / "config.yaml").unlink()
    assert settle(run, configure(), {}, tokenizer) == [
        f"{run / 'config.yaml'} is missing: what changed since the last start is not known."
    ]
    assert settle(run, configure(), {}, tokenizer) == []


def test_a_tokenizer_that_cannot_be_copied_leaves_no_half_copy(run, tokenizer, configure):
    """Reference: the folder before; one file is there by name only."""
    (tokenizer / "gone.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"tokenizer: cannot copy the tokenizer \(.*No such file"):
        settle(run, configure(), {}, tokenizer)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "ds_config.json"]


def test_a_second_process_is_refused_until_the_first_one_is_gone_even_by_kill(tmp_path, holder):
    """Reference: real processes; nothing has to be cleaned up after kill -9."""
    folder = tmp_path / "new" / "run"
    first, said = holder(folder)
    assert said == "locked\n"
    _, said = holder(folder)
    assert said.startswith(f"2 {folder}: another process is training in this folder; ")
    with pytest.raises(UserError, match="another process"):
        lock(folder, patience=0)
    first.kill()
    first.wait()
    assert (folder / ".lock").exists()
    _, said = holder(folder)
    assert said == "locked\n"


def test_two_folders_are_held_side_by_side_and_closing_lets_go(tmp_path):
    """Reference: the same lock, taken again."""
    with lock(tmp_path / "a"), lock(tmp_path / "b"), pytest.raises(UserError):
        lock(tmp_path / "a", patience=0)
    lock(tmp_path / "a").close()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    """Reference: the file system; a regular file stands where a folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run.directory .*/file/run: cannot be written \(Not a directory\)") as caught:
        lock(tmp_path / "file" / "run")
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_one_clear_line(run):
    """Reference: the file system."""
    run.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        lock(run, patience=0)


def test_a_run_that_never_began_may_change_in_anything(run, tokenizer, configure, tmp_path):
    """Reference: a first start. A mistake that was corrected before the first checkpoint must not block the folder."""
    settle(run, configure(), {}, tokenizer)
    other = tmp_path / "other-tokenizer"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    changed = configure("run.seed=1", "objective.name=mae")
    assert settle(run, changed, {}, other, begun=False) == []
    assert load_config(run / "config.yaml") == changed
    assert [path.name for path in (run / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_a_folder_whose_holder_is_just_ending_is_waited_for(tmp_path, holder):
    """Reference: a process that holds it and is killed a moment later."""
    first, said = holder(tmp_path / "run")
    assert said == "locked\n"
    threading.Timer(0.5, first.kill).start()
    lock(tmp_path / "run", patience=20).close()
    assert first.wait() < 0
