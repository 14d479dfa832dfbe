"""An objective and its batch: no leak between documents, exact counts, fillers, micro-batches, checkpointing."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from objective_reference import slow_count
from objective_toys import (
    LENGTHS,
    OBJECTIVES,
    SIZE,
    VOCABULARY,
    Document,
    as_batch,
    make_documents,
    run,
    tiny_config,
    tiny_objective,
)
from torch import nn

from train.objectives.objective import Objective

EVERY_OBJECTIVE = pytest.mark.parametrize("name", OBJECTIVES)


def states(objective: Objective, documents: Sequence[Document]) -> list[list[torch.Tensor]]:
    """Per document, the last hidden states of the encoder and, where there is one, of the decoder."""
    found: list[list[torch.Tensor]] = []

    def keep(_: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        found.append(output.split(arguments[-1].lengths_D.tolist()))

    parts = [objective.encoder, *([objective.decoder] if hasattr(objective, "decoder") else [])]
    handles = [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad():
        run(objective, as_batch(documents))
    for handle in handles:
        handle.remove()
    assert len(found) == len(parts)
    return [list(pieces) for pieces in zip(*found, strict=True)]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@EVERY_OBJECTIVE
def test_a_document_in_a_batch_equals_the_document_alone_bit_for_bit(name: str) -> None:
    """Reference: the same objective on each document as a batch of its own.

    A BLAS chooses its kernel by the number of rows: MKL has others for a handful, and there the last bits may differ.
    """
    objective, documents = tiny_objective(tiny_config(name)), make_documents(LENGTHS)
    for document, packed in zip(documents, states(objective, documents), strict=True):
        [alone] = states(objective, [document])
        if len(document.ids) >= 17 and torch.backends.mkl.is_available():
            assert all_equal(packed, alone)
        for part, reference in zip(packed, alone, strict=True):
            torch.testing.assert_close(part, reference, atol=1e-5, rtol=1e-5)


@EVERY_OBJECTIVE
def test_a_neighbours_tokens_change_nothing(name: str) -> None:
    """Reference: the batch before all other documents' tokens were replaced; bit for bit, the shortest included."""
    objective, documents = tiny_objective(tiny_config(name)), make_documents(LENGTHS)
    replaced = [
        other._replace(row=own.row, offset=own.offset)
        for own, other in zip(documents, make_documents(LENGTHS, seed=1), strict=True)
    ]
    before = states(objective, documents)
    for number, document in enumerate(documents):
        after = states(objective, [*replaced[:number], document, *replaced[number + 1 :]])
        assert all_equal(after[number], before[number])
        for other, own in enumerate(documents):
            if other != number and len(own.ids) >= 9:
                assert not all_equal(after[other], before[other])


@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.9])
@EVERY_OBJECTIVE
def test_target_counts_are_what_forward_scores(name: str, ratio: float) -> None:
    """Reference: the slow count, the loss of a model that knows nothing (log V nats each) and its hit counts."""
    objective = tiny_objective(tiny_config(name, mask_ratio=ratio, drop_ratio=ratio))
    with torch.no_grad():
        objective.encoder.embedding_VD.zero_()
        for parameter_name, parameter in objective.named_parameters():
            if parameter.shape == (SIZE,):  # the biases of both vocabulary projections
                assert parameter_name.endswith("bias")
                parameter.zero_()
    for lengths in [LENGTHS, (2,), (3,), (4,), (2, 3, 4), (40, 39), tuple(range(2, 41))]:
        documents = [
            document._replace(ids=[VOCABULARY.most_frequent_id] * len(document.ids))
            for document in make_documents(lengths)
        ]
        selection = objective.select(as_batch(documents))
        counts_H = objective.target_counts(selection)
        losses_H, hits_H2 = objective(as_batch(documents), selection)
        assert hits_H2[:, 1].tolist() == counts_H.tolist()
        np.testing.assert_allclose(losses_H.detach(), counts_H * np.log(SIZE), rtol=1e-5, atol=0)
        assert counts_H.tolist() == slow_counts(name, lengths, ratio)


def slow_counts(name: str, lengths: Sequence[int], ratio: float) -> list[int]:
    """The targets of each head, a document at a time."""
    first = [slow_count(length - 2, ratio) for length in lengths]
    if name != "joint":
        return [sum(first)]
    masked = [slow_count(length - 2 - gone, ratio) for length, gone in zip(lengths, first, strict=True)]
    return [sum(masked), sum(first)]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@EVERY_OBJECTIVE
def test_a_batch_of_fillers_has_no_loss_and_no_gradient(name: str, checkpointing: bool) -> None:
    """Reference: 0, and never NaN: all that the objective trains takes part, with a gradient of zeros."""
    objective = tiny_objective(tiny_config(name, model={"gradient_checkpointing": checkpointing}))
    losses_H, hits_H2 = run(objective, as_batch(make_documents([2, 2, 2])))
    assert losses_H.tolist() == [0.0] * len(objective.heads)
    assert hits_H2.tolist() == [[0, 0]] * len(objective.heads)
    losses_H.sum().backward()
    for parameter_name, parameter in objective.named_parameters():
        if parameter.grad is None:
            assert name.endswith("mae") and parameter_name.startswith("encoder.masked_lm.cls."), parameter_name
        else:
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), parameter_name


