"""What rows are called where something is said of them."""

from collections.abc import Callable

import numpy as np

from data_pipeline.manifest import Manifest
from train.data.batch import read_rows
from train.data.epochs import EpochWalk
from train.data.mixture import MixtureWalk, Stage
from train.data.order import Share
from train.data.packing import PackingRules, plan_rows
from train.data.stream import TrainStream

NAMES = ["en", "zh", "code"]


def sources(manifests: list[Manifest], length: int) -> tuple[EpochWalk, ...]:
    rules = PackingRules(length)
    return tuple(EpochWalk(m, "train", plan_rows(m, "train", rules), seed=5) for m in manifests)


def test_the_names_of_a_mixture_say_which_text_it_is(make_data_set: Callable) -> None:
    """Reference: the rows that the names speak of, read from each source alone: token by token those of the batches,
    over several epochs, other weights and another sequence length; no name stands for two rows."""
    manifests = [make_data_set([[[40] * rows, [90] * rows]], seed=seed) for seed, rows in ((1, 30), (2, 17), (3, 4))]
    short, long = sources(manifests, 48), sources(manifests, 96)
    stages = [Stage(0, short, (6, 3, 1)), Stage(3, short, (1, 2, 7)), Stage(6, long, (1, 1, 1))]
    walk, names = MixtureWalk(stages, NAMES, seed=5), set()
    stream = TrainStream(walk, Share(0, 1, 30, 30), walk.start)
    for step in range(12):
        [batch], cursor = next(stream)
        ids_N = np.unique(batch.row_ids_D.numpy())
        here = walk.row_names(ids_N, batch.epoch, cursor)
        names |= {(step >= 6, name) for name in here}
        for row_id, name in zip(ids_N.tolist(), here, strict=True):
            source, _, row = name.split("/")
            alone = (long if step >= 6 else short)[NAMES.index(source)]
            read = read_rows(np.array([int(row)]), alone.plan, alone.reader, alone.special_ids)
            mine_T = np.repeat((batch.row_ids_D == row_id).numpy(), batch.lengths_D)
            assert read.ids_T.tolist() == batch.ids_T[mine_T].tolist()
    stream.close()
    assert len(names) == 12 * 30


def test_the_rows_of_one_data_set_are_named_by_their_epoch(data_set: Manifest) -> None:
    """Reference: the numbers of the rows in the batch."""
    walk = EpochWalk(data_set, "train", plan_rows(data_set, "train", PackingRules(48)), seed=5)
    [batch] = walk.batches(walk.start, Share(0, 1, 4, 4))
    ids_N = np.unique(batch.row_ids_D.numpy())
    assert walk.row_names(ids_N, 3, walk.start) == [f"data/3/{row}" for row in ids_N.tolist()]
