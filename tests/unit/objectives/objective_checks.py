"""Properties that every objective has, as functions for the tests of single objectives.

Legend: T tokens, D documents, H heads.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from objective_reference import HeadTotals, Reference
from objective_toys import Document, as_batch, make_documents, run, tiny_objective
from torch.utils._python_dispatch import TorchDispatchMode

from train.config import Config
from train.objectives.objective import Objective

EPOCH = 3
Definition = Callable[[Reference, Sequence[Document], int], list[HeadTotals]]
Sums = tuple[torch.Tensor, torch.Tensor]


def plain_reference(objective: Objective, config: Config) -> Reference:
    return Reference(objective, config, "sdpa", None)


def assert_equals_definition(
    config: Config,
    lengths: Sequence[int],
    definition: Definition,
    least_hits: int,
    reference_of: Callable[[Objective, Config], Reference] = plain_reference,
) -> None:
    """Losses, hits and the gradient of every parameter; the model learns first, so that it guesses something right.

    Parameters that the definition does not use must have no gradient.
    """
    objective, documents = tiny_objective(config), make_documents(lengths)
    learn(objective, documents, steps=12)
    reference = reference_of(objective, config)
    totals = definition(reference, documents, EPOCH)
    objective.zero_grad()
    losses_H, hits_H2 = run(objective, as_batch(documents, EPOCH))
    assert hits_H2.tolist() == [[total.hits, total.frequent] for total in totals]
    assert all(total.hits >= least_hits and total.frequent > 0 for total in totals)
    expected_H = torch.stack([total.loss for total in totals])
    torch.testing.assert_close(losses_H, expected_H, atol=1e-5, rtol=1e-5)
    weights_H = torch.tensor([1.0, 0.6, 1.7])[: len(totals)]
    (losses_H * weights_H).sum().backward()
    (expected_H * weights_H).sum().backward()
    assert_close_gradients(objective, reference.gradients())


def assert_close_gradients(objective: Objective, expected: dict[str, torch.Tensor | None]) -> None:
    """To one part in 100,000 of each tensor's largest gradient (and of 1, where it is below)."""
    assert expected.keys() == dict(objective.named_parameters()).keys()
    for name, parameter in objective.named_parameters():
        gradient = expected[name]
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            scale = max(1.0, float(gradient.abs().max()))
            error = float((parameter.grad - gradient).abs().max())
            assert error <= 1e-5 * scale, f"{name}: {error} of {scale}"


def learn(objective: Objective, documents: Sequence[Document], steps: int) -> None:
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        run(objective, as_batch(documents, EPOCH))[0].sum().backward()
        optimizer.step()


