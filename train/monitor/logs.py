"""Where messages go: every rank has its file in the run folder, the terminal shows rank 0 alone."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from tqdm import tqdm

from train.errors import UserError

log = logging.getLogger("bertmae")


class _Terminal(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _RankFile(logging.FileHandler):
    """A disk that refuses a line costs that line: a traceback for each would hide what the terminal says."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def start_logging(rank: int) -> None:
    """Messages of rank 0 on the terminal; libraries are quiet unless something is wrong."""
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    if rank == 0:
        terminal = _Terminal()
        terminal.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(terminal)
    for library in ("transformers", "torch.distributed", "DeepSpeed", "tensorboard"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed|transformers|tensorboard)(\.|$)")


def add_rank_file(run: Path, rank: int) -> None:
    """RUN/log-rankN.txt, which grows over the restarts of a run. Raises UserError when it cannot be written."""
    try:
        file = _RankFile(run / f"log-rank{rank}.txt", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{run}/log-rank{rank}.txt: cannot be written ({error.strerror})") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
