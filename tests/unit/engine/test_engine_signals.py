"""Requests to stop or save: a signal, a file or the clock sets a flag; only a second INT ends the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.errors import UserError
from train.signals import _LAUNCHERS, SAVE_FILE, STOP_FILE, StopRequest, who_asked

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def process(start_script):
    """A process with the stop request installed, ready for signals."""
    process = start_script("signal_worker", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    return process


def becomes(condition, seconds=5.0):
    """Wait until it holds; the longest time that it took is what a test allows."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def reason(process):
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def send(process, number):
    """Send a signal and wait until the process has noticed it."""
    process.send_signal(number)
    assert becomes(lambda: reason(process) == number.name), "the signal never arrived"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_asks_to_stop_and_ends_nothing(process, number):
    """Reference: a real process, which goes on and ends by itself."""
    assert reason(process) == "None"
    send(process, number)
    process.stdin.close()
    assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asking_again_ends_nothing(process, number):
    """Reference: a scheduler that sends its signal to the job and to its steps."""
    for _ in range(3):
        send(process, number)
    send(process, signal.SIGINT)
    assert reason(process) == "SIGINT"


def test_a_second_interrupt_ends_the_process_at_once(process):
    """Reference: what a person at a terminal expects of Ctrl-C twice."""
    send(process, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_a_process_that_is_in_a_library_hears_all_the_same(start_script):
    """Reference: a main thread that waits for a lock in C for ever; a second interrupt still ends the process."""
    process = start_script("signal_worker", "busy", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    send(process, signal.SIGTERM)
    send(process, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_a_signal_to_a_forked_child_is_not_heard_by_its_parent(start_script):
    """Reference: a pool of a library, which ends its children by a signal."""
    process = start_script("signal_worker", "forks", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    assert reason(process) == "None"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("launched", [True, False])
def test_the_end_of_a_shell_stops_nothing_and_that_of_a_launcher_does(launched, tmp_path):
    """Reference: a parent that ends while its child waits, as `nohup ... &` leaves one behind, and as torchrun does."""
    told, child = tmp_path / "told", tmp_path / "child.py"
    child.write_text(
        "import time\nfrom pathlib import Path\nfrom train.signals import StopRequest\nstop = StopRequest()\n"
        f"stop.install()\nPath({str(tmp_path / 'ready')!r}).touch()\nstop.wait(3.0)\n"
        f"Path({str(told)!r}).write_text(str(stop.reason))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    environment |= {"TORCHELASTIC_RUN_ID": "1"} if launched else {}
    begin = f"'{sys.executable}' '{child}' & while [ ! -e '{tmp_path}/ready' ]; do sleep 0.05; done"
    subprocess.run(["sh", "-c", begin], env=environment | {"PYTHONPATH": str(ROOT)}, check=True, timeout=60)
    assert becomes(told.exists, 30.0) and becomes(lambda: told.read_text() != "", 5.0)
    assert told.read_text() == ("SIGTERM" if launched else "None")


# ---------------------------------------------------------------------------------------------------------------------
# Files and time


def test_a_file_asks_until_it_is_removed_and_only_once(tmp_path):
    """Reference: the life of a request. After the removal, looking again finds none; a new file is a new request."""
    request = StopRequest()
    request.watch(tmp_path, None)
    for _ in range(2):
        assert not request.wants_save
        (tmp_path / SAVE_FILE).touch()
        assert becomes(lambda: request.wants_save)
        request.remove(tmp_path / SAVE_FILE)
        assert not (tmp_path / SAVE_FILE).exists()
        time.sleep(1.2)  # a look later
    assert not request.wants_save and request.reason is None
    (tmp_path / STOP_FILE).touch()
    assert becomes(lambda: request.reason == "file stop")
    request.remove(tmp_path / STOP_FILE)
    request.remove(tmp_path / STOP_FILE)  # somebody else was faster
    assert not (tmp_path / STOP_FILE).exists()


def test_a_folder_of_that_name_asks_nothing(tmp_path):
    """Reference: it could not be removed as a file is, and would ask for ever."""
    for name in (STOP_FILE, SAVE_FILE):
        (tmp_path / name).mkdir()
    request = StopRequest()
    request.watch(tmp_path, None)
    time.sleep(0.3)
    assert request.reason is None and not request.wants_save


def test_a_file_that_cannot_be_removed_is_one_clear_line(tmp_path):
    """Reference: the file system, which unlinks no folder."""
    (tmp_path / SAVE_FILE).mkdir()
    with pytest.raises(UserError, match=r"save: cannot be removed \(.*\); remove it and start again"):
        StopRequest().remove(tmp_path / SAVE_FILE)


def test_the_time_counts_from_the_beginning_of_the_process(tmp_path):
    """Reference: a request as old as the limit is over at the first look, a younger one is not."""
    old, young = StopRequest(), StopRequest()
    old.started -= 90.0
    for request in (old, young):
        request.watch(tmp_path, 1.5)
    assert becomes(lambda: old.reason is not None)
    assert young.reason is None
    assert who_asked([old.code()], 1.5) == "1.5 minutes are over"


def test_a_signal_counts_more_than_a_file_before_it(tmp_path):
    """Reference: what a log should say is who asked last, and a file does not hide a signal."""
    (tmp_path / STOP_FILE).touch()
    request = StopRequest()
    request.watch(tmp_path, None)
    assert becomes(lambda: request.reason == "file stop")
    request._ask(signal.SIGTERM)
    time.sleep(1.2)
    assert request.reason == "SIGTERM"


def codes(*reasons):
    """What the ranks send, each with a reason or None."""
    requests = [StopRequest() for _ in reasons]
    for request, reason in zip(requests, reasons, strict=True):
        request.reason = reason
    return [request.code() for request in requests]


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        ((None, "SIGTERM"), "TERM on rank 1"),
        (("SIGUSR1",), "USR1 on rank 0"),
        (("SIGTERM", "SIGTERM"), "TERM on all ranks"),
        (("SIGINT", None, "SIGINT"), "INT on ranks 0, 2"),
        (("file stop", None), "file stop"),
        (("time", None), "90 minutes are over"),
        (("file stop", "SIGUSR1", "SIGTERM"), "TERM on rank 2, USR1 on rank 1, file stop"),
        ((None, None), ""),
    ],
)
def test_the_log_says_which_request_it_was_and_by_which_rank(reasons, words):
    """Reference: the words by hand."""
    assert who_asked(codes(*reasons), 90.0) == words
