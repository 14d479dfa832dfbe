"""The DeepSpeed configuration: presets, what a file may say, and what DeepSpeed itself makes of it."""

import json
import warnings
from pathlib import Path

import pytest

from train.config import gradient_accumulation_steps
from train.ds_config import TOP_LEVEL, load_ds_config, zero_stage
from train.errors import UserError

ROOT = Path(__file__).resolve().parents[3]

PRESETS = sorted((ROOT / "ds_configs").glob("*.json"))
VALID = {"zero_optimization": {"stage": 2}}


class Recording(dict):
    """A dict that remembers which of its keys were asked for; copies remember in the same place."""

    def __init__(self, values, asked):
        super().__init__(values)
        self.asked = asked

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


@pytest.fixture(scope="module")
def deepspeed_config():
    """DeepSpeed's own reader of a configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.config import DeepSpeedConfig

        import train.engine  # noqa: F401 - the one importer of DeepSpeed, which sets it up
    return DeepSpeedConfig


@pytest.fixture
def load(tmp_path, configure):
    """Load a DeepSpeed configuration given as a dict or as text, for one process."""

    def load_one(content, *overrides):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return load_ds_config(configure(*overrides, f"engine.ds_config={path}"), 1)

    return load_one


@pytest.fixture
def refusal(load):
    """The one line that refuses a configuration."""

    def message(content, *overrides):
        with pytest.raises(UserError) as caught:
            load(content, *overrides)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    return message


def leaves(tree):
    for value in tree.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_filled_for_every_world_size(configure, path, precision, world_size):
    """Reference: the run's configuration, and the file for everything it does not own."""
    config = configure(f"engine.ds_config=ds_configs/{path.name}", f"engine.precision={precision}")
    stage = int(path.stem[len("zero")])
    if stage == 0 and precision == "bf16":
        with pytest.raises(UserError, match="stage 0 does not train bf16"):
            load_ds_config(config, world_size)
        return
    filled = load_ds_config(config, world_size)
    assert "auto" not in leaves(filled)
    assert zero_stage(filled) == stage
    assert filled["train_micro_batch_size_per_gpu"] == 2
    assert filled["gradient_accumulation_steps"] == gradient_accumulation_steps(config, world_size) == 4 // world_size
    assert filled["bf16"] == {"enabled": precision == "bf16", "check_grad_overflow": True}
    assert filled["data_types"]["grad_accum_dtype"] == "fp32"


