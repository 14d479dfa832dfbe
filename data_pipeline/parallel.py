"""A function over many items in worker processes, of this machine or MPI's ranks; no worker outlives its parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

from data_pipeline.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_IN_FLIGHT = 4  # items per worker: enough that none waits, few enough that memory does not grow with the input
# Set by the launchers of MPICH, Open MPI and Intel MPI, and by srun for more than one task.
_MPI_VARIABLES = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
_MPI_HELP = "pip install mpich, load the cluster's MPI module, or start one process and give it --workers"

_function: Callable[[Any], Any]  # of this worker process


@dataclass(frozen=True, slots=True)
class Workers:
    """Processes that take items; without an executor this process itself."""

    number: int
    executor: Executor | None = None

    def run(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """function(item) for every item, in the order in which they are done. Raises what the function raises."""
        if self.executor is None:
            yield from map(function, items)
            return
        todo = iter(items)
        pending = {self.executor.submit(function, item) for item in islice(todo, self.number * _IN_FLIGHT)}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {self.executor.submit(function, item) for item in islice(todo, len(done))}
                yield from (future.result() for future in done)
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def open_workers(number: int) -> Iterator[Workers | None]:
    """`number` worker processes, or under mpiexec and srun all ranks but the first.

    None on the ranks that work: there the body has nothing to do, and all of the work is done by then. Raises
    UserError when a worker process is killed, when MPI cannot be used.
    """
    if under_mpi():
        with _mpi_workers() as workers:
            yield workers
    elif number == 1:
        yield Workers(1)
    else:
        with _local_pool(number, None, ()) as pool:
            yield Workers(number, pool)


def under_mpi() -> bool:
    """Whether mpiexec or srun started this process as one of several."""
    return any(name in os.environ for name in _MPI_VARIABLES) or _srun_tasks() > 1


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
    with _local_pool(workers, make_function, arguments) as pool:
        yield from _in_order(pool, items, workers * _IN_FLIGHT)


@contextmanager
def _local_pool(
    workers: int, make_function: Callable[..., Callable[[Any], Any]] | None, arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")  # fork copies locks that threads of the parent may hold
    pool = ProcessPoolExecutor(workers, context, _start_worker, (make_function, arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?); run again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _mpi_workers() -> Iterator[Workers | None]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"started as one of several MPI ranks, but MPI cannot be used: {reason}; {_MPI_HELP}"
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if size == 1 and _srun_tasks() > 1:
        raise UserError(
            f"srun started {_srun_tasks()} tasks, but MPI sees only this one; "
            "use srun --mpi=pmi2 with MPICH, srun --mpi=pmix with Open MPI"
        )
    if size == 1:
        yield Workers(1)
        return
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else Workers(size - 1, cast(Executor, executor))  # it has all we use of one


def _srun_tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


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


def _start_worker(make_function: Callable[..., Callable[[Any], Any]] | None, arguments: tuple[Any, ...]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if make_function:
        _function = make_function(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
