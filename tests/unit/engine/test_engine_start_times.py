"""The parts of a start add up to the time from the start of the process, and are said once."""

import re
import time

import psutil

from train.start_times import StartTimes


def test_the_parts_are_all_the_time_since_the_process_started():
    """Reference: the age of this process as psutil tells it; the sentence comes once."""
    times = StartTimes()
    times.done("imports")
    time.sleep(0.2)
    times.done("engine")
    times.done("imports")
    sentence = times.end("first step")
    age = time.time() - psutil.Process().create_time()
    assert 0.2 <= times.seconds["engine"] < 5
    assert abs(sum(times.seconds.values()) - age) < 1
    found = [float(number) for number in re.findall(r"\d+\.\d", sentence)]
    assert abs(found[0] - sum(found[1:])) < 0.3
    assert list(times.seconds) == ["imports", "engine", "first step"]
    times.done("model")
    assert times.end("first step") is None
    assert "model" not in times.seconds
