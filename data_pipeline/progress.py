"""How far a build is: a bar on a terminal, a line every half minute elsewhere."""

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from data_pipeline.report import megabytes

LINE_SECONDS = 30.0


@dataclass(slots=True)
class _State:
    total_bytes: int
    started: float
    bytes: int = 0
    documents: int = 0
    tokens: int = 0

    def counts(self) -> str:
        rate = self.tokens / 1e6 / max(time.monotonic() - self.started, 1e-3)
        return f"{self.documents:,} documents, {self.tokens / 1e6:,.1f} M tokens, {rate:,.2f} M tokens/s"

    def line(self) -> str:
        share = self.bytes / max(1, self.total_bytes)
        left = _duration((time.monotonic() - self.started) * (1 / share - 1)) if share else "?"
        done = f"{megabytes(self.bytes)} of {megabytes(self.total_bytes)} ({share:.0%})"
        return f"build: {done}, {self.counts()}, {left} left\n"


@contextmanager
def progress(
    total_bytes: int, stream: TextIO | None = None, every: float = LINE_SECONDS
) -> Iterator[Callable[[int, int, int], None]]:
    """A function to call with the bytes read, documents and tokens of each unit; shown on standard error by default."""
    stream = stream or sys.stderr
    state = _State(total_bytes, time.monotonic())
    show = _bar(state, stream) if stream.isatty() else _lines(state, stream, every)
    next(show)

    def add(read: int, documents: int, tokens: int) -> None:
        state.bytes += read
        state.documents += documents
        state.tokens += tokens
        show.send(read)

    try:
        yield add
    finally:
        show.close()


def _bar(state: _State, stream: TextIO) -> Generator[None, int, None]:
    from tqdm import tqdm

    with tqdm(total=state.total_bytes, unit="B", unit_scale=True, desc="build", file=stream) as bar:
        while True:
            read = yield
            bar.set_postfix_str(state.counts(), refresh=False)
            bar.update(read)


def _lines(state: _State, stream: TextIO, every: float) -> Generator[None, int, None]:
    last = time.monotonic()
    while True:
        yield
        if time.monotonic() - last >= every:
            last = time.monotonic()
            stream.write(state.line())
            stream.flush()


def _duration(seconds: float) -> str:
    """ "0:00:07", "11:30:00"."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
