"""Which micro-batch is tried and taken, on measurements that a formula makes up; and what a host has left."""

import math

import pytest

from train.config import Config
from train.estimate import host_memory
from train.estimate.find_micro_batch import report
from train.estimate.micro_batch_search import Room, Trial, candidates, choose, next_size, predict

GB = 10**9


def search(sizes, seconds, peaks, limits, before=(1 * GB,)):
    """The trials in their order, with seconds and peaks by the formulas of the rows."""
    room, trials = Room(tuple(before), tuple(limits)), []
    while (rows := next_size(sizes, trials, room)) is not None:
        assert rows in sizes
        trials.append(Trial(rows, seconds(rows), tuple(peaks(rows))))
        assert len({trial.rows for trial in trials}) == len(trials)
    return trials, room


def best_of_all(sizes, seconds, peaks, limits):
    """The reference: everything is tried."""
    fitting = [r for r in sizes if all(p <= most for p, most in zip(peaks(r), limits, strict=True))]
    return min(fitting, key=lambda r: (seconds(r), r), default=None)


def config(rows, **data):
    encoder = {"hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 512}
    settings = {"data": {"path": "x", "sequence_length": 128, **data}, "model": {"encoder": encoder}}
    changing = {"same_tokens_per_step": True} if data else {}
    return Config.model_validate(settings | {"batch": {"global_batch_size": rows, "micro_batch_size": 4, **changing}})


@pytest.mark.parametrize("limit", [2, 5, 9, 17.5, 30, 33, 50, 100, 1000])
@pytest.mark.parametrize("rows", [64, 96, 240])
def test_what_is_taken_is_the_fastest_of_all_that_fit(limit, rows):
    """Reference: every size tried. Larger ones are faster, and nothing is tried that does not fit."""
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    seconds, peaks, limits = (lambda r: 1 + 1 / r), (lambda r: [(1 + r) * GB]), [limit * GB]
    trials, room = search(sizes, seconds, peaks, limits)
    assert choose(trials, room).rows == best_of_all(sizes, seconds, peaks, limits)
    assert all(room.holds(trial.peaks_R) for trial in trials)


def test_the_rank_with_the_least_memory_decides_for_all():
    """Reference: every size tried; the second rank has a quarter of the first one's memory."""
    sizes, limits = [1, 2, 4, 8, 16, 32], [33 * GB, 9 * GB]
    seconds, peaks = (lambda r: 1 / r), (lambda r: [(1 + r) * GB] * 2)
    trials, room = search(sizes, seconds, peaks, limits, before=[GB, GB])
    assert choose(trials, room).rows == 8 == best_of_all(sizes, seconds, peaks, limits)
    assert predict(trials, room, 16) == (17 * GB, 17 * GB)


def test_what_is_slower_twice_is_not_followed_further():
    """Reference: the fastest of a curve with its best at 6, between two powers of two."""
    sizes = [size for size in range(1, 97) if 96 % size == 0]
    seconds, peaks = (lambda r: 1 + abs(r - 6)), (lambda r: [(1 + r) * GB])
    trials, room = search(sizes, seconds, peaks, [1000 * GB])
    assert choose(trials, room).rows == 6
    assert max(trial.rows for trial in trials) == 32  # as slow as 16 was; 64 is not tried


def test_memory_that_ran_out_ends_the_way_up():
    """Reference: a jump that no line foretells; 8 rows are known to be too many, so nothing from there on is tried."""
    sizes, peaks = [1, 2, 4, 6, 8, 12, 24], (lambda r: [math.inf if r >= 8 else 2 * GB])
    trials, room = search(sizes, lambda r: 1 / r, peaks, [10 * GB])
    assert [trial.rows for trial in trials] == [1, 2, 4, 8, 6]
    assert choose(trials, room).rows == 6
    assert choose(search(sizes, lambda r: 1.0, lambda r: [math.inf], [10 * GB])[0], room) is None


def test_sizes_divide_every_global_batch_over_the_devices():
    """Reference: division."""
    assert candidates(config(96), 1) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96]
    assert candidates(config(96), 4) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert candidates(config(96), 5) == []
    longer = config(96, sequence_length_at=[{"step": 3, "length": 256}, {"step": 9, "length": 512}])
    assert candidates(longer, 4) == [4, 8, 12, 24]  # all divisible by 512 / 128


def test_the_sentence_says_whether_anything_changes():
    """Reference: the configured size."""
    room = Room((GB,), (9 * GB,))
    trials = [Trial(4, 2.0, (2 * GB,)), Trial(8, 1.0, (3 * GB,)), Trial(16, math.inf, (math.inf,))]
    lines = list(report(config(96), [4, 8, 16], trials, room))
    assert lines[-1] == "batch.micro_batch_size is 8 from here on, the fastest that fits; the configuration says 4."
    assert lines[3].split() == ["8", "12,288", "3.00", "9.00"]
    assert lines[4].split() == ["16", "-", "too", "much", "9.00"]
    same = list(report(config(96), [4, 8, 16], trials[:1], room))
    assert same[-1] == "batch.micro_batch_size 4 is the fastest that fits, and the configured one."


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 8000 * 1024),
        ({"": {"a": ("max", 5, 0), "a/b": (6_000_000, 2_000_000, 500_000)}}, 4_500_000),
        ({"": {"a": (3_000_000, 1_000_000, 0), "a/b": (6_000_000, 2_000_000, 0)}}, 2_000_000),
        ({"memory": {"a/b": (1_000_000, 1_500_000, 0)}}, 0),
    ],
)
def test_what_is_available_is_below_every_limit_around_the_process(tmp_path, groups, expected):
    """Reference: the least of MemAvailable and limit - usage + cache, of cgroups of version 2 (no name) and 1."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  8000 kB\n")
    (proc / "self/cgroup").write_text("4:memory:/a/b\n3:cpu:/z\n0::/a/b\n")
    for kind, folders in groups.items():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kind else ("memory.max", "memory.current")
        for folder, (limit, usage, cache) in folders.items():
            group = tmp_path / "cgroup" / kind / folder
            group.mkdir(parents=True, exist_ok=True)
            for name, value in zip(names, (limit, usage), strict=True):
                (group / name).write_text(f"{value}\n")
            (group / "memory.stat").write_text(f"inactive_file {cache}\ntotal_inactive_file {cache}\n")
    assert host_memory.available(proc, tmp_path / "cgroup") == expected


def test_the_peak_of_this_process_is_what_it_took_since_it_was_forgotten():
    """Reference: 64 MB that are written and given back."""
    host_memory.forget_peak()
    before = host_memory.peak()
    taken = bytearray(b"x" * 64_000_000)
    del taken
    assert 60_000_000 < host_memory.peak() - before < 150_000_000
    host_memory.forget_peak()
    assert host_memory.peak() < before + 60_000_000
    assert 0 < host_memory.resident() < host_memory.available() + 2**40
