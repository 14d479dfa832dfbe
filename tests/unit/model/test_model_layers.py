"""Recomputed and compiled layers give the same model: same gradients, same names, less memory."""

import os
import shutil
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from train.config import Model
from train.errors import UserError
from train.model.decoder import Decoder
from train.model.documents import Documents
from train.model.encoder import build_encoder
from train.vocabulary import Vocabulary

LENGTHS = (17, 2, 32, 3, 21)
ENCODER: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler, which torch.compile needs on a CPU"
)


class Both(nn.Module):
    """An encoder, and a decoder over every second of its states."""

    def __init__(self, model: Model, vocabulary: Vocabulary) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = build_encoder(model, vocabulary), Decoder(model, vocabulary.size)

    def forward(self, lengths: tuple[int, ...]) -> torch.Tensor:
        documents = Documents.of(np.array(lengths), torch.device("cpu"))
        ids_T = torch.randint(5, 50, (sum(lengths),), generator=torch.Generator().manual_seed(1))
        hidden_TD = self.encoder(ids_T, documents.positions_T, documents)
        kept_K = torch.arange(0, sum(lengths), 2)
        return self.decoder(hidden_TD[kept_K], kept_K, documents.positions_T, documents).square().mean()


def both(vocabulary: Vocabulary, *, layers: int = 5, encoder: dict[str, Any] | None = None, **model: Any) -> Both:
    sizes = ENCODER | {"num_hidden_layers": layers, "hidden_dropout_prob": 0.0} | (encoder or {})
    settings = {"encoder": sizes, "decoder": {"num_hidden_layers": layers, "num_attention_heads": 2}}
    return Both(Model.model_validate(settings | {"gradient_checkpointing": False} | model), vocabulary)


def gradients(module: nn.Module, lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    """The loss, and the gradient of every parameter that has one."""
    torch.manual_seed(3)
    module.zero_grad()
    loss = module(lengths)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


def layers_of(module: Both) -> dict[str, list[nn.Module]]:
    return {
        "encoder": list(module.encoder.masked_lm.base_model.encoder.layer),
        "decoder": list(module.decoder.layers),
    }


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_recomputation_changes_no_bit_of_a_gradient(vocabulary: Vocabulary, every: int, dropout: float) -> None:
    """Reference: the same model without recomputation; dropout draws the same numbers again."""
    encoder = {"hidden_dropout_prob": dropout}
    plain = both(vocabulary, encoder=encoder)
    saving = both(vocabulary, encoder=encoder, gradient_checkpointing=True, gradient_checkpointing_every=every)
    for ours, theirs in zip(gradients(saving), gradients(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("model", "twice"),
    [
        ({}, []),
        ({"gradient_checkpointing": True}, [0, 1, 2, 3, 4]),
        ({"gradient_checkpointing": True, "gradient_checkpointing_every": 2}, [0, 2, 4]),
        ({"gradient_checkpointing": True, "gradient_checkpointing_every": 3}, [0, 3]),
        ({"gradient_checkpointing_every": 2}, []),
    ],
)
def test_every_nth_layer_runs_twice_in_training_and_once_in_validation(
    vocabulary: Vocabulary, model: dict[str, Any], twice: list[int]
) -> None:
    """Reference: the calls of a linear layer inside each layer of encoder and decoder, counted."""
    module, runs = both(vocabulary, **model), Counter()
    for part, layers in layers_of(module).items():
        for number, layer in enumerate(layers):
            first = next(inner for inner in layer.modules() if isinstance(inner, nn.Linear))
            first.register_forward_hook(lambda *_, key=(part, number): runs.update([key]))
    gradients(module)
    assert runs == {(part, i): 2 if i in twice else 1 for part in ("encoder", "decoder") for i in range(5)}
    runs.clear()
    module.eval()(LENGTHS).backward()
    with torch.no_grad():
        module.train()(LENGTHS)
    assert set(runs.values()) == {2}


def test_recomputation_keeps_fewer_bytes(vocabulary: Vocabulary) -> None:
    """Reference: the bytes that autograd holds between the passes, parameters apart; fewer with more recomputation."""
    held = []
    for model in ({}, {"gradient_checkpointing_every": 2}, {"gradient_checkpointing_every": 1}):
        module = both(vocabulary, **model, **({"gradient_checkpointing": True} if model else {}))
        own = {parameter.data_ptr() for parameter in module.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, own: set[int] = own, kept: dict[int, int] = kept) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(LENGTHS)
        held.append(sum(kept.values()))
    assert held[2] < 0.8 * held[1] and held[1] < 0.8 * held[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")  # the compiler looks at .grad of every tensor it meets
def test_compiled_layers_give_the_same_over_batches_of_any_shape(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Reference: the same model neither compiled nor recomputed; ModernBERT has global and local layers.

    One graph for each kind of layer, one or two more of each for validation, and none more when lengths change.
    """
    # Graphs and gradients are the same with the quick backend; the slow one is what a run uses.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setenv("CXX", os.environ.get("CXX", "g++") if backend == "inductor" else "true")
    torch._dynamo.reset()
    counters.clear()
    encoder = {"model_type": "modernbert", "extra": {"local_attention": 8}}
    plain = both(vocabulary, layers=2, encoder=encoder)
    compiled = both(vocabulary, layers=2, encoder=encoder, compile=True, gradient_checkpointing=True)
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for lengths in (LENGTHS, (40,), (3, 4), (20, 20, 2, 5, 6, 7), LENGTHS):
        for ours, theirs in zip(gradients(compiled, lengths), gradients(plain, lengths), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 3  # two layers of the encoder, one kind of the decoder
    assert not counters["graph_break"]
    for lengths in (LENGTHS, (9, 8), (3,), (5, 6, 7)):
        with torch.no_grad():
            torch.testing.assert_close(compiled.eval()(lengths), plain.eval()(lengths), atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] <= 9


def test_compilation_without_a_compiler_is_one_line(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the key and the way out, as the user is told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"model\.compile: no C\+\+ compiler no-such-compiler"):
        both(vocabulary, compile=True)
