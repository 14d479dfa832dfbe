"""A tiny model configuration and vocabulary; one thread for every test, whose tensors are too small for more."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from train.config import Model
from train.model.families import FAMILIES
from train.vocabulary import Vocabulary


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Model:
    """Encoder and decoder differ in every size; weights large enough for attention to matter."""
    encoder = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    encoder |= {"max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "initializer_range": 0.3}
    encoder |= {"hidden_act": "relu", "layer_norm_eps": 1e-6}
    decoder = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 28}
    return Model.model_validate({"gradient_checkpointing": False, "encoder": encoder, "decoder": decoder})


SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"max_position_embeddings": 96, "hidden_dropout_prob": 0.0, "initializer_range": 0.3}
FURTHER = {  # what the defaults of each family would leave untested in four layers
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "eurobert": {"num_key_value_heads": 1},
}


@pytest.fixture(params=FAMILIES)
def family_model(request: pytest.FixtureRequest) -> Model:
    """A tiny encoder of every family that the configuration knows."""
    encoder = SIZES | {"model_type": request.param, "extra": FURTHER.get(request.param, {})}
    return Model.model_validate({"gradient_checkpointing": False, "encoder": encoder})


@pytest.fixture
def vocabulary() -> Vocabulary:
    special_ids = {"pad": 2, "unk": 1, "cls": 0, "sep": 3, "mask": 4}
    return Vocabulary(50, special_ids, np.arange(5, 50), most_frequent_id=9, unigram_entropy=1.0)
