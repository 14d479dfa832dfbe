"""Buckets hold every document once, whole, padded with nothing but itself."""

import numpy as np
import pytest
import torch

from train.model.buckets import Buckets
from train.model.documents import Documents

LENGTHS = [17, 2, 16, 70, 3, 64, 2, 33, 1, 128]


@pytest.mark.parametrize("most", [1, 2, 100])
def test_every_token_has_one_slot_and_padding_is_the_documents_own(most: int) -> None:
    """Reference: the documents of the batch, one after another."""
    documents = Documents.of(np.array(LENGTHS), torch.device("cpu"))
    buckets = Buckets.of(documents, lambda padded: most if padded > 16 else 0)
    flat_T = torch.cat([bucket.places_BL.flatten() for bucket in buckets.groups])
    real_T = torch.cat([bucket.real_BL.flatten() for bucket in buckets.groups])
    assert flat_T[buckets.slots_T].tolist() == list(range(sum(LENGTHS)))
    assert real_T[buckets.slots_T].all() and int(real_T.sum()) == sum(LENGTHS)
    for bucket in buckets.groups:
        rows, padded = bucket.places_BL.shape
        assert rows <= (most if padded > 16 else 1) and padded in (16, 32, 64, 128)
        numbers_BL = documents.index_T[bucket.places_BL]
        assert (numbers_BL == numbers_BL[:, :1]).all()
        assert (bucket.real_BL.sum(1) > (padded // 2 if padded > 16 else 0)).all()
        assert (bucket.places_BL.diff(dim=1) == bucket.real_BL[:, 1:].int()).all()
