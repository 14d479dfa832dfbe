"""Packing plans on disk: the same as made anew, made once, whole or not at all, wherever there is a place for them."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.checks.verify import verify
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from train.data.packing import PackingRules, RowPlan, plan_rows
from train.data.plan_cache import load_plan, open_plan, store_plan

RULES = PackingRules(48)
ARRAYS = ("rows_B", "row_pieces_R1", "piece_start_P", "piece_length_P")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_equal(found: RowPlan, expected: RowPlan) -> None:
    for name in ARRAYS:
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    fields = ("rules", "tokens", "unread", "digest")
    assert [getattr(found, name) for name in fields] == [getattr(expected, name) for name in fields]


def test_a_stored_plan_is_mapped_as_it_was_made(data_set: Manifest, tmp_path: Path) -> None:
    """Reference: the plan in memory; the arrays are read-only views of the file."""
    path, digest = store_plan(data_set, "train", RULES, tmp_path / "cache")
    assert Path(path).parent == data_set.directory / "plans"
    plan = load_plan(path, digest, data_set, "train", RULES)
    assert_equal(plan, plan_rows(data_set, "train", RULES))
    assert not any(getattr(plan, name).flags.writeable or getattr(plan, name).flags.owndata for name in ARRAYS)
    assert not (tmp_path / "cache").exists()


def test_a_plan_is_made_once_for_each_rule(data_set: Manifest, tmp_path: Path) -> None:
    """Reference: the time of the file's last change, and one file for each different rule."""
    path, _ = store_plan(data_set, "train", RULES, tmp_path)
    changed = Path(path).stat().st_mtime_ns
    assert store_plan(data_set, "train", RULES, tmp_path)[0] == path
    assert Path(path).stat().st_mtime_ns == changed
    others = [PackingRules(64), PackingRules(48, 20), PackingRules(48, 20, 5)]
    paths = {path, *(store_plan(data_set, "train", rules, tmp_path)[0] for rules in others)}
    assert len(paths) == 4
    assert sorted(Path(path).name for path in paths) == names(data_set.directory / "plans")


def test_a_folder_that_takes_no_files_leaves_the_cache_or_memory(data_set: Manifest, tmp_path: Path) -> None:
    """Reference: the plan in memory; files stand where the folders would."""
    (data_set.directory / "plans").write_text("")
    path, digest = store_plan(data_set, "train", RULES, tmp_path / "cache")
    assert Path(path).is_relative_to(tmp_path / "cache")
    assert_equal(load_plan(path, digest, data_set, "train", RULES), plan_rows(data_set, "train", RULES))
    (tmp_path / "no-cache").write_text("")
    path, digest = store_plan(data_set, "train", RULES, tmp_path / "no-cache")
    assert path == ""
    assert_equal(load_plan(path, digest, data_set, "train", RULES), plan_rows(data_set, "train", RULES))


@pytest.mark.parametrize("where", [0, 9, 300, -1])
def test_a_damaged_file_is_made_anew_and_said_so(
    data_set: Manifest, tmp_path: Path, messages: Callable, where: int
) -> None:
    """Reference: the plan in memory, after a byte of the length, the description or the arrays was changed."""
    path, digest = store_plan(data_set, "train", RULES, tmp_path)
    content = bytearray(Path(path).read_bytes())
    content[where] ^= 0x55
    Path(path).write_bytes(content)
    assert store_plan(data_set, "train", RULES, tmp_path) == (path, digest)
    assert any("damaged packing plan" in line and line.startswith(path) for line in messages())
    assert_equal(load_plan(path, digest, data_set, "train", RULES), plan_rows(data_set, "train", RULES))


@pytest.mark.parametrize("size", [0, 3, 200, 700])
def test_a_file_cut_short_is_made_anew(data_set: Manifest, tmp_path: Path, size: int) -> None:
    """Reference: the plan in memory."""
    path, digest = store_plan(data_set, "train", RULES, tmp_path)
    Path(path).write_bytes(Path(path).read_bytes()[:size])
    assert store_plan(data_set, "train", RULES, tmp_path) == (path, digest)
    assert_equal(open_plan(data_set, "train", RULES), plan_rows(data_set, "train", RULES))


def test_another_data_set_in_the_same_folder_has_a_plan_of_its_own(make_data_set: Callable, tmp_path: Path) -> None:
    """Reference: the plans in memory; both lie in one cache folder."""
    for seed in (1, 2):
        manifest = make_data_set([[[30 + seed, 20, 9]]], seed=seed)
        (manifest.directory / "plans").write_text("")
        path, digest = store_plan(manifest, "train", RULES, tmp_path / "cache")
        assert_equal(load_plan(path, digest, manifest, "train", RULES), plan_rows(manifest, "train", RULES))
    assert len(names(tmp_path / "cache" / "plans")) == 2


def test_a_node_with_other_shards_is_refused(make_data_set: Callable) -> None:
    """Reference: the digest that rank 0 names."""
    manifest = make_data_set([[[30, 20, 9]]])
    with pytest.raises(DataError, match="this node sees other documents"):
        load_plan("/nowhere", "0" * 16, manifest, "train", RULES)


def test_places_held_for_a_missing_shard_are_planned_anew_once_it_is_back_unless_a_run_needs_them(
    data_set: Manifest, tmp_path: Path
) -> None:
    """Reference: the plan without damage; a run that began without the shard goes on with the plan it began with."""
    whole = plan_rows(data_set, "train", RULES)
    shard, aside = data_set.directory / "train-000001.tar", tmp_path / "aside"
    shard.rename(aside)
    path, digest = store_plan(data_set, "train", RULES, tmp_path)
    held = load_plan(path, digest, data_set, "train", RULES)
    assert [block for block, _ in held.unread] == [3, 4]
    assert digest != whole.digest
    assert store_plan(data_set, "train", RULES, tmp_path) == (path, digest), "it is kept while the shard is away"
    aside.rename(shard)
    assert store_plan(data_set, "train", RULES, tmp_path, wanted=digest) == (path, digest)
    assert store_plan(data_set, "train", RULES, tmp_path) == (path, whole.digest)
    assert_equal(load_plan(path, whole.digest, data_set, "train", RULES), whole)


def _store(manifest: Manifest, cache: Path, results: "multiprocessing.Queue[tuple[str, str]]") -> None:
    results.put(store_plan(manifest, "train", RULES, cache))


def test_processes_that_make_the_same_plan_at_once_leave_one_whole_file(data_set: Manifest, tmp_path: Path) -> None:
    """Reference: the plan in memory; no temporary file is left."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_store, args=(data_set, tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    ((path, digest),) = found
    assert_equal(load_plan(path, digest, data_set, "train", RULES), plan_rows(data_set, "train", RULES))
    assert names(data_set.directory / "plans") == [Path(path).name]


def test_verification_takes_the_plans_for_no_shards(data_set: Manifest, tmp_path: Path) -> None:
    """Reference: what verification says of the folder without plans."""
    before = verify(data_set)
    store_plan(data_set, "train", RULES, tmp_path)
    assert verify(data_set) == before
