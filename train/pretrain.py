"""A pretraining run from its configuration to the loop: where it goes on, on which data, with which engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary

from train import distributed, rewind, run_directory
from train.checkpoint import Checkpoint, finish_commit, load_weights, read_table, resume_point
from train.config import Config
from train.config_file import dump_config
from train.data.data_set import DataSet
from train.data.epochs import EpochWalk
from train.data.mixture import MixtureWalk
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, RowPlan
from train.data.plan_cache import load_plan, open_plan, store_plan
from train.data.stream import TrainStream
from train.derived import describe
from train.devices import peak_tflops
from train.distributed import Ranks, on_first_rank, together
from train.ds_config import load_ds_config
from train.errors import StoppedError, UserError
from train.export import write_missing_export
from train.flops import batch_flops
from train.model.pretrained import check_tokenizer, load_pretrained
from train.monitor import events
from train.monitor.about_run import about_run
from train.monitor.arranged import first_page
from train.monitor.document_lengths import document_lengths
from train.monitor.incidents import Incidents
from train.monitor.learning import Learning
from train.monitor.logs import add_rank_file, log
from train.monitor.metrics import last_step
from train.monitor.recorder import Recorder, Writers
from train.monitor.tensorboard import TensorBoard
from train.monitor.writers import Writer, open_others
from train.objectives import build_objective
from train.ownership import own
from train.preflight.equality import refuse_differences
from train.preflight.folder import room
from train.probes.open import open_probes
from train.probes.open import sentences as describe_probes
from train.signals import StopRequest, who_asked
from train.training_data import (
    SPLIT,
    close_stores,
    describe_cache,
    local_folders,
    local_folders_of_all,
    needed_plans,
    open_data_sets,
    open_walk,
    token_shares,
)
from train.vocabulary import Vocabulary, load_vocabulary
from train.watchdog import watch_over


def dry_run(config: Config) -> Iterator[str]:
    """The resolved configuration and what would happen, without training. Raises what the run would raise."""
    _, world_size, _ = distributed.environment()
    sets = open_data_sets(config, local_folders(config))
    try:
        walk = open_walk(config, sets, lambda s, rules: open_plan(s.manifest, SPLIT, rules, s.store))
    finally:
        close_stores(sets)
    if config.model.pretrained:
        check_tokenizer(Path(config.model.pretrained), sets[0].manifest.tokenizer_folder)
    yield dump_config(config)
    vocabulary = load_vocabulary(*(data_set.manifest for data_set in sets), shares=token_shares(config))
    yield from describe(config, world_size, walk.plans, vocabulary)
    for sentences in describe_cache(config, sets):
        yield from sentences
    yield from describe_probes(open_probes(config.probes))
    yield "Dry run: nothing was trained."


def pretrain(config: Config, stop: StopRequest, *, find_micro_batch: bool = False) -> None:
    """Train until `run.steps` are done, from the newest checkpoint of the run folder where there is one.

    With `find_micro_batch` batch.micro_batch_size is the fastest that fits, found by trials before.

    Raises StoppedError after a request to stop, with a committed checkpoint; UserError, DataError, CheckpointError and
    NonFiniteError as their names say.
    """
    ranks = distributed.start()
    _stop_early(config, ranks, stop)
    run = Path(config.run.directory)
    with together(ranks, lambda: own(run) if ranks.rank == 0 else nullcontext()):
        together(ranks, lambda: add_rank_file(run, ranks.rank))
        with watch_over(config, ranks, stop):
            if find_micro_batch:
                config = _with_found_micro_batch(config, ranks, stop)
            _open_and_go_on(config, ranks, stop)


def _with_found_micro_batch(config: Config, ranks: Ranks, stop: StopRequest) -> Config:
    """Once for a start, also where it goes back later. The run folder is not touched."""
    folders = local_folders_of_all(config, ranks)
    sets = together(ranks, lambda: open_data_sets(config, folders))
    close_stores(sets)
    manifests = [data_set.manifest for data_set in sets]
    vocabulary = together(ranks, lambda: load_vocabulary(*manifests, shares=token_shares(config)))
    from train.estimate.find_micro_batch import find_micro_batch

    return find_micro_batch(config, ranks, vocabulary, lambda: _stop_early(config, ranks, stop))


def _open_and_go_on(config: Config, ranks: Ranks, stop: StopRequest) -> None:
    if begun_before := distributed.starts_before():
        log.warning("Start %d of this command: a worker had failed.", begun_before + 1)
    while _goes_back(config, ranks, stop):
        gc.collect()  # the engine, which has cycles
        torch.cuda.empty_cache()


def _goes_back(config: Config, ranks: Ranks, stop: StopRequest) -> bool:
    """Train; True where the run goes back to an earlier checkpoint, and all is to be opened anew."""
    folders = local_folders_of_all(config, ranks)
    sets = together(ranks, lambda: open_data_sets(config, folders))
    try:
        _go_on(config, ranks, sets, stop)
    except rewind.GoBack:
        return True
    finally:
        close_stores(sets)
    return False


def _stop_early(config: Config, ranks: Ranks, stop: StopRequest) -> None:
    """A request that came while the process started: nothing was done since the last checkpoint, so nothing is saved.

    Ranks whose launcher was killed let go of the run folder here, before they load what they would not use.
    """
    codes_R = ranks.of_all(stop.code())
    if any(codes_R):
        why = who_asked(codes_R, config.run.max_minutes)
        raise StoppedError.agreed(f"stopped before the first step ({why}); the same command goes on")


def _go_on(config: Config, ranks: Ranks, sets: list[DataSet], stop: StopRequest) -> None:
    """From where the run folder says, unless all steps are done."""
    run = Path(config.run.directory)
    manifests = [data_set.manifest for data_set in sets]
    for sentence in refuse_differences(ranks, sets):
        log.warning(sentence)
    vocabulary = together(ranks, lambda: load_vocabulary(*manifests, shares=token_shares(config)))
    ds_config = together(ranks, lambda: load_ds_config(config, ranks.world_size))
    resume = _resume(config, ranks, run, ds_config, sets[0].manifest.tokenizer_folder)
    if resume is not None and resume.step >= config.run.steps and "unfinished" not in resume.state:
        if ranks.rank == 0:
            _finish_last_commit(config, resume.path)
        log.info("Nothing to do: %s has all its %d steps (%s).", run, config.run.steps, resume.path)
        return
    stream = _open_stream(config, ranks, sets, resume)
    try:
        _stop_early(config, ranks, stop)
        _train(config, ranks, sets, vocabulary, ds_config, stream, resume, stop)
    finally:
        close_stores(sets)  # first: the stream's thread may wait for a store that is away
        stream.close()


def _finish_last_commit(config: Config, newest: Path) -> None:
    """No later checkpoint will do it. Where the folder takes no files the checkpoint is whole all the same."""
    keep = config.checkpoint
    try:
        finish_commit(newest, keep.keep_last, keep_every=keep.keep_every, keep_best=keep.keep_best)
    except (OSError, UserError) as error:
        log.warning("%s: older checkpoints stay (%s)", newest.parent, getattr(error, "strerror", None) or error)


def _resume(config: Config, ranks: Ranks, run: Path, ds_config: dict[str, Any], tokenizer: Path) -> Checkpoint | None:
    """Rank 0 decides where the run goes on; every rank hears the same."""

    def decide() -> dict[str, Any]:
        rewind.carry_out(run)
        done = last_step(run / "metrics.jsonl")
        found, problems = resume_point(run / "checkpoints", done)
        begun = found is not None
        if not begun:
            rewind.forget(run)
        changes = run_directory.settle(run, config, ds_config, tokenizer, begun=begun)
        for problem in problems:
            events.append(run, found.step if found else 0, "checkpoint fallback", f"not used: {problem}")
        chosen = None if found is None else {"path": str(found.path), "state": found.state}
        if found is not None:
            write_missing_export(config, found)
        sentences = changes + [f"Not used: {problem}." for problem in problems] + _compared(found, done, run)
        return {"chosen": chosen, "sentences": sentences}

    decision = on_first_rank(ranks, decide)
    for sentence in decision["sentences"]:
        log.warning(sentence)
    chosen = decision["chosen"]
    return Checkpoint(Path(chosen["path"]), chosen["state"]) if chosen else None


def _compared(found: Checkpoint | None, done: int, run: Path) -> list[str]:
    """What lies beside the checkpoint: steps that are done again, records that are gone."""
    if found is None or done in (found.step, found.step - ("unfinished" in found.state)):
        return []
    if found.step < done:
        return [f"Steps {found.step + 1:,} to {done:,} came after {found.path.name} and are done again."]
    return [f"{run}/metrics.jsonl ends at step {done:,}, the run is at {found.step:,}: the records between are gone."]


def _open_stream(config: Config, ranks: Ranks, sets: list[DataSet], resume: Checkpoint | None) -> TrainStream:
    """Rank 0 makes the packing plans where there are none; all ranks that see its files map them."""
    needed = needed_plans(config, sets)
    wanted = resume.state["data"].get("plan") if resume else None

    def store() -> list[tuple[str, str]]:
        cache = Path(config.data.cache)
        return [store_plan(s.manifest, SPLIT, rules, cache, wanted, s.store) for s, rules in needed]

    ranks.pulse.says("makes the plans of the rows")
    stored = on_first_rank(ranks, store)
    if any(data_set.store for data_set in sets):  # a plan of rank 0 lies on its own node, beside the small files
        together(ranks, lambda: store() if ranks.local_rank == 0 and ranks.rank else None)
    places = {(s.manifest.identity, rules): place for (s, rules), place in zip(needed, stored, strict=True)}

    def plan_of(data_set: DataSet, rules: PackingRules) -> RowPlan:
        path, digest = places[data_set.manifest.identity, rules]
        return load_plan(path, digest, data_set.manifest, SPLIT, rules, data_set.store)

    skips = dict(on_first_rank(ranks, lambda: rewind.jumps(Path(config.run.directory))))
    if skips:
        log.info("%d batches are left out, as %s/skips.json says.", sum(skips.values()), config.run.directory)

    def open_it() -> TrainStream:
        walk, batch = open_walk(config, sets, plan_of), config.batch
        share = Share(ranks.rank, ranks.world_size, batch.micro_batch_size, batch.global_batch_size)
        sizes = {change.step: change.rows for change in batch.global_batch_size_at}
        step = resume.step if resume else 0
        flops = batch_flops(config, sets[0].manifest.vocabulary_size)
        return TrainStream(walk, share, _cursor(config, walk, resume), step, sizes=sizes, skips=skips, flops=flops)

    return together(ranks, open_it)


def _cursor(config: Config, walk: EpochWalk | MixtureWalk, resume: Checkpoint | None) -> Cursor:
    if resume is None:
        return walk.start
    if isinstance(walk, EpochWalk):
        return walk.resume(resume.state["data"], grown=config.data.continue_grown)
    return walk.resume(resume.state["data"])


def _train(
    config: Config,
    ranks: Ranks,
    sets: list[DataSet],
    vocabulary: Vocabulary,
    ds_config: dict[str, Any],
    stream: TrainStream,
    resume: Checkpoint | None,
    stop: StopRequest,
) -> None:
    ranks.pulse.start.done("data")
    # DeepSpeed takes seconds to import; a mistyped path should not wait for it.
    from train.engine import MOMENTS, Engine
    from train.probes.in_run import RunProbes
    from train.sampling import Samples
    from train.training import Position, Training
    from train.validation import open_held_out

    ranks.pulse.start.done("imports")
    for sentence in describe(config, ranks.world_size, stream.walk.plans, vocabulary):
        log.info(sentence)
    sentences, warnings = describe_cache(config, sets)
    for sentence in sentences:
        log.info(sentence)
    for warning in warnings:
        log.warning(warning)
    probes = RunProbes(config, ranks)
    torch.manual_seed(config.run.seed)
    ranks.pulse.says("builds the model")
    ranks.pulse.step = None  # until the first one of this model, which may have to be compiled
    module = build_objective(config, vocabulary)
    space = room(config, sum(parameter.numel() for parameter in module.parameters()))
    if space.level == "warning":
        log.warning(space.text)
    if resume:
        together(ranks, lambda: load_weights(module, resume.path))
    elif config.model.pretrained:
        tokenizer = sets[0].manifest.tokenizer_folder
        for sentence in together(ranks, lambda: load_pretrained(module.encoder, config.model, tokenizer)):
            log.info(sentence)
    ranks.pulse.start.done("model")
    engine = Engine(module, config, ds_config, ranks)
    position = Position(cursor=stream.cursor)
    if resume:
        tables = together(ranks, lambda: {table: read_table(resume.path, table) for table in ("model", *MOMENTS)})
        engine.load_state(tables, resume.state["updates"])
        engine.load_loss_scale(resume.state.get("loss_scale", {}))
        position = Position.of(resume.state, stream.cursor)
        log.info("Going on from %s (step %d, %s tokens seen).", resume.path, resume.step, f"{position.tokens_seen:,}")
    ranks.pulse.start.done("engine")
    run = Path(config.run.directory)
    unfinished = resume.state.get("unfinished") if resume else None  # record of the last step, without its validation
    written = position.step - (unfinished is not None)
    seen, scaled = position.tokens_seen, config.engine.precision == "fp16"
    page = first_page(module.heads, is_scaled=scaled, is_shared=ranks.world_size > 1)
    beside = open_others(config.logging.writers, run, config.model_dump(mode="json")) if ranks.rank == 0 else []
    writers = together(ranks, lambda: open_writers(config, written, seen, page, beside) if ranks.rank == 0 else None)
    if writers and not written:
        writers.show(document_lengths([plan for _, _, plan in stream.walk.plans]))
    peak = peak_tflops(ranks.device, config.engine.precision)
    parts = engine.parts
    recorder = Recorder(ranks, module.heads, module.weights(), writers, parts=parts, peak_tflops=peak, held=unfinished)
    if writers and resume:
        kind, why = ("restart", "a worker had failed; ") if distributed.starts_before() else ("resume", "")
        writers.tell(position.step, kind, f"{why}start {writers.goodput.starts} goes on from {resume.path.name}")
    held_out = together(ranks, lambda: [open_held_out(data_set, config, ranks) for data_set in sets])
    incidents = Incidents(config, ranks, stream.walk, resume.state.get("loss_watch", {}) if resume else {})
    try:
        measured = [rows for rows in held_out if rows]
        judge = Learning(vocabulary.unigram_entropy, config.schedule.warmup_steps)
        samples = Samples(config, ranks, measured, sets[0].manifest, writers)
        training = Training(
            config, ranks, measured, engine, stream, recorder, position, incidents, probes, samples, judge
        )
        training.run_to_end(stop)
    except rewind.GoBack:
        recorder.close()
        engine.dispose()
        raise
    finally:
        incidents.close()
        for writer in beside:
            writer.close()


def open_writers(
    config: Config, resume_step: int, tokens_seen: int, page: Summary, beside: Sequence[Writer]
) -> Writers:
    """Rank 0's files; TensorBoard begins with what the run is and how its first page is arranged."""
    run, others = Path(config.run.directory), [*beside]
    if "tensorboard" in config.logging.writers:
        board = TensorBoard(run / "tensorboard", resume_step, tokens_seen)
        for summary in (*about_run(config), page):
            board.by_steps.summary(summary)
        others.append(board)
    return Writers.open(run, config.run.steps, resume_step, tokens_seen, others)
