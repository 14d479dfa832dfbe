"""A process that makes no progress ends, with its stacks in the log; one that lives is left alone."""

import os
import socket
import time
from dataclasses import replace

import pytest

from train.errors import UserError
from train.pulse import WAITING, Pulse
from train.rank_states import RankState, behind, sentence
from train.watchdog import Limits, limits_of

LIMIT = 1.5  # seconds, for the processes of these tests
HOST = socket.gethostname()
ALONE = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def play(start_script, tmp_path):
    """Run watchdog_worker on `size` ranks: their exit codes, what they wrote to stderr, and the lines of their logs."""

    def play(behaviour, size=1, limit=LIMIT):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        several = ALONE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
        variables = [several | {"RANK": i, "LOCAL_RANK": i} if size > 1 else ALONE for i in range(size)]
        processes = [start_script("watchdog_worker", tmp_path, limit, behaviour, **own) for own in variables]
        errors = "".join(process.communicate(timeout=60)[1] for process in processes)
        logs = [(tmp_path / f"log-rank{i}.txt").read_text() for i in range(size)]
        return [process.returncode for process in processes], errors, logs

    return play


def said(text):
    """What the watchdog said on the terminal."""
    return [line.removeprefix("bertmae: ") for line in text.splitlines() if line.startswith("bertmae: ")]


def test_a_process_that_hangs_ends_and_says_where(play):
    """Reference: the name of the function it hangs in, the rank, its step and what it said it did."""
    codes, errors, [log] = play("hangs")
    assert codes == [1]
    assert "in sleeps_for_ever" in log
    [line] = said(errors)
    assert line.startswith(f"no progress for 2 s: rank 0 ({HOST}) trains after step 7 since 2 s; the stacks")
    assert log.endswith(f" ERROR {line}\n")


@pytest.mark.parametrize("behaviour", ["lives", "is helped", "starts"])
def test_a_process_that_lives_is_left_alone(play, behaviour):
    """Reference: three times the limit, with signs of progress, with a thread at work, before a start's first step."""
    assert play(behaviour) == ([0], "", [""])


def test_a_library_that_holds_the_interpreters_lock_is_no_way_out(play):
    """Reference: the function that calls it; no thread of Python can run."""
    codes, _, [log] = play("holds the lock", limit=0.5)
    assert codes == [1]
    assert "in holds_the_lock_of_the_interpreter" in log