def test_there_is_a_preset_for_every_stage_and_for_every_offload():
    """Reference: ZeRO's stages, each with what it can keep in host memory."""
    parts = {"offload_optimizer", "offload_param"}
    zero = {path.stem: json.loads(path.read_text())["zero_optimization"] for path in PRESETS}
    assert {name: (section["stage"], parts & section.keys()) for name, section in zero.items()} == {
        **{f"zero{stage}": (stage, set()) for stage in (0, 1, 2, 3)},
        **{f"zero{stage}-offload": (stage, {"offload_optimizer"}) for stage in (1, 2, 3)},
        "zero3-offload-parameters": (3, parts),
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_preset_with_offload_differs_in_nothing_else(stage):
    """Reference: the preset of the same stage."""
    folder = ROOT / "ds_configs"
    names = [f"zero{stage}-offload", *(["zero3-offload-parameters"] if stage == 3 else [])]
    for name in names:
        own = json.loads((folder / f"{name}.json").read_text())
        assert own.pop("zero_force_ds_cpu_optimizer") is False
        for part in ("offload_optimizer", "offload_param"):
            assert own["zero_optimization"].pop(part, None) in (None, {"device": "cpu", "pin_memory": True})
        assert own == json.loads((folder / f"zero{stage}.json").read_text())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_deepspeed_reads_a_preset_as_it_is_meant(configure, deepspeed_config, path):
    """Reference: DeepSpeed's parsed configuration."""
    config = configure(f"engine.ds_config={path}", "optimizer.gradient_clipping=0.5")
    filled = load_ds_config(config, 1)
    used = deepspeed_config(filled)
    assert used.train_micro_batch_size_per_gpu == 2
    assert used.gradient_accumulation_steps == 4
    assert used.train_batch_size == 8
    assert used.gradient_clipping == filled["gradient_clipping"] == (0.5 if zero_stage(filled) else 0.0)
    assert used.bfloat16_config.enabled is False
    assert used.grad_accum_dtype == "fp32"
    field_of = {info.alias: name for name, info in type(used.zero_config).model_fields.items()}
    for name, value in filled["zero_optimization"].items():
        own = getattr(used.zero_config, field_of.get(name, name))
        if isinstance(value, dict):
            assert {key: getattr(own, key) for key in value} == value, name
        else:
            assert own == value, name


def test_deepspeed_knows_every_allowed_key(load, deepspeed_config):
    """Reference: the keys that DeepSpeed's reader asks the configuration for."""
    asked = set()
    deepspeed_config(Recording(load(VALID), asked))
    assert asked >= TOP_LEVEL


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("gradient_cliping", "gradient_clipping"),
        ("zero_optimisation", "zero_optimization"),
        ("bf_16", "bf16"),
        ("train_micro_batch_size_per_gpus", "train_micro_batch_size_per_gpu"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(refusal, key, nearest):
    """Reference: DeepSpeed, which takes it without a word."""
    assert f"unknown key {key} (did you mean {nearest}?)" in refusal(VALID | {key: 1})


def test_a_key_of_deepspeed_that_the_run_does_not_use_is_refused_with_the_known_ones(refusal):
    """Reference: the list of allowed keys."""
    message = refusal(VALID | {"optimizer": {"type": "Adam"}})
    assert "unknown key optimizer" in message
    assert all(key in message for key in TOP_LEVEL)


@pytest.mark.parametrize(
    ("said", "key", "there", "here"),
    [
        ({"train_micro_batch_size_per_gpu": 3}, "train_micro_batch_size_per_gpu", "3", "2"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps", "1", "4"),
        ({"gradient_clipping": 0.25}, "gradient_clipping", "0.25", "1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "True", "False"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype", "'bf16'", "'fp32'"),
    ],
)
def test_a_value_that_contradicts_the_run_is_refused_with_both(refusal, said, key, there, here):
    """Reference: the run's configuration."""
    assert f"{key} is {there}, the run's configuration says {here}" in refusal(VALID | said)


def test_a_value_that_repeats_the_run_is_taken(load):
    """Reference: the same file with "auto"."""
    said = {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1, "bf16": {"enabled": False}}
    assert load(VALID | said) == load(VALID | dict.fromkeys(said, "auto") | {"bf16": {"enabled": "auto"}})


@pytest.mark.parametrize(
    "said",
    [
        {"prescale_gradients": "auto"},
        {"steps_per_print": "auto"},
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
    ],
)
def test_an_auto_that_nothing_fills_is_refused(refusal, said):
    """Reference: DeepSpeed, which drops a nested one and takes a top-level one for a value that is true."""
    assert 'is "auto", but no field of the run decides it' in refusal(VALID | said)


@pytest.mark.parametrize("stage", [4, -1, "2", "auto", None])
def test_a_stage_that_does_not_exist_is_refused(refusal, stage):
    """Reference: ZeRO's stages."""
    assert "zero_optimization.stage must be 0, 1, 2 or 3" in refusal({"zero_optimization": {"stage": stage}})


@pytest.mark.parametrize("content", [{}, {"zero_optimization": 2}, {"zero_optimization": {}}])
def test_a_missing_stage_is_refused(refusal, content):
    """Reference: ZeRO's stages; DeepSpeed would take 0."""
    assert "zero_optimization.stage must be 0, 1, 2 or 3" in refusal(content)


def test_bf16_at_stage_0_is_refused_with_the_way_out(refusal):
    """Reference: the hidden optimizer step that DeepSpeed takes there."""
    message = refusal({"zero_optimization": {"stage": 0}}, "engine.precision=bf16")
    assert "ds_configs/zero1.json" in message
    assert "engine.precision=fp32" in message


@pytest.mark.parametrize("content", ["{", "", "[1]", "null", '{"bf16": tru}', '{"bf16": 1}'])
def test_a_file_that_is_no_json_object_is_refused(refusal, content):
    """Reference: the json module."""
    assert "ds.json: " in refusal(content)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path, configure):
    """Reference: the json module."""
    (tmp_path / "latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(UserError, match="not JSON"):
        load_ds_config(configure(f"engine.ds_config={tmp_path}/latin.json"), 1)


@pytest.mark.parametrize("name", ["nowhere.json", "ds_configs", "/"])
def test_a_missing_file_is_named_with_the_place_of_the_presets(configure, name):
    """Reference: the file system."""
    with pytest.raises(UserError, match=r"presets are in ds_configs/") as caught:
        load_ds_config(configure(f"engine.ds_config={name}"), 1)
    assert name in str(caught.value)


def test_a_preset_is_found_from_any_working_directory_and_a_file_there_comes_first(tmp_path, configure, monkeypatch):
    """Reference: the preset, and then a file of the same name in the working directory."""
    monkeypatch.chdir(tmp_path)
    config = configure("engine.ds_config=ds_configs/zero1.json")
    assert zero_stage(load_ds_config(config, 1)) == 1
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero1.json").write_text('{"zero_optimization": {"stage": 3}}')
    assert zero_stage(load_ds_config(config, 1)) == 3


def test_a_world_size_that_does_not_divide_the_batch_is_refused(configure):
    """Reference: 8 rows over 3 devices x 2."""
    with pytest.raises(UserError, match=r"8 is not divisible by batch.micro_batch_size 2 x 3"):
        load_ds_config(configure(), 3)


def test_a_nested_key_that_deepspeed_would_pass_over_is_refused(refusal):
    """DeepSpeed checks the keys of zero_optimization and bf16 itself, those of data_types it does not."""
    said = refusal({**VALID, "data_types": {"grad_acum_dtype": "fp32"}})
    assert "unknown key data_types.grad_acum_dtype" in said


def test_a_key_that_stands_twice_is_refused(refusal):
    """JSON takes the last one without a word."""
    assert "steps_per_print stands there twice" in refusal('{"steps_per_print": 1, "steps_per_print": 2}')


def test_at_stage_0_the_engine_clips_and_deepspeed_does_not(load):
    """The file may still repeat the run's value."""
    for written in ("auto", 1.0):
        content = {"zero_optimization": {"stage": 0}, "gradient_clipping": written}
        assert load(content, "engine.precision=fp32")["gradient_clipping"] == 0.0


@pytest.mark.parametrize(("stage", "precision"), [(0, "bf16"), (0, "fp16"), (3, "fp16")])
def test_a_precision_that_a_stage_does_not_train_rightly_is_refused(load, stage, precision):
    """Reference: what DeepSpeed does there without a word: a hidden step at stage 0; at stage 3 gradients are divided
    by the loss scale of the next step."""
    with pytest.raises(UserError, match=f"ZeRO stage {stage} does not train {precision} rightly: use ds_configs/zero"):
        load({"zero_optimization": {"stage": stage}}, f"engine.precision={precision}")


@pytest.mark.parametrize("part", ["offload_optimizer", "offload_param"])
def test_offload_to_nvme_is_refused_with_the_way_out(refusal, part):
    """Reference: DeepSpeed 0.19.8, which goes on from a checkpoint with wrong losses then."""
    zero = {"stage": 3, part: {"device": "nvme", "nvme_path": "/local"}}
    message = refusal({"zero_optimization": zero})
    assert f"zero_optimization.{part}.device nvme" in message
    assert "does not go on rightly from a checkpoint" in message
    assert "ds_configs/zero3-offload-parameters.json" in message


@pytest.mark.parametrize(
    ("stage", "part"), [(0, "offload_optimizer"), (0, "offload_param"), (1, "offload_param"), (2, "offload_param")]
)
def test_offload_that_the_stage_does_not_have_is_refused(refusal, stage, part):
    """Reference: DeepSpeed, which passes over it without a word."""
    message = refusal({"zero_optimization": {"stage": stage, part: {"device": "cpu"}}}, "engine.precision=fp32")
    assert f"zero_optimization.{part} has no effect at ZeRO stage {stage}" in message


def test_an_old_name_of_offload_is_refused(refusal):
    """Reference: DeepSpeed, which still takes it."""
    message = refusal({"zero_optimization": {"stage": 2, "cpu_offload": True}})
    assert "zero_optimization.cpu_offload is an old name: use offload_optimizer" in message


def test_offload_runs_torchs_own_optimizer(load, refusal):
    """Reference: DeepSpeed's, which needs a compiler."""
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert load({"zero_optimization": zero})["zero_force_ds_cpu_optimizer"] is False
    assert "zero_force_ds_cpu_optimizer is True" in refusal(
        {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": True}
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_autocast_takes_the_place_of_cast_weights(load, deepspeed_config, stage):
    """Reference: DeepSpeed's parsed configuration; both at once it would take without a word."""
    filled = load({"zero_optimization": {"stage": stage}}, "engine.precision=bf16", "engine.autocast=true")
    used = deepspeed_config(filled)
    assert (used.torch_autocast_enabled, used.bfloat16_config.enabled) == (True, False)
    assert str(used.torch_autocast_dtype) == "torch.bfloat16"


def test_both_kinds_of_bf16_at_once_are_refused(refusal):
    """Reference: DeepSpeed, which takes them without a word."""
    said = {"bf16": {"enabled": True}}
    assert "bf16.enabled is True" in refusal(VALID | said, "engine.precision=bf16", "engine.autocast=true")
    said = {"torch_autocast": {"enabled": True}}
    assert "torch_autocast.enabled is True" in refusal(VALID | said, "engine.precision=bf16")


def test_a_misspelt_key_of_autocast_is_refused(refusal):
    """Reference: DeepSpeed, which passes over it."""
    assert "unknown key torch_autocast.dtyp" in refusal(VALID | {"torch_autocast": {"dtyp": "bfloat16"}})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_autocast_with_another_precision_is_refused(configure, precision):
    """Reference: only bf16 was measured to train rightly with it."""
    with pytest.raises(UserError, match=f"engine.autocast works with engine.precision bf16 only, not with {precision}"):
        configure(f"engine.precision={precision}", "engine.autocast=true")


def test_bf16_without_the_check_of_gradients_is_refused(refusal):
    """Reference: DeepSpeed's default before 0.19.3, with which NaN is applied."""
    said = {"bf16": {"check_grad_overflow": False}}
    assert "bf16.check_grad_overflow is False" in refusal(VALID | said)


def test_clipping_that_is_not_written_is_that_of_the_run(load):
    """Reference: the run's configuration; DeepSpeed's own default has changed from 0 to 1."""
    assert load(VALID, "optimizer.gradient_clipping=0.0")["gradient_clipping"] == 0.0
