"""What takes the records of a run beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.durable import write_whole
from train.errors import UserError, first_line
from train.monitor.logs import log

MOST_WAITING = 1_000  # records of one writer; what comes while so many wait is dropped
_LAST_WORDS = 10.0  # seconds that the end of a run waits for a writer
_PROJECT = "bertmae"


class Writer(Protocol):
    """Takes the records in their order, then is closed. What it raises is its end, not that of the run."""

    def write(self, record: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Beside:
    """A writer in a thread of its own, opened there too: it may be slow or fail, and no step waits for it."""

    def __init__(self, name: str, open_writer: Callable[[], Writer]) -> None:
        self._name = name
        self._open = open_writer
        self._waiting: queue.Queue[Mapping[str, float] | None] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name=f"writer-{name}", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, float]) -> None:
        """Hand over a copy; where too many wait it is dropped."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(dict(record))
        except queue.Full:
            if not self._dropped:
                log.warning("logging.writers %s: too slow, records are dropped; metrics.jsonl has all", self._name)
            self._dropped += 1

    def close(self, patience: float = _LAST_WORDS) -> None:
        """Wait for the records that wait, but not for ever. Once more it does nothing."""
        deadline = time.monotonic() + patience
        with suppress(queue.Full):
            self._waiting.put(None, timeout=patience if self._thread.is_alive() else 0.01)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            log.warning("logging.writers %s: not done after %g s, not waited for", self._name, patience)
        if self._dropped:
            log.warning("logging.writers %s: %d records were dropped", self._name, self._dropped)
            self._dropped = 0

    def _work(self) -> None:
        try:
            writer = self._open()
            while (record := self._waiting.get()) is not None:
                writer.write(record)
            writer.close()
        except Exception as error:  # noqa: BLE001 - of a library and a network that are not ours: the run goes on
            log.warning("logging.writers %s: left out from here on (%s)", self._name, first_line(error))


def refuse_missing(names: Sequence[str]) -> None:
    """Raises UserError for a writer whose package is not there."""
    for name in names:
        if name in OTHERS and importlib.util.find_spec(name) is None:
            raise UserError.agreed(
                f"logging.writers has {name}, which is not installed: pip install 'bertmae[{name}]', or leave it out"
            )


def open_others(names: Sequence[str], run: Path, settings: Mapping[str, Any]) -> list[Beside]:
    """Those of the writers that are no TensorBoard; `settings` is the run's configuration."""
    return [Beside(name, partial(OTHERS[name], run, settings)) for name in names if name in OTHERS]


class _WandB:
    """A run of Weights & Biases. Its id stays in RUN/wandb.json, so that a resumed run goes on with its curves."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        name = _identity(run / "wandb.json", lambda: secrets.token_hex(4))
        self._run = wandb.init(
            id=name,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            dir=str(run),
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, record: Mapping[str, float]) -> None:
        self._run.log(dict(record), step=int(record["step"]))

    def close(self) -> None:
        self._run.finish()


class _MlFlow:
    """A run of MLflow in the store of MLFLOW_TRACKING_URI. Its id stays in RUN/mlflow.json."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._client, self._metric = MlflowClient(), Metric
        self._id = _identity(run / "mlflow.json", lambda: self._create(run.name, settings))
        self._client.update_run(self._id, status="RUNNING")

    def _create(self, name: str, settings: Mapping[str, Any]) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        created: str = self._client.create_run(number, run_name=name).info.run_id
        self._client.log_dict(created, dict(settings), "config.json")
        return created

    def write(self, record: Mapping[str, float]) -> None:
        now, step = int(time.time() * 1000), int(record["step"])
        values = {name: float(value) for name, value in record.items() if name != "step"}
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


OTHERS: dict[str, Callable[[Path, Mapping[str, Any]], Writer]] = {"wandb": _WandB, "mlflow": _MlFlow}


def _identity(file: Path, make: Callable[[], str]) -> str:
    """The id that the starts before have used, or a new one, which the next will use."""
    if file.exists():
        return str(json.loads(file.read_bytes())["id"])
    made = make()
    write_whole(file, json.dumps({"id": made}).encode() + b"\n")
    return made
