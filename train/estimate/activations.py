"""Bytes that a forward pass keeps for the backward pass, measured on the objective's own modules with few layers.

The modules run on the processor, at the run's widths but with a small vocabulary and one row of at most 512 tokens;
what autograd saves is counted, each storage once. Layers are alike, so two numbers of them give all others.

Legend: T tokens, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from train.config import Config
from train.data.batch import Batch
from train.objectives import build_objective
from train.vocabulary import Vocabulary

_FEW = 1031  # tokens of the vocabulary: above _LONGEST, so that no tensor of the tokens has as many rows
_LONGEST = 512  # tokens of the row that is measured
_LAYERS = 2
_SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@dataclass(frozen=True, slots=True)
class Saved:
    """What one pass kept: elements of floating-point tensors, those of dropout among them, and other bytes."""

    elements: float
    dropped: float
    other: float
    widest: float  # elements of the largest tensor

    def plus(self, other: Saved, times: float) -> Saved:
        """This and so many times another; the widest is that of both."""
        return Saved(
            self.elements + times * other.elements,
            self.dropped + times * other.dropped,
            self.other + times * other.other,
            max(self.widest, other.widest),
        )

    def bytes(self, width: int, device: str) -> float:
        """With numbers of `width` bytes. The mask of a dropout is bytes on a GPU, and numbers on a processor."""
        mask = width if device == "cpu" else 1
        return width * (self.elements - self.dropped) + mask * self.dropped + self.other


@dataclass(frozen=True, slots=True)
class Activations:
    """What a token of the data costs, on average over the row that was measured."""

    kept: Saved  # of all layers
    recomputed: Saved  # with the run's gradient checkpointing
    layer: Saved  # of the largest layer, which the backward pass makes again

    def per_token(self, width: int, device: str, *, recomputed: bool) -> float:
        """Bytes at the peak, which is where the backward pass begins."""
        if recomputed:
            return self.recomputed.bytes(width, device) + self.layer.bytes(width, device)
        return self.kept.bytes(width, device)

    def temporary(self, width: int) -> float:
        """Bytes a token of the gradients that the backward pass of a layer has at a time: about three of its widest."""
        return 3 * width * self.kept.widest


def measure_activations(config: Config) -> Activations:
    """Runs the objective a few times: seconds."""
    layers, decoders = config.model.encoder.num_hidden_layers, config.model.decoder.num_hidden_layers
    has_decoder = config.objective.name in ("mae", "latent-mae", "joint", "span-corruption")
    found = {}
    for again in (False, True):
        base = _measured(config, _LAYERS, 1, again=again)
        encoder = _measured(config, _LAYERS + 1, 1, again=again).plus(base, -1)
        nothing = Saved(0, 0, 0, 0)
        decoder = _measured(config, _LAYERS, 2, again=again).plus(base, -1) if has_decoder else nothing
        found[again] = base, encoder, decoder

    def total(again_encoder: int, again_decoder: int) -> Saved:
        (base, encoder, decoder), (base_again, encoder_again, decoder_again) = found[False], found[True]
        # Parts beside the layers, such as the layer of retromae, are recomputed wherever layers are.
        sums = base_again if again_encoder else base
        own, own_decoder = (encoder_again, decoder_again) if again_encoder else (encoder, decoder)
        sums = sums.plus(own, -_LAYERS).plus(own_decoder, -1)
        sums = sums.plus(encoder_again, again_encoder).plus(encoder, layers - again_encoder)
        return sums.plus(decoder_again, again_decoder).plus(decoder, decoders - again_decoder)

    every = config.model.gradient_checkpointing_every
    kept = total(0, 0)
    recomputed = total(-(-layers // every), -(-decoders // every))
    layer = max(found[False][1:], key=lambda saved: saved.elements)
    return Activations(kept, recomputed, layer)


def _measured(config: Config, layers: int, decoder_layers: int, *, again: bool) -> Saved:
    """What a token keeps in a model of so many layers."""
    small = _smaller(config, layers, decoder_layers, again=again)
    ordinary = np.arange(len(_SPECIAL), _FEW)
    objective = build_objective(small, Vocabulary(_FEW, _SPECIAL, ordinary, int(ordinary[0]), 1.0))
    batch = full_rows(1, min(small.data.sequence_length, _LONGEST), _FEW, seed=0)
    counted = _Counted({parameter.untyped_storage().data_ptr() for parameter in objective.parameters()})
    for module in objective.modules():
        if isinstance(module, nn.Dropout) and module.p:
            module.register_forward_hook(counted.dropout)
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(counted.pack, lambda kept: kept):
        sums = objective(batch, objective.select(batch, 0))
    return counted.per_token(batch.tokens, keep=sums)


def _smaller(config: Config, layers: int, decoder_layers: int, *, again: bool) -> Config:
    encoder = config.model.encoder
    # Local layers keep what global ones do, but a processor computes them in bands.
    extra = {name: value for name, value in encoder.extra.items() if name not in ("vocab_size", "layer_types")}
    if encoder.model_type == "modernbert":
        extra |= {"local_attention": 4 * _LONGEST}
    model = config.model.model_copy(
        update={
            "pretrained": None,
            "compile": False,
            "gradient_checkpointing": again,
            "gradient_checkpointing_every": 1,
            "encoder": encoder.model_copy(update={"num_hidden_layers": layers, "extra": extra}),
            "decoder": config.model.decoder.model_copy(update={"num_hidden_layers": decoder_layers}),
        }
    )
    return config.model_copy(update={"model": model})


def full_rows(rows: int, length: int, vocabulary: int, seed: int) -> Batch:
    """A micro-batch of rows that are one document each, of random tokens."""
    tokens = rows * length
    ids_T = torch.randint(len(_SPECIAL), vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    bounds_D1 = torch.arange(0, tokens + 1, length, dtype=torch.int32)
    ids_T[bounds_D1[:-1].long()], ids_T[bounds_D1[1:].long() - 1] = _SPECIAL["cls"], _SPECIAL["sep"]
    return Batch(
        ids_T=ids_T,
        word_starts_T=torch.ones(tokens, dtype=torch.bool),
        lengths_D=np.full(rows, length),
        cu_seqlens_D1=bounds_D1,
        row_ids_D=torch.arange(rows),
        row_offsets_D=torch.zeros(rows, dtype=torch.int64),
        epoch=0,
        tokens=tokens,
        rows=rows,
    )


class _Counted:
    """Adds up what autograd saves. Tensors stay alive here, or another one might get the storage of a freed one."""

    def __init__(self, parameters: set[int]) -> None:
        self.seen = set(parameters)
        self.tensors: list[torch.Tensor] = []
        self.elements = self.dropped = self.other = self.widest = 0.0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Gradients by the vocabulary are made in the forward pass, and are not the tokens'.
        if storage.data_ptr() in self.seen or tensor.shape[:1] == (_FEW,):
            return tensor
        self.seen.add(storage.data_ptr())
        self.tensors.append(tensor)
        size = storage.nbytes()
        if tensor.is_floating_point():
            self.elements += size / tensor.element_size()
            self.widest = max(self.widest, size / tensor.element_size())
        else:
            self.other += size
        return tensor

    def dropout(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self.dropped += output.numel()

    def per_token(self, tokens: int, keep: object) -> Saved:
        """What was counted; `keep` is what holds the graph alive until here."""
        return Saved(self.elements / tokens, self.dropped / tokens, self.other / tokens, self.widest / tokens)
