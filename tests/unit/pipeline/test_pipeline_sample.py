"""The sample of the shards that is read before a run."""

import shutil
from pathlib import Path

import torch

from data_pipeline.manifest import load_manifest
from train.data.data_set import DataSet
from train.distributed import Ranks
from train.preflight.shards import sample_shards

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None, hosts_R=("here",))


def test_a_shard_that_is_missing_cut_or_damaged_is_named(build_set, texts, tmp_path):
    """Reference: shards as they were built, and each with one thing wrong."""
    built = build_set(texts[:50])
    (found,) = sample_shards(ALONE, [DataSet("whole", load_manifest(built))])
    assert found.level == "ok"

    def broken(name, change):
        folder = Path(shutil.copytree(built, tmp_path / name))
        change(shard := next(folder.glob("train-*.tar")))
        (found,) = sample_shards(ALONE, [DataSet(name, load_manifest(folder))])
        assert found.level == "wrong" and shard.name in found.text
        return found.text

    assert "No such file" in broken("missing", Path.unlink)
    assert "bytes, the manifest says" in broken("cut", lambda path: path.write_bytes(path.read_bytes()[:-512]))
    flipped = lambda path: path.write_bytes(path.read_bytes().replace(b"ids.npy", b"idz.npy"))  # noqa: E731
    assert "damaged" in broken("flipped", flipped)
