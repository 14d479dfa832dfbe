"""The only importer of DeepSpeed: forward, backward and update under ZeRO, and the whole state by parameter name.

Legend: H heads of the objective.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it looks for accelerators and warns

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.utils import (
    logger,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from pydantic import ValidationError

from train.config import Config
from train.data.batch import Batch
from train.distributed import Ranks
from train.ds_config import zero_stage
from train.effective_settings import check_settings, group_settings
from train.errors import UserError
from train.gradient_parts import GradientParts, trained
from train.layerwise import Layerwise, whole
from train.model.cpu_bf16 import speed_up_bf16_products
from train.model.documents import Documents
from train.monitor.step_parts import StepParts
from train.objectives.objective import HeadSums, Objective
from train.optimizer import build_optimizer
from train.snapshot import TABLES, Piece, Snapshot, Tensors
from train.zero_layout import zero_layout

MOMENTS = TABLES[1:]
_CLIPPING_EPS = 1e-6  # of DeepSpeed and of torch
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

logger.setLevel(logging.ERROR)


def use_no_compiler() -> None:
    """On CPUs DeepSpeed compiles at every start what it uses for inference only: that would take a C++ compiler."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class Engine:
    """An objective under DeepSpeed. Weights are given in `module`; optimizer state starts at zero or is loaded."""

    def __init__(self, module: Objective[Any], config: Config, ds_config: dict[str, Any], ranks: Ranks) -> None:
        if ranks.device.type == "cpu":
            use_no_compiler()
            if ds_config["bf16"]["enabled"] or ds_config["torch_autocast"]["enabled"]:
                speed_up_bf16_products()
        self.ranks = ranks
        self.stage = zero_stage(ds_config)
        self._clipping = config.optimizer.gradient_clipping
        self.gradient_norm: torch.Tensor | float | None = None
        self.gradient_parts: dict[str, torch.Tensor] = {}  # their norms, in the steps that `measure_parts` asks for
        self.applied = True
        self.parts = StepParts(ranks.device)
        module.to(ranks.device)
        if ds_config["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
            raise UserError.agreed("engine.precision fp16: this device has no fp16; use bf16 or fp32")
        optimizer = build_optimizer(module, config)
        groups = group_settings(group for group in optimizer.param_groups if group["params"])
        self._engine = _initialize(module, optimizer, ds_config)
        parameters = trained(module)
        if self.stage == 0:
            layout = whole([*parameters.values()])
        else:
            layout = zero_layout(self.module, self._engine.optimizer, self.stage, ranks)
        if isinstance(optimizer, Layerwise):
            optimizer.layout = layout
        self._gradient_parts = GradientParts([*parameters], module.encoder.base_name, layout, optimizer)
        check_settings(self._engine, ds_config, optimizer, groups, self._masters())
        self._scaler = self._engine.optimizer.loss_scaler if ds_config["fp16"]["enabled"] else None
        if self._scaler is not None:
            self._scaler.raise_error_at_min_scale = False  # the trainer counts steps left out in a row, and says it
            self._let_scale_grow = _growing_later(self._scaler)
        self._zero_moments()

    @property
    def module(self) -> Objective[Any]:
        """The objective, whose parameters ZeRO-3 has partitioned."""
        return self._engine.module  # type: ignore[no-any-return]

    @property
    def updates(self) -> int:
        """Updates that were applied so far, as the optimizer counts them."""
        return int(next(iter(self._states()))["step"])

    def set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * group["learning_rate_ratio"]

    def measure_parts(self, wanted: bool) -> None:
        """Whether the steps that follow measure `gradient_parts`. All ranks say the same."""
        self._gradient_parts.wanted = wanted

    def micro_step(self, batch: Batch, selection: Any, scale_H: torch.Tensor, *, last: bool) -> HeadSums:
        """Forward and backward of one micro-batch with its selection; the last one of a step updates the weights.

        `scale_H` holds each head's weight over its global number of targets. The gradient that DeepSpeed averages
        over the ranks is multiplied by their number: what remains is the sum. The caller says which micro-batch is the
        `last`: DeepSpeed's own count is fixed at the start, and the batch size may change.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self.ranks.pulse.says("trains")
        with self.parts.part("forward"):
            losses_H, hits_H2 = self._engine(batch, selection)
            loss = (losses_H * scale_H).sum() * self.ranks.world_size
        with self.parts.part("backward"):
            self._engine.backward(loss, scale_wrt_gas=False)
        with self.parts.part("optimizer"):
            if last:
                self._update()
            else:
                self._engine.step()
        return losses_H.detach(), hits_H2

    @torch.no_grad()
    def evaluate(self, batch: Batch, selection: Any) -> HeadSums:
        """The sums of one batch without gradients; the caller sets the mode with `eval()` and `train()`."""
        self.ranks.pulse.says("validates")
        sums: HeadSums = self._engine(batch, selection)
        return sums

    @torch.no_grad()
    def encode(self, ids_T: torch.Tensor, documents: Documents) -> torch.Tensor:
        """`Objective.vectors` [D, 2, W] of whole documents; the caller sets the mode with `eval()` and `train()`.

        DeepSpeed gathers weights and casts around the forward pass of the whole module, so for this call that is
        another one. Under ZeRO-3 every rank comes here the same number of times.
        """
        self.ranks.pulse.says("encodes the texts of probes")
        vectors: torch.Tensor = self._instead_of_forward(self.module.vectors, ids_T, documents)
        return vectors

    @torch.no_grad()
    def predict(self, batch: Batch, selection: Any) -> tuple[torch.Tensor, ...]:
        """`Objective.predictions` of one batch, in the same way as `encode`."""
        self.ranks.pulse.says("predicts held-out tokens")
        found: tuple[torch.Tensor, ...] = self._instead_of_forward(self.module.predictions, batch, selection)
        return found

    def _instead_of_forward(self, method: Callable[..., Any], *arguments: Any) -> Any:
        module = self.module
        module.forward = method  # type: ignore[method-assign]
        try:
            return self._engine(*arguments)
        finally:
            del module.forward  # the class has the other

    def eval(self) -> None:
        self._engine.eval()

    def train(self) -> None:
        self._engine.train()

    def dispose(self) -> None:
        """Let go of all memory, so that another engine can take this one's place; nothing of it works afterwards."""
        self._engine.destroy()
        if self.stage == 3:  # hooks hold its parameters for ever, where the garbage collector does not see them
            parameters = list(self.module.parameters())
            states = [tensor for state in self._states() for tensor in state.values()]
            shares = [parameter.ds_tensor for parameter in parameters]  # type: ignore[attr-defined]
            for tensor in (*parameters, *shares, *self._masters(), *states):
                tensor.untyped_storage().resize_(0)
            vars(self._engine.optimizer).clear()

    def state(self) -> dict[str, Tensors]:
        """{"model", "exp_avg", "exp_avg_sq"}: whole fp32 tensors by parameter name, in host memory of rank 0.

        Every rank takes part; the others get empty tables. The layout knows nothing of ranks or ZeRO stages.
        """
        snapshot = Snapshot(self.ranks, self.ranks.host_group)
        snapshot.take(self.pieces)
        return snapshot.collect()

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of the state, parameter by parameter: what it alone holds, or at stage 0 an equal share."""
        for name, parameter in self.module.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # at stage 3 the parameter itself is empty
            start, tensors = self._piece(parameter, shape.numel())
            yield Piece(name, shape, start, tuple(tensor.detach() for tensor in tensors))

    @property
    def loss_scale(self) -> dict[str, float]:
        """The dynamic loss scale of fp16 and what decides its next change; empty for other precisions."""
        return {name: float(getattr(self._scaler, name)) for name in _SCALER if hasattr(self._scaler, name)}

    def load_loss_scale(self, saved: Mapping[str, float]) -> None:
        """Take what `loss_scale` gave; a checkpoint of another precision has none, and the scale begins anew."""
        for name in self.loss_scale.keys() & saved.keys():
            setattr(self._scaler, name, type(getattr(self._scaler, name))(saved[name]))

    def load_state(self, tables: Mapping[str, Mapping[str, torch.Tensor]], updates: int) -> None:
        """Take the state that `state()` gave, at any number of ranks and any ZeRO stage.

        The low-precision weights must have been loaded into the module before the engine was made.
        """
        for name, parameter in self.module.named_parameters():
            self._scatter(parameter, {table: tables[table][name].to(self.ranks.device) for table in tables})
        for state in self._states():
            state["step"].fill_(updates)

    def _piece(self, parameter: torch.nn.Parameter, numel: int) -> tuple[int, list[torch.Tensor]]:
        """Where this rank's part of a parameter begins, and its values in each of TABLES."""
        if self.stage in (1, 2):
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:  # all of it lies on other ranks
                return 0, [torch.empty(0) for _ in TABLES]
            return mapping.lp_fragment_address.start, [mapping.get_hp_fragment(key) for key in (None, *MOMENTS)]
        if self.stage == 3:
            share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            moments = [safe_get_local_optimizer_state(parameter, moment) for moment in MOMENTS]
            start = min(share * self.ranks.rank, numel)
            return start, [t[: numel - start] for t in (safe_get_local_fp32_param(parameter), *moments)]
        share = -(-numel // self.ranks.world_size)
        state = self._engine.optimizer.state[parameter]
        start = min(share * self.ranks.rank, numel)
        tensors = (parameter, *(state[moment] for moment in MOMENTS))
        return start, [tensor.view(-1)[start : start + share] for tensor in tensors]

    @torch.no_grad()
    def _scatter(self, parameter: torch.nn.Parameter, tensors: Tensors) -> None:
        if self.stage == 0:
            parameter.copy_(tensors["model"])
            for moment in MOMENTS:
                self._engine.optimizer.state[parameter][moment].copy_(tensors[moment])
            return
        if self.stage == 3:
            shares = {table: self._share(parameter, tensor) for table, tensor in tensors.items()}
            safe_set_local_fp32_param(parameter, shares["model"])
            for moment in MOMENTS:
                safe_set_local_optimizer_state(parameter, shares[moment], moment)
            return
        safe_set_full_fp32_param(parameter, tensors["model"])
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, tensors[moment], moment)

    def _share(self, parameter: torch.nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part at stage 3; DeepSpeed's own setter fails where the size is no multiple of the ranks."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padding = size * self.ranks.world_size - tensor.numel()
        return F.pad(tensor.flatten(), (0, padding)).narrow(0, size * self.ranks.rank, size)

    def _masters(self) -> Iterator[torch.Tensor]:
        """The fp32 tensors that the optimizer updates: parameters at stage 0, this rank's flat shares above."""
        if self.stage == 3:
            yield from self._engine.optimizer.fp32_partitioned_groups_flat
            return
        for group in self._engine.optimizer.param_groups:
            yield from group["params"]

    def _states(self) -> Iterator[dict[str, torch.Tensor]]:
        optimizer = self._engine.optimizer if self.stage == 0 else self._engine.optimizer.optimizer
        for master in self._masters():
            yield optimizer.state[master]

    def _zero_moments(self) -> None:
        """What AdamW makes at its first update, made now: a run can then be saved and loaded before it."""
        for master, state in zip(self._masters(), self._states(), strict=True):
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(master)
        if self.stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _forget_gradients(self) -> None:
        """With offload at stages 1 and 2 DeepSpeed keeps the sums of a step left out: the next one would go on there,
        and NaN stays NaN."""
        sums = getattr(self._engine.optimizer, "averaged_gradients", None)
        if sums is not None and self.stage in (1, 2):
            for group in sums:
                sums[group] = None

    def _update(self) -> None:
        """DeepSpeed's step at the end of an accumulation, and what is known of the gradient then."""
        if self.stage == 0:
            self._guard_stage_0()
        self._engine.step()
        if self.stage > 0:
            self.gradient_norm = self._engine.get_global_grad_norm()
            self.applied = self._engine.was_step_applied()
            if not self.applied:
                self._forget_gradients()
            elif self._scaler is not None:
                self._let_scale_grow()
        self.gradient_parts = self._measured_parts() if self.applied else {}

    def _measured_parts(self) -> dict[str, torch.Tensor]:
        """The optimizer was given what was unscaled and clipped; the same factor leads back to `gradient_norm`."""
        if not self._gradient_parts.wanted:
            return {}
        norms_P = self._gradient_parts.norms()
        if self._clipping:
            total = torch.as_tensor(self.gradient_norm, dtype=norms_P.dtype, device=norms_P.device)
            norms_P *= ((total + _CLIPPING_EPS) / self._clipping).clamp(min=1)
        return dict(zip(self._gradient_parts.parts, norms_P, strict=True))

    def _guard_stage_0(self) -> None:
        """Norm, clipping and what is not finite: at stage 0 DeepSpeed reports no norm and applies NaN."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.gradient_norm = norm
        self.applied = bool(norm.isfinite())
        if not self.applied:
            for parameter in parameters:
                parameter.grad = None  # and AdamW changes nothing
        elif self._clipping:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clipping, norm)


def _growing_later(scaler: Any) -> Callable[[], None]:
    """From now on the scaler counts an update that was applied only where the answer is called: at its end.

    DeepSpeed 0.19.8 does so before it unscales the gradients, and divides those of the old scale by the new one.
    """
    update_scale = scaler.update_scale
    scaler.update_scale = lambda overflow: update_scale(overflow) if overflow else None
    return lambda: update_scale(False)


def refuse_ds_config(ds_config: dict[str, Any]) -> None:
    """Raises UserError for what DeepSpeed itself refuses of a configuration, without an engine."""
    with _refusals(), contextlib.redirect_stdout(io.StringIO()):
        DeepSpeedConfig(_copy(ds_config))


def _initialize(module: Objective[Any], optimizer: torch.optim.Optimizer, ds_config: dict[str, Any]) -> Any:
    """DeepSpeed's engine; it changes the configuration it is given, hence the copy."""
    with _refusals(), contextlib.redirect_stdout(io.StringIO()):  # its bf16 optimizer prints how much memory is in use
        return deepspeed.initialize(
            model=module, optimizer=optimizer, config=_copy(ds_config), dist_init_required=False
        )[0]


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What DeepSpeed refuses, as one line."""
    try:
        yield
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(str(part) for part in mistake["loc"])
        raise UserError.agreed(f"DeepSpeed refuses {key} of engine.ds_config: {mistake['msg']}") from error


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}
