"""RUN/incidents.jsonl: which rows of a step are written down, and when."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.manifest import Manifest
from train.config import Config, Data, Run
from train.data.epochs import EpochWalk
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, plan_rows
from train.distributed import Ranks
from train.errors import UserError
from train.monitor.incidents import Incidents, read_incidents

FINE, BROKEN = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, torch.nan]])


@pytest.fixture
def begin(data_set: Manifest, tmp_path: Path) -> Callable[[], Incidents]:
    """Incidents of a run after step 7, which read the last 6 rows of an epoch as two micro-batches of 4."""
    config = Config(data=Data(path=str(data_set.directory)), run=Run(directory=str(tmp_path / "run")))
    (tmp_path / "run").mkdir()
    walk = EpochWalk(data_set, "train", plan_rows(data_set, "train", PackingRules(48)), seed=5)
    cursor, share = Cursor(0, walk.plan.rows - 6), Share(0, 1, 4, 8)

    def begin() -> Incidents:
        incidents = Incidents(config, Ranks(0, 1, 0, torch.device("cpu"), None), walk, {})
        incidents.remember(7, walk.batches(cursor, share), walk.advance(cursor, share))
        return incidents

    begin.rows = [f"data/0/{row}" for row in walk.order(cursor).rows_at(np.arange(cursor.position, walk.plan.rows))]
    return begin


def written(tmp_path: Path) -> list[dict]:
    path = tmp_path / "run" / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_rows_and_suspects_are_those_of_the_step_without_fillers(begin, tmp_path):
    """Reference: the order of the epoch; the first micro-batch has its first four of the six rows."""
    begin().left_out(7, torch.cat([BROKEN, FINE]), loss_scale=None)
    [record] = written(tmp_path)
    assert sorted(record["rows"]) == sorted(begin.rows) and len(record["rows"]) == 6
    assert sorted(record["suspects"]) == sorted(begin.rows[:4])
    assert (record["step"], record["kind"]) == (7, "non-finite update")


@pytest.mark.parametrize(
    ("losses_AH", "scale", "lines"),
    [
        (torch.cat([FINE, FINE]), None, 1),  # fp32, bf16
        (torch.cat([FINE, FINE]), 2.0**16, 0),
        (torch.cat([FINE, FINE]), 2.0, 0),
        (torch.cat([FINE, FINE]), 1.0, 1),
        (torch.cat([FINE, BROKEN]), 2.0**16, 1),
    ],
)
def test_the_search_for_a_loss_scale_is_no_incident(begin, tmp_path, losses_AH, scale, lines):
    """Reference: by hand: a scale above 1 explains gradients that are not finite, not losses."""
    begin().left_out(7, losses_AH, scale)
    assert len(written(tmp_path)) == lines


def test_a_spike_is_written_with_its_numbers(begin, tmp_path):
    """Reference: by hand: a mean of 2 and the smallest deviation there is."""
    incidents = begin()
    incidents.rule.seen, incidents.rule.mean = 500, 2.0
    [spike] = incidents.judge([(5, 2.0), (6, 2.0), (7, 3.0)])
    [record] = written(tmp_path)
    assert (record["kind"], record["step"], record["loss"], record["expected"]) == ("loss spike", 7, 3.0, 2.0)
    assert record["deviations"] == pytest.approx(1 / 0.002) == spike.deviations
    assert sorted(record["rows"]) == sorted(begin.rows)


def test_an_incident_after_a_torn_line_can_be_read(begin, tmp_path):
    """Reference: the records of both starts; what a killed process left of a line is left out."""
    path = tmp_path / "run" / "incidents.jsonl"
    for torn in ("", '{"time": "2026'):
        incidents = begin()
        incidents.left_out(7, BROKEN.repeat(2, 1), None)
        incidents.close()
        path.write_text(path.read_text() + torn)
    begin().left_out(7, BROKEN.repeat(2, 1), None)
    assert [record["step"] for record in read_incidents(path)] == [7, 7, 7]


def test_a_run_without_incidents_says_so(tmp_path):
    """Reference: the file system."""
    with pytest.raises(UserError, match=r"incidents.jsonl: cannot be read \(No such file"):
        read_incidents(tmp_path / "incidents.jsonl")
