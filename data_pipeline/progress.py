"""How far a build is: a bar on a terminal, a line every half minute elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from data_pipeline.report import megabytes
from data_pipeline.staging import Amount, new_amounts

LINE_SECONDS = 30.0
NOTHING = Amount(0, 0, 0)
_LOOK_SECONDS = 2.0  # between two looks into the folder of staged ranges

Result = TypeVar("Result")


@dataclass(slots=True)
class _State:
    total_bytes: int
    started: float
    before: Amount  # what an earlier call did
    bytes: int = 0
    documents: int = 0
    tokens: int = 0

    def counts(self) -> str:
        rate = self.tokens / 1e6 / max(time.monotonic() - self.started, 1e-3)
        documents, tokens = self.documents + self.before.documents, self.tokens + self.before.tokens
        return f"{documents:,} documents, {tokens / 1e6:,.1f} M tokens, {rate:,.2f} M tokens/s"

    def line(self) -> str:
        done = self.bytes + self.before.bytes
        seconds = time.monotonic() - self.started
        left = _duration(seconds * (self.total_bytes - done) / self.bytes) if self.bytes else "?"
        share = f"{megabytes(done)} of {megabytes(self.total_bytes)} ({done / max(1, self.total_bytes):.0%})"
        return f"build: {share}, {self.counts()}, {left} left\n"


@contextmanager
def staging_shown(folder: Path, total_bytes: int) -> Iterator[None]:
    """Show how the folder of staged ranges fills, whoever writes there, while the body runs."""
    seen: set[str] = set()
    before = _sum(new_amounts(folder, seen))
    ended = threading.Event()

    def look(add: Callable[[int, int, int], None]) -> None:
        while True:
            last = ended.wait(_LOOK_SECONDS)
            add(*_sum(new_amounts(folder, seen)))
            if last:
                return

    with progress(total_bytes, before) as add:
        watcher = threading.Thread(target=look, args=(add,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextmanager
def progress(
    total_bytes: int, before: Amount = NOTHING, stream: TextIO | None = None, every: float = LINE_SECONDS
) -> Iterator[Callable[[int, int, int], None]]:
    """A function to call with further bytes read, documents and tokens; shown on standard error by default."""
    stream = stream or sys.stderr
    state = _State(total_bytes, time.monotonic(), before)
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


def tasks_shown(what: str, results: Iterable[Result], stream: TextIO | None = None) -> Iterator[Result]:
    """`results` as they come, counted on standard error by default."""
    stream = stream or sys.stderr
    if stream.isatty():
        from tqdm import tqdm

        yield from tqdm(results, desc=f"build: {what}", unit=" tasks", file=stream, leave=False)
        return
    last = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            stream.write(f"build: {what}, {done:,} tasks done\n")
            stream.flush()


def _sum(amounts: Iterable[Amount]) -> Amount:
    return Amount(*(sum(numbers) for numbers in zip(NOTHING, *amounts, strict=True)))


def _bar(state: _State, stream: TextIO) -> Generator[None, int, None]:
    from tqdm import tqdm

    total = state.total_bytes
    with tqdm(total=total, initial=state.before.bytes, unit="B", unit_scale=True, desc="build", file=stream) as bar:
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
