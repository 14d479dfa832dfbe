"""The profiler's window: what its files hold, and that nothing of it ends a run."""

import gzip
import json
import logging
import resource

import pytest
import torch
from torch.profiler import record_function

from train.config import Profile
from train.distributed import Ranks
from train.monitor.logs import log
from train.monitor.profile import Window


@pytest.fixture
def said():
    """What the log says, line by line."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keep, level = Keep(), log.level
    log.addHandler(keep)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(keep)
    log.setLevel(level)


def ranks(rank=0):
    return Ranks(rank=rank, world_size=2, local_rank=rank, device=torch.device("cpu"), host_group=None)


def run(window, steps):
    """Steps that leave their number and a matrix product in the trace."""
    for step in steps:
        window.before(step)
        with record_function(f"our operation {step}"):
            torch.ones(8, 8) @ torch.ones(8, 8)
        window.after(step)
    window.close()


def names(path):
    return [event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]


def test_the_trace_holds_the_operations_of_its_steps_and_of_no_other(tmp_path, said):
    """Reference: an annotation with the number of every step that was run."""
    run(Window(Profile(start_step=3, steps=2), tmp_path, ranks()), range(1, 8))
    trace, table = (tmp_path / "profile" / f"rank0-steps-3-4{end}" for end in (".pt.trace.json.gz", ".txt"))
    assert sorted((tmp_path / "profile").iterdir()) == sorted([trace, table])
    found = names(trace)
    assert [name for name in found if name.startswith("our operation")] == ["our operation 3", "our operation 4"]
    assert [name for name in found if name.startswith("ProfilerStep")] == ["ProfilerStep#3", "ProfilerStep#4"]
    assert found.count("aten::mm") == 2
    assert "aten::mm" in table.read_text()
    assert "Steps 3 to 4 are profiled" in said[0]
    assert str(trace) in said[1]
    assert "perfetto" in said[1]


def test_a_run_that_ends_inside_the_window_leaves_the_steps_until_then(tmp_path):
    """Reference: the steps that were done; one that was begun and not done gives its name to no file."""
    window = Window(Profile(start_step=2, steps=5), tmp_path, ranks())
    for step in (1, 2, 3):
        window.before(step)
        window.after(step)
    window.before(4)
    window.close()
    assert "ProfilerStep#3" in names(tmp_path / "profile" / "rank0-steps-2-3.pt.trace.json.gz")


@pytest.mark.parametrize(
    ("start_step", "rank", "steps"), [(None, 0, range(1, 9)), (2, 1, range(1, 9)), (2, 0, range(3, 9))]
)
def test_nothing_is_profiled_unasked_on_another_rank_or_where_the_step_is_past(tmp_path, said, start_step, rank, steps):
    """Reference: no file and no word."""
    run(Window(Profile(start_step=start_step, steps=3), tmp_path, ranks(rank)), steps)
    assert list(tmp_path.iterdir()) == []
    assert said == []


def test_a_folder_that_cannot_be_written_costs_the_trace_and_a_warning(tmp_path, said):
    """Reference: the file that stands in the folder's place, and every step done."""
    (tmp_path / "profile").write_text("a file")
    run(Window(Profile(start_step=1, steps=1), tmp_path, ranks()), range(1, 4))
    assert (tmp_path / "profile").read_text() == "a file"
    assert "no trace is written" in said[-1]


@pytest.mark.parametrize(("most", "left"), [(100, []), (5_000, ["rank0-steps-1-1.txt"])])
def test_a_full_disk_costs_the_trace_and_leaves_no_part_of_it(tmp_path, said, most, left):
    """Reference: what fits below a limit of the size of files. The profiler itself does not notice."""
    window = Window(Profile(start_step=1, steps=1), tmp_path, ranks())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        run(window, range(1, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in (tmp_path / "profile").iterdir()] == left
    assert "no trace is written" in said[-1]
    assert "perfetto" not in "".join(said)


def test_memory_on_a_processor_is_a_sentence(tmp_path, said):
    """Reference: that there is no snapshot."""
    run(Window(Profile(start_step=1, steps=1, memory=True), tmp_path, ranks()), range(1, 3))
    assert any("no snapshot is written" in line for line in said)
    assert list((tmp_path / "profile").glob("*.pickle")) == []
