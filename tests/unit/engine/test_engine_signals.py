"""Requests to stop: a signal sets a flag and interrupts nothing; only a second INT ends the process."""

import signal
import subprocess

import pytest


@pytest.fixture
def process(start_script):
    """A process with the stop request installed, ready for signals."""
    process = start_script("signal_worker", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    return process


def reason(process):
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def send(process, number):
    """Send a signal and wait until the process has noticed it."""
    process.send_signal(number)
    for _ in range(1000):
        if reason(process) == number.name:
            return
    raise AssertionError("the signal never arrived")


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
