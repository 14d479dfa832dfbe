"""While files are checked: a bound on the lines, a bar, and a Ctrl-C that ends the worker processes at once."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from data_pipeline.report import counted

SHOWN_PROBLEMS = 20  # of one shard
QUIET_SECONDS = 1.0  # what takes no longer shows no bar


@contextmanager
def bar(command: str, total_bytes: int) -> Iterator[Callable[[int], object]]:
    """A function to call with the bytes that were checked; shown on standard error where that is a terminal."""
    from tqdm import tqdm

    shown = None if sys.stderr.isatty() else True
    with tqdm(
        total=total_bytes, unit="B", unit_scale=True, desc=command, delay=QUIET_SECONDS, disable=shown, file=sys.stderr
    ) as progress:
        yield progress.update


@contextmanager
def workers_end_at_interrupt() -> Iterator[None]:
    """Ctrl-C ends the worker processes of the body before it raises KeyboardInterrupt here.

    They only read: nothing of theirs needs to be finished, and a large file would keep them busy for long.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def limited(lines: Iterable[str], place: object) -> list[str]:
    """Each line once, SHOWN_PROBLEMS at most; then, for `place`, how many more there are."""
    each = list(dict.fromkeys(lines))
    hidden = len(each) - SHOWN_PROBLEMS
    return [*each[:SHOWN_PROBLEMS], *([f"{place}: and {counted(hidden, 'more problem')}"] if hidden > 0 else [])]
