"""Document bounds equal those counted one document after another."""

import numpy as np
import pytest
import torch

from train.model.documents import Documents


@pytest.mark.parametrize("lengths", [[1], [2], [5, 1, 3], [2, 2, 2], [40, 2, 17, 3]])
def test_bounds_positions_and_owners_equal_a_loop(lengths: list[int]) -> None:
    """Reference: a loop over documents and their tokens."""
    documents = Documents.of(np.array(lengths), torch.device("cpu"))
    assert documents.index_T.tolist() == [number for number, length in enumerate(lengths) for _ in range(length)]
    assert documents.positions_T.tolist() == [place for length in lengths for place in range(length)]
    assert documents.cu_seqlens_D1.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert documents.starts_T.tolist() == [
        sum(lengths[:number]) for number, length in enumerate(lengths) for _ in range(length)
    ]
    assert (documents.tokens, documents.max_length) == (sum(lengths), max(lengths))


@pytest.mark.parametrize("lengths", [[1], [5, 1, 3], [40, 2, 17, 3]])
def test_bounds_that_are_on_the_device_already_give_the_same_documents(lengths: list[int]) -> None:
    """Reference: the documents made from their lengths."""
    expected = Documents.of(np.array(lengths), torch.device("cpu"))
    documents = Documents.bounded(np.array(lengths), expected.cu_seqlens_D1)
    assert torch.equal(documents.index_T, expected.index_T)
    assert documents.index_T.dtype == torch.int64
    assert (documents.tokens, documents.max_length) == (expected.tokens, expected.max_length)


def test_the_types_are_those_of_the_kernels() -> None:
    """Reference: the fields' documentation; the variable-length kernel takes int32 bounds only."""
    documents = Documents.of(np.array([3, 4]), torch.device("cpu"))
    assert (documents.cu_seqlens_D1.dtype, documents.index_T.dtype) == (torch.int32, torch.int64)
    assert documents.positions_T.dtype == torch.int64