def sums_and_gradients(
    objective: Objective, micro_batches: Sequence[Sequence[Document]]
) -> tuple[Sums, dict[str, torch.Tensor]]:
    """Loss sums and hits over micro-batches, and the gradients that add up."""
    objective.zero_grad()
    sums = [run(objective, as_batch(documents, EPOCH)) for documents in micro_batches]
    for losses_H, _ in sums:
        losses_H.sum().backward()
    totals = sum(losses_H.detach() for losses_H, _ in sums), sum(hits_H2 for _, hits_H2 in sums)
    gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
    return totals, {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def assert_same(objective: Objective, left: list[list[Document]], right: list[list[Document]]) -> None:
    """Two ways to cut documents into micro-batches give the same sums and gradients; the objective is in fp64."""
    (left_H, left_H2), left_gradients = sums_and_gradients(objective, left)
    (right_H, right_H2), right_gradients = sums_and_gradients(objective, right)
    assert left_H2.tolist() == right_H2.tolist()
    torch.testing.assert_close(left_H, right_H, rtol=1e-6, atol=0)
    assert left_gradients.keys() == right_gradients.keys()
    for name, gradient in right_gradients.items():
        error, size = float((left_gradients[name] - gradient).norm()), float(gradient.norm())
        assert error <= 1e-6 * max(1.0, size), f"{name}: {error} of {size}"


def assert_micro_batches_add_up(config: Config, lengths: Sequence[int]) -> None:
    """Two micro-batches, single documents, another order, fillers among them: all as the batch in one piece."""
    objective, documents = tiny_objective(config).double(), make_documents(lengths)
    [filler] = make_documents([2])
    filled = [filler, *documents[:3], filler, *documents[3:], filler]
    splits = [documents[:3], documents[3:]], [[document] for document in documents], [documents[::-1]], [filled]
    for split in splits:
        assert_same(objective, split, [documents])


def assert_a_neighbours_tokens_change_nothing(config: Config, lengths: Sequence[int]) -> None:
    """The loss of a document among others is that of the document among others of other tokens.

    The gradient of its loss alone cannot be had from a batch: sums over all documents but one differ by that one.
    """
    objective, documents = tiny_objective(config).double(), make_documents(lengths)
    others = [
        other._replace(row=own.row, offset=own.offset, starts=own.starts)
        for own, other in zip(documents, make_documents(lengths, seed=1), strict=True)
    ]
    for number, document in enumerate(documents):
        before, after = others[:number], others[number + 1 :]
        with torch.no_grad():
            batches = [*before, document, *after], [document], [*before, *after]
            together, alone, rest = (run(objective, as_batch(batch)) for batch in batches)
        torch.testing.assert_close(together[0] - rest[0], alone[0], rtol=1e-6, atol=1e-4)
        assert torch.equal(together[1] - rest[1], alone[1])


def assert_fillers_give_nothing(config: Config) -> None:
    """0, and never NaN: what the objective trains takes part, with a gradient of zeros."""
    for checkpointing in (False, True):
        model = config.model.model_copy(update={"gradient_checkpointing": checkpointing})
        objective = tiny_objective(config.model_copy(update={"model": model}))
        batch = as_batch(make_documents([2, 2, 2]))
        assert objective.target_counts(objective.select(batch)).tolist() == [0] * len(objective.heads)
        (losses_H, hits_H2), gradients = sums_and_gradients(objective, [make_documents([2, 2, 2])])
        assert losses_H.tolist() == [0.0] * len(objective.heads) and not hits_H2.any()
        assert gradients and all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients.values())


def assert_recomputing_changes_no_bit(config: Config, lengths: Sequence[int], layer_part: str, layers: int) -> None:
    """With dropout, activations stored and recomputed; modules named `layer_part` run twice where recomputed."""
    results = []
    for checkpointing in (False, True):
        model = config.model.model_copy(update={"gradient_checkpointing": checkpointing})
        objective = tiny_objective(config.model_copy(update={"model": model}))
        calls: list[int] = []
        parts = [part for name, part in objective.named_modules() if name.endswith(layer_part)]
        for part in parts:
            part.register_forward_pre_hook(lambda _, __, calls=calls: calls.append(1))
        torch.manual_seed(7)
        results.append(sums_and_gradients(objective, [make_documents(lengths)]))
        assert len(parts) == layers and len(calls) == layers * (1 + checkpointing)
    ((stored_H, stored_H2), stored), ((again_H, again_H2), again) = results
    assert torch.equal(stored_H, again_H) and torch.equal(stored_H2, again_H2)
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)


class NothingIsRead(TorchDispatchMode):
    """Refuses operators that read a value of a tensor or whose result has a shape that depends on values.

    On a GPU each of them would make the host wait.
    """

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "bincount")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        assert name not in self.READING, name
        if name in ("index.Tensor", "index", "index_put_", "index_put", "_index_put_impl_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), name
        if name.startswith("repeat_interleave"):
            assert (kwargs or {}).get("output_size") is not None
        return function(*args, **(kwargs or {}))


def assert_nothing_is_read_from_the_device(config: Config, lengths: Sequence[int]) -> None:
    """Neither in `select` nor in `forward`; the counts come to the host by a readback."""
    objective = tiny_objective(config)
    batch = as_batch(make_documents(lengths))
    for nothing in (as_batch(make_documents([3, 5])), batch):
        with NothingIsRead():
            selection = objective.select(nothing)
        counts_H = objective.target_counts(selection)
        with NothingIsRead(), torch.no_grad():
            losses_H, _ = objective(nothing, selection)
        assert counts_H.shape == losses_H.shape and np.issubdtype(counts_H.dtype, np.integer)
