"""The training of every task: transformers' Trainer, with the best checkpoint by validation, from where it stopped."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate asks DeepSpeed, which would look for one and warn

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback

from train import distributed
from train.errors import CheckpointError, NonFiniteError, StoppedError, UserError, the_same_everywhere
from train.finetune import model_folder, results
from train.finetune.deepspeed_file import read_deepspeed
from train.finetune.metrics import in_words
from train.finetune.packages import require
from train.finetune.settings import Settings
from train.finetune.task import Task, module
from train.finetune.unknown_tokens import unknown_in_words
from train.model.quiet import quiet
from train.monitor.logs import log
from train.signals import StopRequest

_TORCH_CANNOT_WRITE = ("inline_container", "PytorchStreamWriter")  # in what torch.save says where the disk is full
# Learning rates by the width of the encoder: those of BERT's authors for its sizes.
_RATES = ((1024, 2e-5), (768, 3e-5), (512, 5e-5), (256, 1e-4), (0, 3e-4))


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from settings, data and devices."""

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    learning_rate: float
    precision: str


def finetune(settings: Settings, stop: StopRequest | None = None) -> dict[str, Any]:
    """Fine-tune, or go on where the same fine-tuning stopped; what is done already is only read. Returns results.json.

    Every rank of torchrun calls this. Raises UserError, DataError and CheckpointError for mistakes, all of them before
    anything is trained where they can be known; NonFiniteError; StoppedError where `stop` was asked for.
    """
    require("accelerate")
    started = time.monotonic()
    settings = replace(settings, output=settings.output.absolute())
    with the_same_everywhere():
        task = module(settings.task).prepare(settings)
        what = results.describe(settings, task)
        if done := results.finished(settings.output, what):
            log.info("%s: done before; nothing was trained.", settings.output)
            return done
        plan = _plan(settings, task)
        _join(settings)
        arguments = _arguments(settings, plan, task.decisive, seq2seq=task.generation is not None)
    with ExitStack() as held:
        first = arguments.process_index == 0
        if first:
            held.enter_context(results.hold(settings.output, what))
        for line in _announced(settings, task, plan):
            log.info("%s", line)
        set_seed(settings.seed)
        callbacks = _Callbacks(plan.steps, stop or StopRequest())
        trainer = _trainer(settings, task, arguments, callbacks)
        _train(trainer, settings.output, callbacks)
        found = _scores(trainer, task, settings.output, first)
        _save(trainer, task, settings, first)
        report = _report(settings, task, plan, what, trainer, found) | {"seconds": round(time.monotonic() - started, 1)}
        if first:
            results.write_json(settings.output / results.RESULTS, report)
            shutil.rmtree(_checkpoints(settings.output), ignore_errors=True)
        if dist.is_initialized():
            dist.barrier()
    return report


# ---------------------------------------------------------------------------------------------------------------------
# What will be done


def _plan(settings: Settings, task: Task) -> Plan:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    total = int(settings.global_batch_size or settings.kind.global_batch_size)
    if total % world_size:
        raise UserError(f"--global-batch-size {total}: cannot be divided among {world_size} ranks")
    share = total // world_size
    micro = min(settings.micro_batch_size or share, share)
    if share % micro:
        raise UserError(f"--micro-batch-size {micro}: the {share} rows of a rank cannot be divided into such batches")
    per_epoch = math.ceil(len(task.train) / total)
    steps = settings.max_steps or math.ceil(per_epoch * float(settings.epochs or settings.kind.epochs))
    return Plan(
        world_size=world_size,
        micro_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        learning_rate=settings.learning_rate or _usual_rate(settings),
        precision=_precision(settings.precision),
    )


def _usual_rate(settings: Settings) -> float:
    config = model_folder.open_config(settings.model)
    width = getattr(config, "hidden_size", 768)
    return next(rate for least, rate in _RATES if width >= least) * settings.kind.learning_rate_factor


def _precision(asked: str) -> str:
    on_gpu = torch.cuda.is_available()
    if asked == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and not on_gpu:
        raise UserError("--precision fp16: needs a GPU; take bf16 or fp32")
    return asked


