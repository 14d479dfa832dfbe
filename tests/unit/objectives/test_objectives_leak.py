"""Nothing crosses from one document to another, for every encoder family and every objective."""

from typing import Any

import pytest
import torch
from objective_toys import LENGTHS, SEED, Document, as_batch, make_documents, tiny_objective
from torch import nn

from train.config import Config
from train.model.families import FAMILIES
from train.objectives import REGISTRY
from train.objectives.objective import Objective

EXTRA: dict[str, dict[str, Any]] = {"modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2}}


def of_family(family: str, name: str) -> Objective[Any]:
    """A tiny objective whose units are words; local attention is shorter than the documents."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    encoder = {**sizes, "model_type": family, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0}
    encoder |= {"initializer_range": 0.3, "extra": EXTRA.get(family, {})}
    settings = {"name": name, "mask_ratio": 0.3, "drop_ratio": 0.4, "mask_unit": "word", "drop_unit": "word"}
    config = {
        "run": {"seed": SEED},
        "data": {"path": "nowhere", "sequence_length": 40},
        "model": {"encoder": encoder, "decoder": {"num_hidden_layers": 1}, "gradient_checkpointing": False},
        "objective": settings,
    }
    return tiny_objective(Config.model_validate(config))


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_neighbours_tokens_change_no_state_of_a_document(family: str, name: str) -> None:
    """Reference: the same batch before the tokens of all other documents were replaced; bit for bit, at every state of
    the encoder and of the decoder, and none of the others stays as it was."""
    objective = of_family(family, name)
    documents, others = make_documents(LENGTHS), make_documents(LENGTHS, seed=1)
    number = LENGTHS.index(17)
    replaced = [
        other._replace(row=own.row, offset=own.offset, starts=own.starts)
        for own, other in zip(documents, others, strict=True)
    ]
    replaced[number] = documents[number]
    before, after = states(objective, documents), states(objective, replaced)
    assert len(before) == len(after) > 0
    for left, right in zip(before, after, strict=True):
        assert torch.equal(left[number], right[number])
        longest = LENGTHS.index(40)
        assert not torch.equal(left[longest], right[longest])


def states(objective: Objective[Any], documents: list[Document]) -> list[list[torch.Tensor]]:
    """What the encoder, and the decoder where there is one, gave out: for each, the states of every document."""
    found: list[list[torch.Tensor]] = []
    batch = as_batch(documents)
    selection = objective.select(batch)

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        lengths = next((a.lengths_D for a in arguments[1:] if hasattr(a, "lengths_D")), batch.lengths_D)
        found.append(list(output.split(lengths.tolist())))

    parts = [objective.encoder, *([objective.decoder] if hasattr(objective, "decoder") else [])]
    handles = [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad():
        objective(batch, selection)
    for handle in handles:
        handle.remove()
    return found
