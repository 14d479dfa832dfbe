"""Suite files: the presets, and what is wrong with others in one line."""

from pathlib import Path

import pytest

from train.errors import BertmaeError
from train.finetune.evaluate import table
from train.finetune.results import over_seeds
from train.finetune.suite import read_suite

ROOT = Path(__file__).parents[3]
TASK = "{task: classification, train: a/train.jsonl, validation: a/dev.jsonl}"


def read(file: Path, **more):
    return read_suite(file, Path("model"), Path("data"), Path("out"), **more)


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "configs" / "suites").glob("*.yaml"))])
def test_every_preset_is_a_suite_of_tasks_that_finetune_knows(name):
    """Reference: the settings of finetune, which refuse unknown names and values. All data are in the data folder."""
    suite = read(ROOT / "configs" / "suites" / name)
    assert len(suite.tasks) > 2 and suite.seeds == (1, 2, 3)
    for task, settings in suite.tasks.items():
        assert settings.output == Path("out") / task and settings.train.startswith("data/")
    assert set(suite.absent()) == set(suite.tasks)


def test_a_task_takes_the_shared_settings_its_own_come_first_and_seeds_can_be_given(tmp_path):
    """Reference: the file. A data set of `datasets` is no path."""
    file = tmp_path / "s.yaml"
    file.write_text(
        "settings: {epochs: 2, max_length: 64}\ntasks:\n  one: "
        + TASK.replace("}", ", epochs: 7, repair: true}")
        + "\n  two: {task: classification, train: datasets:x#train, validation: /abs/dev.jsonl, learning_rate: 1e-4}\n"
    )
    suite = read(file, seeds=[5, 6])
    one, two = suite.tasks["one"], suite.tasks["two"]
    assert suite.seeds == (5, 6) and read(file).seeds == (1,)
    assert (one.epochs, one.max_length, one.repair, one.train) == (7, 64, True, "data/a/train.jsonl")
    assert (two.epochs, two.train, two.validation, two.learning_rate) == (2, "datasets:x#train", "/abs/dev.jsonl", 1e-4)
    assert suite.absent() == {"one": Path("data/a"), "two": Path("/abs")}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "a suite has tasks:"),
        ("tasks: {}", "a suite has tasks:"),
        (f"tasks: {{one: {TASK}}}\ntask: 1", "unknown key task (did you mean tasks?)"),
        (f"tasks: {{../x: {TASK}}}", "it names a folder"),
        ("tasks: {one: {train: x}}", "one: no task:"),
        ("tasks: {one: {task: clasification, train: x, validation: y}}", "did you mean classification?"),
        ("tasks: {one: {task: classification, train: x}}", "one: classification: --validation is missing"),
        ("tasks: {one: {task: classification, train: x, validation: y, epoch: 3}}", "did you mean epochs?"),
        ("tasks: {one: {task: classification, train: x, validation: y, epochs: -1}}", "must be above 0"),
        ("tasks: {one: {task: classification, train: x, validation: y, epochs: many}}", "of a wrong type"),
        ("tasks: {one: {task: classification, train: x, validation: y, seed: 3}}", "seed comes from the command line"),
        (f"tasks: {{one: {TASK}}}\nseeds: [1, 1]", "a list of different whole numbers"),
        (f"tasks: {{one: {TASK}}}\nseeds: 3", "a list of different whole numbers"),
        (f"tasks: {{one: {TASK}}}\nsettings: 3", "settings is no mapping"),
        ("tasks: {one: 1, one: 2}", "written twice"),
    ],
)
def test_mistakes_are_one_line_with_the_file(text, part, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(BertmaeError) as caught:
        read(file)
    words = str(caught.value)
    assert caught.value.exit_code == 2 and part in words and str(file) in words and "\n" not in words


def test_the_table_has_mean_and_deviation_of_the_metric_that_decides():
    """Reference: by hand: 80 and 84 % have the mean 82 and the deviation 2.8; one seed has none."""
    results = {1: {"metrics": {"validation": {"accuracy": 0.80}}}, 2: {"metrics": {"validation": {"accuracy": 0.84}}}}
    report = {"task": "classification", "decisive": "accuracy", "seeds": [1, 2], "metrics": over_seeds(results)}
    single = report | {"seeds": [1], "metrics": over_seeds({1: results[1]})}
    lines = table({"two": report, "one": single}, {"gone": Path("x")})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["two", "classification", "accuracy", "82.0 % ± 2.8 %", "", "2"]
    assert cells[3] == ["one", "classification", "accuracy", "80.0 %", "", "1"]
    assert cells[4][0] == "gone" and cells[4][3] == "not there" and set(lines[1]) == {"|", "-"}