def _announced(settings: Settings, task: Task, plan: Plan) -> list[str]:
    rows = ", ".join(f"{count:,} {split}" for split, count in task.rows.items())
    batch = f"{plan.micro_batch_size * plan.gradient_accumulation_steps * plan.world_size} rows a step"
    if plan.world_size > 1 or plan.gradient_accumulation_steps > 1:
        batch += (
            f" = {plan.micro_batch_size} at once x {plan.world_size} ranks x "
            f"{plan.gradient_accumulation_steps} accumulation steps"
        )
    epochs = f"{plan.steps / plan.steps_per_epoch:.3g} epochs of {plan.steps_per_epoch:,}"
    return [
        f"{settings.task}: {settings.model} on {rows} rows.",
        *task.found,
        *unknown_in_words(task),
        f"{plan.steps:,} steps ({epochs}), {batch}, learning rate {plan.learning_rate:g} after {plan.warmup_steps:,} "
        f"steps of warm-up, {plan.precision}, seed {settings.seed}.",
    ]


def _join(settings: Settings) -> None:
    """Meet the other ranks, once in a process. DeepSpeed needs a group of its own even for one rank."""
    if not dist.is_initialized() and (settings.deepspeed or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        distributed.start()
    if settings.deepspeed and not torch.cuda.is_available():
        from train.engine import use_no_compiler

        use_no_compiler()


def _arguments(settings: Settings, plan: Plan, decisive: str, *, seq2seq: bool) -> Any:
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    strategy = "epoch" if settings.validate_steps is None else "steps"
    kind, further = TrainingArguments, {}
    if seq2seq:
        kind, further = Seq2SeqTrainingArguments, {"predict_with_generate": True}
    return kind(
        output_dir=str(_checkpoints(settings.output)),
        seed=settings.seed,
        learning_rate=plan.learning_rate,
        num_train_epochs=float(settings.epochs or settings.kind.epochs),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        warmup_steps=plan.warmup_steps,
        weight_decay=settings.weight_decay,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        deepspeed=read_deepspeed(settings.deepspeed, plan.precision) if settings.deepspeed else None,
        eval_strategy=strategy,
        eval_steps=settings.validate_steps,
        save_strategy=strategy,
        save_steps=settings.validate_steps or 500,
        save_total_limit=1,  # the newest; the best is kept beside it
        load_best_model_at_end=True,
        metric_for_best_model=decisive,
        greater_is_better=True,
        logging_steps=max(1, min(50, plan.steps // 10)),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        log_level="error",
        **further,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training


class _Callbacks(TrainerCallback):  # type: ignore[misc]
    """Says each validation in a line, ends a training that is not finite, and stops where it is asked to."""

    def __init__(self, steps: int, stop: StopRequest) -> None:
        self.stop, self.stopped = stop, False
        self._steps, self._loss = steps, float("nan")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self._loss = logs["loss"]
            if not math.isfinite(self._loss):
                raise NonFiniteError.agreed(
                    f"step {state.global_step}: the loss is {self._loss}; try a lower --learning-rate"
                )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        log.info(
            "epoch %.3g, step %s of %s: training loss %.4f, validation loss %.4f; %s",
            state.epoch or 0.0,
            f"{state.global_step:,}",
            f"{self._steps:,}",
            self._loss,
            metrics.get("eval_loss", float("nan")),
            in_words(_of_task(metrics)),
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = self.stop.reason is not None
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor([int(asked)], device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

        control.should_log |= control.should_evaluate  # a validation is shown beside the loss of training

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= control.should_evaluate
        if self.stopped:  # the checkpoint of this step is written: no validation, which may take minutes
            control.should_save = control.should_evaluate = False


def _of_task(found: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of the task among what the Trainer adds."""
    theirs = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    named = {name.removeprefix("eval_"): number for name, number in found.items() if name.startswith("eval_")}
    return {name: number for name, number in named.items() if name not in theirs}


def _trainer(settings: Settings, task: Task, arguments: Any, callbacks: _Callbacks) -> Any:
    from transformers import GenerationConfig, Seq2SeqTrainer, Trainer

    model = task.build_model()
    kind = Trainer
    if task.generation is not None:
        kind, arguments.generation_config = Seq2SeqTrainer, GenerationConfig(**task.generation)
        arguments.predict_with_generate = task.watch is None
    trainer = kind(
        model=model,
        args=arguments,
        data_collator=task.collator,
        train_dataset=task.train,
        eval_dataset=task.validation,
        processing_class=task.tokenizer,
        compute_loss_func=task.loss,
        compute_metrics=lambda gathered: (task.watch or partial(_metrics, task))(gathered.predictions),
        preprocess_logits_for_metrics=task.reduce,
        callbacks=[callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    return trainer


def _metrics(task: Task, predictions: Any) -> dict[str, float]:
    return task.score("validation", predictions)[0]


def _train(trainer: Any, output: Path, callbacks: _Callbacks) -> None:
    """To the end, with the best weights loaded. Raises StoppedError where that was asked for."""
    folder = _checkpoints(output)
    newest = _newest(folder)
    if trainer.is_world_process_zero():
        _tidy(folder, newest)
        step = int(newest.name.split("-")[1]) if newest else 0
        if newest:
            log.info("Goes on from step %s.", f"{step:,}")
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)))
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _TORCH_CANNOT_WRITE):
            raise
        raise CheckpointError(f"{folder}: cannot be written ({_why(error)}); then the same command goes on") from error
    if callbacks.stopped:
        step = trainer.state.global_step
        raise StoppedError.agreed(f"stopped at step {step:,} with a checkpoint; the same command goes on from there")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or "no space left, or the disk refuses"


def _checkpoints(output: Path) -> Path:
    return output / "checkpoints"


def _newest(folder: Path) -> Path | None:
    """The newest whole checkpoint: the Trainer writes its state last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_bytes())
            whole.append(path)
        except (OSError, ValueError):
            continue
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _tidy(folder: Path, newest: Path | None) -> None:
    """Remove what a killed process left half-written, and name the best checkpoint where the folder lies now."""
    for path in folder.glob("checkpoint-*"):
        if not (path / "trainer_state.json").is_file():
            shutil.rmtree(path, ignore_errors=True)
    if newest is None:
        return
    state = json.loads((newest / "trainer_state.json").read_bytes())
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = str(folder / Path(best).name)
        results.write_json(newest / "trainer_state.json", state)


# ---------------------------------------------------------------------------------------------------------------------
# The end


def _scores(trainer: Any, task: Task, output: Path, first: bool) -> dict[str, dict[str, float]]:
    """Metrics of validation and test by the best weights; predictions of each are written."""
    found: dict[str, dict[str, float]] = {}
    trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
    trainer.args.predict_with_generate = task.generation is not None
    for split, features in (("validation", task.validation), ("test", task.test)):
        if features is not None:
            if task.generation is not None:  # or each batch would also be read for its loss
                features = [_without_labels(feature) for feature in features]
            found[split], predictions = task.score(split, trainer.predict(features).predictions)
            if first:
                results.write_predictions(output, split, predictions)
    return found


def _without_labels(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in feature.items() if name != "labels"}


def _save(trainer: Any, task: Task, settings: Settings, first: bool) -> None:
    """The model folder: weights, configuration, tokenizer, and what `predict` must know."""
    output = settings.output
    try:
        with quiet():
            if task.to_save(trainer.model) is trainer.model:
                trainer.save_model(str(output))  # gathers what ZeRO 3 has spread
            elif first:
                task.to_save(trainer.model).save_pretrained(output)
                task.tokenizer.save_pretrained(output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output}: cannot be written ({_why(error)}); then the same command goes on") from error
    if first:
        if task.save_beside is not None:
            task.save_beside(output)
        (output / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing needs it
        results.write_json(output / results.TASK, {"task": settings.task, **task.saved})


def _report(
    settings: Settings, task: Task, plan: Plan, what: Mapping[str, Any], trainer: Any, found: Mapping[str, Any]
) -> dict[str, Any]:
    history = [
        {"step": entry["step"], "epoch": round(entry["epoch"], 3), "loss": entry.get("eval_loss"), **_of_task(entry)}
        for entry in trainer.state.log_history
        if any(name.startswith("eval_") for name in entry)
    ]
    return {
        "task": settings.task,
        "metrics": found,
        "decisive": task.decisive,
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "history": history,
        "facts": task.facts,
        "plan": asdict(plan),
        **what,
        "versions": results.versions(),
    }