def test_a_process_whose_log_cannot_be_written_ends_all_the_same(start_script, tmp_path):
    """Reference: a full pipe that nobody empties, which holds up every write for ever."""
    os.mkfifo(tmp_path / "log-rank0.txt")
    pipe = os.open(tmp_path / "log-rank0.txt", os.O_RDWR | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(pipe, bytes(4096))
    process = start_script("watchdog_worker", tmp_path, LIMIT, "hangs", **ALONE)
    assert process.wait(timeout=60) == 1
    os.close(pipe)


def test_ranks_that_all_wait_for_each_other_end(play):
    """Reference: a collective that none of them will leave."""
    codes, errors, logs = play("all wait", size=2)
    assert codes == [1, 1]
    assert all("in sleeps_for_ever" in log for log in logs)
    [line] = said(errors)
    assert f"rank 0 ({HOST}) {WAITING} since 2 s; rank 1 ({HOST}) {WAITING} since 2 s; " in line


def test_a_rank_that_waits_for_one_that_lives_is_left_alone(play):
    """Reference: three times the limit, in a collective that the other one joins then."""
    assert play("first lives", size=2) == ([0, 0], "", ["", ""])


@pytest.mark.parametrize("size", [1, 2])
def test_a_request_during_the_first_step_ends_all_ranks(play, size):
    """Reference: the exit code of a stop; rank 0, where there are two, was not asked. No stacks: nothing hangs."""
    codes, errors, logs = play("is asked in the first step", size=size, limit=30.0)
    assert codes == [75] * size
    [line] = said(errors)
    assert line.startswith(f"stopped in the first step of this start (USR1 on rank {size - 1})")
    assert all(log.count("\n") == 1 and log.endswith(f" ERROR {line}\n") for log in logs)


def test_a_first_step_that_ends_soon_after_a_request_is_left_alone(play):
    """Reference: a process that does its step in half of the time, and then stops by itself as any later step would."""
    assert play("is asked, and the first step ends", limit=30.0) == ([0], "", [""])


def test_the_signs_of_a_step_cost_next_to_nothing():
    """Reference: 50 us a step; a step with 8 micro-batches has 20."""
    pulse, began = Pulse(), time.process_time()
    for _ in range(2_000):
        for _ in range(20):
            pulse.says("trains")
    assert (time.process_time() - began) / 2_000 < 50e-6


# ---------------------------------------------------------------------------------------------------------------------
# Who is behind

TRAINS = RankState(0, "a", 10, "trains", 57, 600.0, 1)
WAITS = replace(TRAINS, doing=WAITING)


def ranks(*states):
    return [replace(state, rank=i, host="abcdefghijklmnop"[i]) for i, state in enumerate(states)]


def test_a_rank_that_does_not_answer_is_behind_whatever_the_others_do():
    """Reference: a stopped process in a collective, as the other one sees it."""
    states = ranks(TRAINS, replace(TRAINS, is_silent=True, seconds=0.5))
    assert behind(states, 600) == states[1:]
    assert sentence(states, 600) == (
        "no progress for 10 min 0 s: rank 1 (b) does not answer, last heard of: trains after step 57; "
        "rank 0 trains after step 57"
    )


def test_who_does_something_itself_is_behind_those_that_wait():
    """Reference: one that waits for data."""
    states = ranks(WAITS, replace(WAITS, doing="waits for data"), WAITS)
    assert sentence(states, 600) == (
        "no progress for 10 min 0 s: rank 1 (b) waits for data after step 57 since 10 min 0 s; "
        "ranks 0, 2 wait for the other ranks"
    )


def test_fewer_steps_and_a_longer_time_are_behind():
    """Reference: hand-made ranks; one that has just given a sign is not behind, however few its steps."""
    states = ranks(TRAINS, replace(TRAINS, step=56), replace(TRAINS, step=None, seconds=3.0), WAITS)
    assert [state.rank for state in behind(states, 600)] == [1]
    states[1] = replace(states[1], step=None)
    assert [state.rank for state in behind(states, 600)] == [1]


def test_of_many_ranks_a_few_are_named():
    """Reference: numbers counted by hand."""
    text = sentence([replace(TRAINS, rank=i) for i in range(1000)], 600)
    assert text.count("since 10 min") == 8 and text.endswith("992 further ranks are as far behind")
    text = sentence([TRAINS, *(replace(WAITS, rank=i) for i in range(1, 1000))], 600)
    assert text.endswith("; ranks 1, 2, 3, 4, 5, 6, 7, 8 and 991 more wait for the other ranks")


def test_what_a_rank_tells_is_heard_as_it_was():
    """Reference: the state itself."""
    assert RankState.load(WAITS.dump()) == WAITS
    assert RankState.load(replace(WAITS, step=None).dump().encode()).step is None


# ---------------------------------------------------------------------------------------------------------------------
# The configuration


def test_a_store_that_may_be_away_has_its_own_time_on_top(configure):
    """Reference: the fields, in seconds."""
    assert limits_of(configure()) == Limits(3600, 600)
    own = ["watchdog.minutes=2.5", "watchdog.start_minutes=null"]
    assert limits_of(configure(*own)) == Limits(None, 150)
    assert limits_of(configure("watchdog.minutes=null")) is None
    assert limits_of(configure("data.path=s3://bucket/shards", "data.store_patience_seconds=90.0")) == Limits(3690, 690)


@pytest.mark.parametrize("mistake", ["watchdog.minutes=0", "watchdog.start_minutes=-1", "watchdog.minutes=91"])
def test_limits_that_are_none_are_refused(configure, mistake):
    """Reference: above 90 minutes a collective would give up first, and say less."""
    with pytest.raises(UserError, match=mistake.partition("=")[0]):
        configure(mistake)
