"""One function over many items in worker processes: results in order, bounded memory, no worker outlives its parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_pipeline.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_IN_FLIGHT = 4  # items per worker: enough that none waits, few enough that memory does not grow with the input

_function: Callable[[Any], Any]  # of this worker process


def map_in_order(
    make_function: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    items: Iterable[Item],
    workers: int,
) -> Iterator[Result]:
    """The results of make_function(*arguments) for every item, in the order of the items, on `workers` processes.

    One worker is this process itself. Raises UserError when a worker process is killed.
    """
    if workers == 1:
        yield from map(make_function(*arguments), items)
        return
    context = multiprocessing.get_context("spawn")  # fork copies locks that threads of the parent may hold
    pool = ProcessPoolExecutor(workers, context, _start_worker, (make_function, arguments))
    try:
        yield from _in_order(pool, items, workers * _IN_FLIGHT)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?); run again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, items: Iterable[Item], in_flight: int) -> Iterator[Any]:
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(_call, item))
        if len(pending) >= in_flight:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _call(item: Any) -> Any:
    return _function(item)


def _start_worker(make_function: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make_function(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