@EVERY_OBJECTIVE
def test_fillers_among_documents_change_nothing(name: str) -> None:
    """Reference: the same documents without them, in fp64: in fp32 the order of summation would be seen."""
    documents = [document for document in make_documents(LENGTHS) if document.row >= 0]
    filled = [*make_documents([2]), *documents[:3], *make_documents([2, 2]), *documents[3:], *make_documents([2])]
    objective = tiny_objective(tiny_config(name)).double()
    (losses_H, hits_H2), gradients = sums_and_gradients(objective, [documents])
    (filled_H, filled_H2), filled_gradients = sums_and_gradients(objective, [filled])
    assert filled_H2.tolist() == hits_H2.tolist()
    torch.testing.assert_close(filled_H, losses_H, rtol=1e-6, atol=0)
    assert_equal_to_rounding(filled_gradients, gradients)


def sums_and_gradients(
    objective: Objective, micro_batches: Sequence[Sequence[Document]]
) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss sums and hits over the micro-batches, and the gradients that add up."""
    objective.zero_grad()
    sums = [run(objective, as_batch(documents)) for documents in micro_batches]
    for losses_H, _ in sums:
        losses_H.sum().backward()
    totals = sum(losses_H.detach() for losses_H, _ in sums), sum(hits_H2 for _, hits_H2 in sums)
    gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
    return totals, {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def assert_equal_to_rounding(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Up to one part in a million of each tensor's norm (and of 1, where a gradient is nothing but rounding)."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error, size = float((actual[name] - gradient).norm()), float(gradient.norm())
        assert error <= 1e-6 * max(1.0, size), f"{name}: {error} of {size}"


@EVERY_OBJECTIVE
def test_micro_batches_add_up_to_the_whole_batch(name: str) -> None:
    """Reference: the batch in one piece, in fp64. Splits into two, into single documents, and in another order."""
    objective, documents = tiny_objective(tiny_config(name)).double(), make_documents(LENGTHS)
    (losses_H, hits_H2), gradients = sums_and_gradients(objective, [documents])
    for split in ([documents[:3], documents[3:]], [[document] for document in documents], [documents[::-1]]):
        (split_H, split_H2), split_gradients = sums_and_gradients(objective, split)
        assert split_H2.tolist() == hits_H2.tolist()
        torch.testing.assert_close(split_H, losses_H, rtol=1e-6, atol=0)
        assert_equal_to_rounding(split_gradients, gradients)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@EVERY_OBJECTIVE
def test_recomputing_activations_changes_no_bit(name: str, dropout: float) -> None:
    """Reference: the same model and seed with its activations stored; recomputing runs every layer twice."""
    documents, results, calls = make_documents(LENGTHS), [], []
    for checkpointing in (False, True):
        model = {"gradient_checkpointing": checkpointing}
        objective = tiny_objective(tiny_config(name, dropout=dropout, model=model))
        # Inside the layers: transformers keeps the hooks of a whole layer out of the recomputation.
        inner = ("attention.self", "attention_norm")
        counted = [module for path, module in objective.named_modules() if path.endswith(inner)]
        assert len(counted) == (2 if name == "mlm" else 4)
        calls.append(count_calls(counted))
        torch.manual_seed(7)
        results.append(sums_and_gradients(objective, [documents]))
    (stored, stored_gradients), (recomputed, recomputed_gradients) = results
    assert (set(calls[0].values()), set(calls[1].values())) == ({1}, {2})
    assert torch.equal(stored[0], recomputed[0]) and torch.equal(stored[1], recomputed[1])
    for parameter_name, gradient in stored_gradients.items():
        assert torch.equal(gradient, recomputed_gradients[parameter_name]), parameter_name


def count_calls(modules: Sequence[nn.Module]) -> dict[nn.Module, int]:
    """How often each module was called; it fills while they run."""
    calls = dict.fromkeys(modules, 0)
    for module in modules:
        module.register_forward_pre_hook(lambda own, _: calls.update({own: calls[own] + 1}))
    return calls


def test_dropout_follows_torchs_generator_and_is_off_in_evaluation() -> None:
    """Reference: the same seed, another seed, and no dropout at all."""
    documents, objective = make_documents(LENGTHS), tiny_objective(tiny_config("joint", dropout=0.1))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(run(objective, as_batch(documents))[0].tolist())
    assert losses[0] == losses[1] != losses[2]
    none = tiny_objective(tiny_config("joint", dropout=0.0))
    none.load_state_dict(objective.state_dict())
    assert torch.equal(run(objective.eval(), as_batch(documents))[0], run(none, as_batch(documents))[0])
