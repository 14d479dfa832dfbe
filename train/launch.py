"""torchrun in this process, so that what it returns is our exit code and a user's mistake stays one line."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from train.errors import BertmaeError, CheckpointError, DataError, NonFiniteError, StoppedError, UserError
from train.signals import LAUNCHER

# A worker that ended with one of these has said why in one line of its own.
_VERDICT = "BERTMAE_VERDICT"  # variable with the file for `tell_launch`
_EXPLAINED = {error.exit_code for error in (UserError, DataError, CheckpointError, NonFiniteError, StoppedError)}


def launch(arguments: Sequence[str]) -> int:
    """Run `python -m train` under torchrun: its options come first, then our command. Returns the exit code.

    Without a rendezvous among the options it is `--standalone`: one node, a free port. A request to stop (TERM, INT)
    reaches the workers, which have 30 s to commit a checkpoint; USR1, a scheduler's early one, sets no such limit.
    """
    _pass_on_usr1()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError

    from train.roll_call import call_the_roll

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it would say, we say in one line
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # torchrun's own store keeps the addresses of dead workers; a restart would connect to them (pytorch#135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict"
        os.environ[_VERDICT] = str(verdict)
        options = run.parse_args(_torchrun_arguments(arguments))
        call_the_roll(options.rdzv_endpoint, options.rdzv_id, os.environ)
        try:
            run.run(options)
        except ChildFailedError as error:
            return _explain(error)
        except SignalException:
            return StoppedError.exit_code
        except RendezvousTimeoutError as error:
            raise BertmaeError(
                f"the launchers of {options.nnodes} nodes (--nnodes) did not all come to {options.rdzv_endpoint} in "
                "time: look for their own lines, and whether their nodes are up"
            ) from error
        except RendezvousError as error:
            raise BertmaeError(
                f"the launcher on {socket.gethostname()} cannot reach, or has lost, the one at {options.rdzv_endpoint} "
                "(--rdzv-endpoint): that one or its node has ended, it is another host, or a firewall blocks the port"
            ) from error
        return int(verdict.read_text()) if verdict.exists() else 0


def tell_launch(code: int) -> int:
    """What a worker ends with, whose error all workers have: its own code, or 0 where `launch` gets it in a file.

    torchrun starts everybody again after every other code, however often the same would happen.
    """
    if not launch_listens():
        return code
    Path(os.environ[_VERDICT]).write_text(str(code))
    return 0


def launch_listens() -> bool:
    """Whether `tell_launch` reaches somebody."""
    return _VERDICT in os.environ


def may_be_started_again() -> None:
    """From now on a worker's own error is a failure to torchrun: workers of other nodes may not have it."""
    os.environ.pop(_VERDICT, None)


def _pass_on_usr1() -> None:
    """torchrun would be killed by it. Blocked from here on, in the workers too: it waits until they can hear it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=_usr1_to_workers, daemon=True).start()


def _usr1_to_workers() -> None:
    while True:
        signal.sigwait({signal.SIGUSR1})
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGUSR1)


def _torchrun_arguments(arguments: Sequence[str]) -> list[str]:
    """Our command becomes `-m train COMMAND`, with torchrun's options in front."""
    commands = [i for i, word in enumerate(arguments) if word in ("pretrain", "check", "finetune", "evaluate")]
    if not commands:
        raise UserError("launch: name the command to start, as in: launch --nproc-per-node 2 pretrain CONFIG.yaml")
    options, rest = list(arguments[: commands[0]]), list(arguments[commands[0] :])
    elsewhere = any(option.startswith(("--rdzv", "--standalone", "--master", "--nnodes")) for option in options)
    return [*options, *([] if elsewhere else ["--standalone"]), "-m", "train", *rest]


def _explain(error: BaseException) -> int:
    """The exit code of the first worker that failed; raises the line that a killed worker could not say itself.

    A killed one comes before those that only lost the connection to it, which may end before torchrun looks.
    """
    failures = list(error.failures.values())  # type: ignore[attr-defined]
    first = min(failures, key=lambda f: (f.exitcode not in _EXPLAINED, f.exitcode >= 0, f.timestamp))
    if first.exitcode not in _EXPLAINED:
        how = f"was killed by signal {-first.exitcode}" if first.exitcode < 0 else f"failed with code {first.exitcode}"
        raise BertmaeError(
            f"a worker (local rank {first.local_rank}) {how}; start the same command again to go on from the last "
            "checkpoint"
        )
    return int(first.exitcode)
